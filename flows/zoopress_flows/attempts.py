"""Tell what failed: the work, or Prefect, which only looks on.

The command line runs a flow as an attempt. What goes wrong in the work is the work's own error, and
is raised as it was, once. What goes wrong in Prefect is no reason to lose the work: it goes on
without, unless the user asked for Prefect and it could not even begin.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, NoReturn, TypeVar

import zoopress_flows.quiet  # noqa: F401  # isort: skip

from prefect import task
from prefect.cache_policies import NO_CACHE

from zoopress.errors import ZoopressError
from zoopress.progress import terminal

T = TypeVar("T")


class PrefectFailedError(Exception):
    """Prefect could not do its part."""


class _Failure:
    """An error with the traceback that it has here; on its way Prefect adds a hundred frames."""

    def __init__(self, error: BaseException) -> None:
        self._error, self._frames = error, error.__traceback__

    def again(self) -> NoReturn:
        """Raise it as it was."""
        raise self._error.with_traceback(self._frames) from self._error.__cause__


@dataclass
class Attempt:
    """A flow that the command line runs.

    Attributes:
        began: whether the flow's own code did.
        failure: of the work, as it was raised there.
        result: of the work, whatever Prefect says of it.
    """

    began: bool = False
    failure: _Failure | None = None
    result: Any = None


_attempt: ContextVar[Attempt | None] = ContextVar("attempt", default=None)


@contextmanager
def work() -> Iterator[Attempt]:
    """Mark what is the work's own in a flow: errors of it are remembered as they are."""
    attempt = _attempt.get() or Attempt()
    attempt.began = True
    try:
        yield attempt
    except PrefectFailedError:
        raise
    except BaseException as error:
        attempt.failure = _Failure(error)
        raise


def as_task(name: str, run: Callable[[], T]) -> T:
    """Run a step as a Prefect task.

    Raises:
        PrefectFailedError: if Prefect fails; what the step raises comes as it is.
    """
    failed: list[_Failure] = []

    def step() -> T:
        try:
            return run()
        except BaseException as error:
            failed.append(_Failure(error))
            raise

    try:
        return task(name=name, cache_policy=NO_CACHE, persist_result=False)(step)()
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        if failed:
            failed[0].again()
        raise PrefectFailedError(_line(error)) from error


def run_for_command(
    flow: Callable[[], T], without: Callable[[], T], quiet: bool, chosen: bool
) -> T:
    """Run a flow for the command line.

    Args:
        flow: runs it.
        without: does the same work without Prefect.
        quiet: whether to print nothing.
        chosen: whether the user asked for Prefect, and not only an address is set.

    Raises:
        ZoopressError: if the work fails, or if Prefect was asked for and could not begin.
    """
    attempt = Attempt()
    token = _attempt.set(attempt)
    try:
        return flow()
    except Exception as error:
        failure = error
    finally:
        _attempt.reset(token)
    if attempt.failure is not None:
        attempt.failure.again()
    if isinstance(failure, ZoopressError):
        raise failure
    reason = _line(failure)
    if chosen and not attempt.began:
        raise ZoopressError(
            f"Prefect could not begin ({reason}), and it was asked for; nothing was computed. If "
            "PREFECT_API_URL names a server, see that it runs: `prefect server start`. Or leave it "
            "to run without Prefect: --engine inline."
        ) from failure
    if attempt.result is not None:
        terminal(quiet).line(f"Prefect failed at the end ({reason}); all work is done")
        result: T = attempt.result
        return result
    terminal(quiet).line(f"the Prefect flow failed ({reason}); going on without Prefect")
    return without()


def _line(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0]
