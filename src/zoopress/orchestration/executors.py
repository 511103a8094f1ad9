"""Where jobs run: in worker processes of this machine, or right here."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from zoopress.errors import InputError
from zoopress.estimates.budget import PATIENCE_S, MemoryBudget
from zoopress.orchestration.jobs import Job, perform
from zoopress.orchestration.workers import (
    JobError,
    StoppedError,
    TimeLimitError,
    WorkerDiedError,
    WorkerPool,
)
from zoopress.progress import Listener
from zoopress.resources import usable_cores
from zoopress.units import show_bytes, show_seconds

_MOST_WORKERS = 8
"""By default: each holds torch and a model of its own."""
_SAY_AFTER_S = 3 * PATIENCE_S
"""A job that waits for so long for its memory is told of."""


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
    cores = usable_cores()
    count = min(workers or min(cores, _MOST_WORKERS), max(cells, 1))
    return count, None if count == 1 else max(1, cores // count)


class LocalExecutor:
    """Worker processes on this machine, as many at once as there are threads and memory for.

    A job whose worker dies is tried once more, alone on the machine if that can be had: its
    neighbours may have taken the memory that it needed.

    Args:
        workers: how many jobs run at once.
        budget: what jobs claim their memory from.
        tell: gets events, each with the cell and the number of the job that it is about.
    """

    def __init__(self, workers: int, budget: MemoryBudget, tell: Listener) -> None:
        self.budget, self.tell = budget, tell
        self._pool = WorkerPool()
        # One more, so that what is done can be delivered while all others are busy, or hang.
        self._threads = ThreadPoolExecutor(workers + 1, thread_name_prefix="zoopress")

    def submit(self, job: Job) -> Future[dict[str, Any]]:
        """Start a job as soon as there is room."""
        return self._threads.submit(self.run, job)

    def run(self, job: Job, tell: Listener | None = None) -> dict[str, Any]:
        """Do a job in a worker process, and wait for it.

        Args:
            job: what to do.
            tell: gets its events as well.

        Raises:
            JobError: if it failed, its worker died or it took too long, as often as it may.
            StoppedError: if this was closed before it began.
        """

        def told(event: dict[str, Any]) -> None:
            # Some are about one of a job's cells.
            self.tell({"cell": job.title, "number": job.number, **event})
            if tell is not None:
                tell(event)

        def stopping() -> None:
            if self._pool.closed:
                raise StoppedError("The run was stopped.")

        try:
            return run_in_worker(job, self.budget, self._pool, told, stopping)
        finally:
            told({"event": "ended"})

    def close(self) -> None:
        """End everything at once; what is finished is in the store."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        self._pool.close()

    def __enter__(self) -> LocalExecutor:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def run_in_worker(
    job: Job,
    budget: MemoryBudget,
    pool: WorkerPool,
    tell: Listener,
    stopping: Callable[[], None] = lambda: None,
) -> dict[str, Any]:
    """Do a job in a worker process, again if it fails for a reason that may pass.

    Args:
        job: what to do.
        budget: what it claims its memory from.
        pool: has the workers.
        tell: gets its events.
        stopping: called over and over while it waits; what it raises ends that.

    Raises:
        JobError: if it failed for good.
    """
    died, spent = False, 0.0
    for attempt in itertools.count(1):
        try:
            with _claimed(job, budget, tell, stopping, quiet=died) as beside:
                tell({"event": "started", "text": job.kind})
                given = replace(job, beside=tuple(beside)).as_dict()
                answer = pool.run(given, tell, job.timeout_s)
                return {**answer, "cpu_seconds": answer["cpu_seconds"] + spent}
        except JobError as error:
            if pool.closed:
                raise
            spent += error.cpu_seconds
            if error.said:
                tell({"event": "said", "text": error.said})
            words = _words(error, job)
            died = isinstance(error, WorkerDiedError)
            allowed = job.retries if job.retries is not None else int(died)
            if error.may_pass and attempt <= allowed:
                tell({"event": "retry", "text": words})
                continue
            if attempt > 1:
                words = f"Tried {_times(attempt)}. {words}"
            raise JobError(words, cpu_seconds=spent) from error
    raise AssertionError("a loop without an end has ended")


def _words(error: JobError, job: Job) -> str:
    """Say why a job failed, and what to do."""
    if isinstance(error, TimeLimitError):
        return (
            f"It was ended after {show_seconds(job.timeout_s or 0.0)}: that is all that was left "
            f"of the cell's time limit (at work: {job.kind}). Finished stages are in the store. If "
            "it did not hang, give it longer with --cell-timeout, or with cell_timeout in the "
            "section 'limits' of the matrix' file."
        )
    return str(error)


def _times(count: int) -> str:
    return "twice" if count == 2 else f"{count} times"


@contextmanager
def _claimed(
    job: Job,
    budget: MemoryBudget,
    tell: Listener,
    stopping: Callable[[], None] = lambda: None,
    quiet: bool = False,
) -> Iterator[list[str]]:
    """Hold a job's memory; who waits long for it, and who is disturbed, is told."""
    due = time.monotonic() + _SAY_AFTER_S

    def waiting() -> None:
        nonlocal due
        stopping()
        if time.monotonic() >= due:
            due = time.monotonic() + 10 * _SAY_AFTER_S
            size = "all memory" if job.memory_bytes is None else show_bytes(job.memory_bytes)
            held = ", ".join(budget.holders()) or "nobody"
            tell(
                {
                    "event": "warning",
                    "text": f"waits for its turn: it wants {size} of {show_bytes(budget.total)}, "
                    f"which others hold: {held}. If one of them hangs, end its process.",
                }
            )

    what = f"{job.kind} {job.title}"
    wanted = job.quiet or quiet
    with budget.claim(job.memory_bytes, waiting, what, wanted) as beside:
        yield list(beside) if job.quiet else []
        started = len(beside)
    if job.quiet and len(beside) > started:
        others = ", ".join(beside[started:])
        tell({"event": "warning", "text": f"{others} began while its latency was measured."})


_pool = WorkerPool()
"""Workers of a process that is itself one of a cluster's."""


def run_here(job: Job, budget: MemoryBudget, tell: Listener) -> dict[str, Any]:
    """Do a job in this process, one of a cluster's; others of this machine share the budget.

    A job with a time limit, or that may be tried again, is done by a worker process of this one:
    only a process can be ended.

    Raises:
        ZoopressError: if it fails.
    """
    if job.timeout_s is not None or job.retries is not None:
        return run_in_worker(job, budget, _pool, tell)
    with _claimed(job, budget, tell) as beside:
        return perform(replace(job, beside=tuple(beside)).as_dict(), tell)
