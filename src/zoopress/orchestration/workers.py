"""Worker processes: a job that crashes, or is killed for its memory, takes nothing else with it.

A worker reads jobs as lines of JSON from its standard input and answers with lines of JSON: events
while it works, then one result or failure. It is kept for the next job, since importing torch
takes seconds; it ends when its input does, also when the process that started it was killed.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import suppress
from typing import IO, Any

import psutil

from zoopress.errors import ZoopressError
from zoopress.progress import Listener

_TAIL_BYTES = 4000
_LAST_WORDS_S = 1.0
"""How long a worker that is ended may take to say where it is."""


class JobError(ZoopressError):
    """A job failed for a reason that its message says.

    Args:
        message: the reason.
        may_pass: whether another try is worth it.
        cpu_seconds: that were spent.
        said: what the worker wrote to its standard error.
    """

    def __init__(
        self, message: str, may_pass: bool = False, cpu_seconds: float = 0.0, said: str = ""
    ) -> None:
        super().__init__(message)
        self.may_pass, self.cpu_seconds, self.said = may_pass, cpu_seconds, said


class WorkerDiedError(JobError):
    """A worker process ended in the middle of a job."""


class TimeLimitError(JobError):
    """A job took longer than it may, and was ended."""


class StoppedError(ZoopressError):
    """The run that a job belongs to was stopped."""


class Worker:
    """One worker process."""

    def __init__(self) -> None:
        self.last_card: str | None = None
        self.idle = True
        self._said_before = 0
        self._expired: float | None = None
        self._messages: IO[bytes] = tempfile.TemporaryFile("a+b")  # noqa: SIM115
        self._ending = threading.Lock()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "zoopress.orchestration.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._messages,
            # Ctrl-C is the parent's to handle.
            start_new_session=True,
        )

    def run(
        self, job: dict[str, Any], tell: Listener, timeout_s: float | None = None
    ) -> dict[str, Any]:
        """Have a job done.

        Raises:
            JobError: if it failed.
            WorkerDiedError: if the process did.
            TimeLimitError: if it took too long; the process is ended.
        """
        self.last_card, self.idle, self._expired = job.get("card"), False, None
        # What it wrote before was about other jobs.
        self._said_before = self._messages.seek(0, os.SEEK_END)
        limit = threading.Timer(timeout_s or 0.0, self._expire, (self._cpu_seconds(),))
        limit.daemon = True
        if timeout_s is not None:
            limit.start()
        try:
            return self._answer(job, tell)
        finally:
            limit.cancel()

    def _answer(self, job: dict[str, Any], tell: Listener) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with suppress(BrokenPipeError):
            self._process.stdin.write(json.dumps(job).encode() + b"\n")
            self._process.stdin.flush()
        for line in self._process.stdout:
            answer = json.loads(line)
            if "event" in answer:
                tell(answer)
                continue
            with self._ending:
                self.idle = True
            if "failure" in answer:
                given = (answer["failure"], answer["may_pass"], answer["cpu_seconds"])
                raise JobError(*given, self._said())
            result: dict[str, Any] = answer["result"]
            return {**result, "said": self._said()}
        status = self._process.wait()
        if self._expired is not None:
            raise TimeLimitError("It took too long.", True, self._expired, self._said())
        raise WorkerDiedError(_reason(status, self._said()), True, said=self._said())

    def _expire(self, cpu_before: float) -> None:
        """End the process because a job takes too long; first it says where it is."""
        with self._ending:
            if self.idle:
                return
            self._expired = self._cpu_seconds() - cpu_before
        if hasattr(signal, "SIGUSR1"):
            with suppress(OSError):
                self._process.send_signal(signal.SIGUSR1)
            time.sleep(_LAST_WORDS_S)
        with self._ending:
            if not self.idle:  # it may have ended by itself just now
                self.kill()

    def _cpu_seconds(self) -> float:
        with suppress(psutil.Error):
            times = psutil.Process(self._process.pid).cpu_times()
            return float(times.user + times.system)
        return 0.0

    def kill(self) -> None:
        """End the process, whatever it is doing; who waits for its answer is told."""
        if self._process.poll() is not None:
            return
        with suppress(OSError):
            if hasattr(os, "killpg"):
                os.killpg(self._process.pid, signal.SIGKILL)  # what it started as well
            self._process.kill()

    def stop(self) -> None:
        """End the process, and let go of all that it held."""
        self.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout, self._messages):
            with suppress(OSError):
                if stream is not None:
                    stream.close()

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def _said(self) -> str:
        """Return the end of what it wrote to standard error during this job."""
        size = self._messages.seek(0, os.SEEK_END)
        self._messages.seek(max(self._said_before, size - _TAIL_BYTES))
        return self._messages.read().decode(errors="replace").strip()


class WorkerPool:
    """Worker processes that threads borrow; each is started when first needed."""

    def __init__(self) -> None:
        self._idle: list[Worker] = []
        self._busy: set[Worker] = set()
        self._lock = threading.Lock()
        self.closed = False

    def run(
        self, job: dict[str, Any], tell: Listener, timeout_s: float | None = None
    ) -> dict[str, Any]:
        """Have a job done by a worker that is idle, or by a new one.

        Raises:
            JobError: if it failed.
            WorkerDiedError: if the worker did.
            TimeLimitError: if it took too long.
        """
        worker = self._borrow(job.get("card"))
        try:
            return worker.run(job, tell, timeout_s)
        finally:
            self._give_back(worker)

    def close(self) -> None:
        """End all workers, busy ones too: what they finished is in the store."""
        with self._lock:
            self.closed = True
            idle, self._idle = self._idle, []
            for worker in self._busy:  # whoever borrowed it stops it
                worker.kill()
        for worker in idle:
            worker.stop()

    def _borrow(self, card: str | None) -> Worker:
        with self._lock:
            if self.closed:
                raise StoppedError("The run was stopped.")
            # One that has had the card last still holds its original.
            self._idle.sort(key=lambda worker: worker.last_card == card)
            while self._idle:
                worker = self._idle.pop()
                if worker.alive:
                    break
            else:
                worker = Worker()
            self._busy.add(worker)
            return worker

    def _give_back(self, worker: Worker) -> None:
        with self._lock:
            self._busy.discard(worker)
            if worker.idle and worker.alive and not self.closed:
                self._idle.append(worker)
                return
        worker.stop()


def _reason(status: int, said: str) -> str:
    """Say how a process ended, and what it wrote before."""
    if status == -signal.SIGKILL:
        why = "it was killed (SIGKILL), most often because memory ran out"
    elif status < 0:
        why = f"it crashed ({signal.Signals(-status).name})"
    else:
        why = f"it ended with exit status {status}"
    # Python lists every compiled module at the end of a crash's stack.
    lines = [line for line in said.splitlines() if not line.startswith("Extension modules:")]
    remedy = " If memory ran out, this model needs a larger machine." if "memory" in why else ""
    last = f" It last wrote: {chr(10).join(lines).strip()}" if lines else ""
    return f"The worker process died: {why}.{remedy} Finished stages are in the store.{last}"
