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
from contextlib import suppress
from typing import IO, Any

from zoopress.errors import ZoopressError
from zoopress.progress import Listener

_TAIL_BYTES = 4000


class JobError(ZoopressError):
    """A job failed for a reason that its message says."""


class WorkerDiedError(ZoopressError):
    """A worker process ended in the middle of a job."""


class StoppedError(ZoopressError):
    """The run that a job belongs to was stopped."""


class Worker:
    """One worker process."""

    def __init__(self) -> None:
        self.last_card: str | None = None
        self.idle = True
        self._messages: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115
        self._process = subprocess.Popen(
            [sys.executable, "-m", "zoopress.orchestration.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._messages,
            # Ctrl-C is the parent's to handle.
            start_new_session=True,
        )

    def run(self, job: dict[str, Any], tell: Listener) -> dict[str, Any]:
        """Have a job done.

        Raises:
            JobError: if it failed.
            WorkerDiedError: if the process did.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self.last_card, self.idle = job.get("card"), False
        with suppress(BrokenPipeError):
            self._process.stdin.write(json.dumps(job).encode() + b"\n")
            self._process.stdin.flush()
        for line in self._process.stdout:
            answer = json.loads(line)
            if "event" in answer:
                tell(answer)
                continue
            self.idle = True
            if "failure" in answer:
                raise JobError(answer["failure"])
            result: dict[str, Any] = answer["result"]
            return result
        raise WorkerDiedError(_reason(self._process.wait(), self._said()))

    def kill(self) -> None:
        """End the process, whatever it is doing; who waits for its answer is told."""
        with suppress(OSError):
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
        """Return the end of what it wrote to standard error."""
        size = self._messages.seek(0, os.SEEK_END)
        self._messages.seek(max(0, size - _TAIL_BYTES))
        return self._messages.read().decode(errors="replace").strip()


class WorkerPool:
    """Worker processes that threads borrow; each is started when first needed."""

    def __init__(self) -> None:
        self._idle: list[Worker] = []
        self._busy: set[Worker] = set()
        self._lock = threading.Lock()
        self.closed = False

    def run(self, job: dict[str, Any], tell: Listener) -> dict[str, Any]:
        """Have a job done by a worker that is idle, or by a new one.

        Raises:
            JobError: if it failed.
            WorkerDiedError: if the worker did.
        """
        worker = self._borrow(job.get("card"))
        try:
            return worker.run(job, tell)
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
    """Say how a process ended."""
    if status == -signal.SIGKILL:
        why = "it was killed (SIGKILL), most often because memory ran out"
    elif status < 0:
        why = f"it crashed ({signal.Signals(-status).name})"
    else:
        why = f"it ended with exit status {status}"
    return f"The worker process died: {why}." + (f" It last wrote: {said}" if said else "")
