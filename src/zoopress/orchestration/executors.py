"""Where jobs run: in worker processes of this machine, or right here."""

from __future__ import annotations

import os
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from zoopress.errors import InputError
from zoopress.estimates.budget import MemoryBudget
from zoopress.orchestration.jobs import Job, perform
from zoopress.orchestration.workers import JobError, StoppedError, WorkerDiedError, WorkerPool
from zoopress.progress import Listener

_MOST_WORKERS = 8
"""By default: each holds torch and a model of its own."""


def share_cores(workers: int | None, cells: int) -> tuple[int, int | None]:
    """Return how many jobs run at once, and the threads of each; None for as many as torch takes.

    Args:
        workers: what the user asked for.
        cells: how many cells there are.

    Raises:
        InputError: if fewer than one was asked for.
    """
    if workers is not None and workers < 1:
        raise InputError(f"{workers} workers cannot do anything; give 1 or more.")
    affinity = getattr(os, "sched_getaffinity", None)
    cores = len(affinity(0)) if affinity else os.cpu_count() or 1
    count = min(workers or min(cores, _MOST_WORKERS), max(cells, 1))
    return count, None if count == 1 else max(1, cores // count)


class LocalExecutor:
    """Worker processes on this machine, as many at once as there are threads and memory for.

    A job whose worker dies is tried once more, alone on the machine: its neighbours may have taken
    the memory that it needed.

    Args:
        workers: how many jobs run at once.
        budget: what jobs claim their memory from.
        tell: gets events, each with the cell that it is about.
    """

    def __init__(self, workers: int, budget: MemoryBudget, tell: Listener) -> None:
        self.budget, self.tell = budget, tell
        self._pool = WorkerPool()
        self._threads = ThreadPoolExecutor(workers, thread_name_prefix="zoopress")

    def submit(self, job: Job) -> Future[dict[str, Any]]:
        """Start a job as soon as there is room."""
        return self._threads.submit(self.run, job)

    def run(self, job: Job, tell: Listener | None = None) -> dict[str, Any]:
        """Do a job in a worker process, and wait for it.

        Args:
            job: what to do.
            tell: gets its events as well.

        Raises:
            JobError: if it failed, or its worker died twice.
            StoppedError: if this was closed before it began.
        """

        def told(event: dict[str, Any]) -> None:
            self.tell({"cell": job.title, **event})  # some are about one of a job's cells
            if tell is not None:
                tell(event)

        try:
            return self._run(job, told)
        finally:
            told({"event": "ended"})

    def _run(self, job: Job, told: Listener) -> dict[str, Any]:
        def waiting() -> None:
            if self._pool.closed:
                raise StoppedError("The run was stopped.")

        def once(memory_bytes: int | None) -> dict[str, Any]:
            with self.budget.claim(memory_bytes, waiting):
                told({"event": "started", "text": job.kind})
                return self._pool.run(job.as_dict(), told)

        try:
            return once(job.memory_bytes)
        except WorkerDiedError as death:
            if self._pool.closed:
                raise
            told({"event": "retry", "text": f"{death} Trying once more, alone."})
        try:
            return once(None)
        except WorkerDiedError as death:
            raise JobError(
                f"{death} It was tried twice, the second time alone on the machine. If memory ran "
                "out, this model needs a larger machine; finished stages are in the store."
            ) from death

    def close(self) -> None:
        """End everything at once; what is finished is in the store."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        self._pool.close()

    def __enter__(self) -> LocalExecutor:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def run_here(job: Job, budget: MemoryBudget, tell: Listener) -> dict[str, Any]:
    """Do a job in this process, one of a cluster's; others of this machine share the budget.

    Raises:
        ZoopressError: if it fails.
    """
    with budget.claim(job.memory_bytes):
        return perform(job.as_dict(), tell)
