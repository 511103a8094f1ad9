"""Tell observers each thing once, whatever they do with it.

A run of one cell tells them in its own process. A zoo run computes in worker processes, and tells
them in the process that was started: stages send their news there as events of progress. So an
observer lives in one process, hears of every cell in it, and sees a worker that died as what it
is, a failure.
"""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from zoopress.observers.news import CellEnd, CellNews, RunNews, State
from zoopress.results import Report, StageResult

if TYPE_CHECKING:
    from typing_extensions import Self

    from zoopress.plugins import Plugins

NEWS = "stage_news"
"""The event that carries what a stage has to tell from a worker to the process of the run."""


class Observers:
    """Every plugin that wants to hear; one that fails is warned about, and the others go on.

    Args:
        plugins: what is registered.
        warn: told of an observer that failed.
    """

    def __init__(self, plugins: Plugins, warn: Callable[[str], None]) -> None:
        self._manager, self._warn = plugins.manager, warn

    def tell(self, hook: str, **news: Any) -> None:
        """Call a hook of each plugin that has it."""
        for each in getattr(self._manager.hook, hook).get_hookimpls():
            try:
                # One by one, since pluggy stops at the first that fails.
                if each.hookwrapper or each.wrapper:
                    raise TypeError("it is a wrapper, and what observers hear cannot be wrapped")
                each.function(*(news[name] for name in each.argnames))
            except (Exception, SystemExit) as error:
                self._warn(
                    f"an observer failed: {hook} of plugin {each.plugin_name!r}: "
                    f"{type(error).__name__}: {error}"
                )


class StageWatch(Protocol):
    """What hears of the stages of one cell."""

    def stage_started(self, position: int) -> None: ...

    def stage_ended(
        self, position: int, result: StageResult, computed: bool, seconds: float
    ) -> None: ...

    def stage_failed(
        self, position: int, error: str, result: StageResult | None = None
    ) -> None: ...


class Nobody:
    """Hears, and tells nobody."""

    def stage_started(self, position: int) -> None:
        pass

    def stage_ended(
        self, position: int, result: StageResult, computed: bool, seconds: float
    ) -> None:
        pass

    def stage_failed(self, position: int, error: str, result: StageResult | None = None) -> None:
        pass


NOBODY = Nobody()


class Sender:
    """Sends what it hears to another process, as events of plain data.

    Args:
        tell: gets the events.
        job: number of the job that the stages belong to.
    """

    def __init__(self, tell: Callable[[dict[str, Any]], None], job: int) -> None:
        self.sent: list[dict[str, Any]] = []
        self._tell, self._job = tell, job

    def stage_started(self, position: int) -> None:
        self._send("started", position=position)

    def stage_ended(
        self, position: int, result: StageResult, computed: bool, seconds: float
    ) -> None:
        self._send(
            "ended",
            position=position,
            result=result.as_dict(),
            computed=computed,
            seconds=seconds,
        )

    def stage_failed(self, position: int, error: str, result: StageResult | None = None) -> None:
        plain = None if result is None else result.as_dict()
        self._send("failed", position=position, error=error, result=plain)

    def _send(self, what: str, **news: Any) -> None:
        event = {"event": NEWS, "what": what, "job": self._job, **news}
        self.sent.append(event)
        self._tell(event)


def hear(event: Mapping[str, Any], watch: StageWatch) -> None:
    """Tell a watch what a `Sender` sent."""
    position, what, result = event["position"], event["what"], event.get("result")
    measured = None if result is None else StageResult.from_dict(result)
    if what == "started":
        watch.stage_started(position)
    elif what == "failed":
        watch.stage_failed(position, event["error"], measured)
    elif measured is not None:
        watch.stage_ended(position, measured, event["computed"], event["seconds"])


class CellWatch:
    """Tells observers of one cell; what it hears twice, it tells once.

    A stage that a run shares with others, or that is tried again after its worker died, is heard
    of several times.
    """

    def __init__(self, run: RunWatch, news: CellNews) -> None:
        self.news = news
        self._run = run
        self._told: dict[int, set[str]] = {}
        self._start = time.perf_counter()
        self._started = self._ended = False

    def start(self) -> None:
        """Tell that work on the cell begins."""
        with self._run.lock:
            if not self._started:
                self._started = True
                self._run.tell("zoopress_cell_started", cell=self.news)

    def stage_started(self, position: int) -> None:
        """Tell that a stage is about to be computed."""
        with self._run.lock:
            if self._is_new(position, "started", after=("started", "ended", "failed")):
                self._tell_of(position, "zoopress_stage_started")

    def stage_ended(
        self, position: int, result: StageResult, computed: bool, seconds: float
    ) -> None:
        """Tell a stage's result, computed just now or found in the store."""
        with self._run.lock:
            if self._is_new(position, "ended", after=("ended", "failed")):
                news = {"result": result, "computed": computed, "seconds": seconds}
                self._tell_of(position, "zoopress_stage_ended", **news)

    def stage_failed(self, position: int, error: str, result: StageResult | None = None) -> None:
        """Tell that a stage could not be computed, or did not pass what the recipe asks."""
        with self._run.lock:
            if self._is_new(position, "failed", after=("failed",)):
                self._tell_of(position, "zoopress_stage_failed", error=error, result=result)

    def end(self, state: State, report: Report | None = None, error: str | None = None) -> None:
        """Tell how the cell ended; a stage that was under way ended with it."""
        with self._run.lock:
            if self._ended:
                return
            self.start()
            for position, told in sorted(self._told.items()):
                if told == {"started"}:
                    self.stage_failed(position, error or state)
            self._ended = True
            seconds = time.perf_counter() - self._start
            end = CellEnd(self.news, state, report, error, seconds)
            self._run.ends.append(end)
            self._run.tell(
                "zoopress_cell_ended",
                cell=end.cell,
                state=state,
                report=report,
                error=error,
                seconds=seconds,
            )

    def _is_new(self, position: int, what: str, after: Sequence[str]) -> bool:
        told = self._told.setdefault(position, set())
        if self._ended or told & set(after):
            return False
        told.add(what)
        return True

    def _tell_of(self, position: int, hook: str, **news: Any) -> None:
        self._run.tell(hook, cell=self.news, stage=self.news.stage(position), **news)


class RunWatch:
    """Tells observers that a run begins, and how it ended; a context manager.

    Args:
        observers: who is told.
        cells: names of card and recipe of each cell.
        folder: where results go.
    """

    def __init__(
        self, observers: Observers, cells: Sequence[tuple[str, str]], folder: Path
    ) -> None:
        self.news = RunNews(uuid.uuid4().hex, tuple(cells), str(folder))
        self.tell = observers.tell
        self.lock = threading.RLock()  # stages are heard of by several threads
        self.ends: list[CellEnd] = []

    def __enter__(self) -> Self:
        self._start = time.perf_counter()
        self.tell("zoopress_run_started", run=self.news)
        return self

    def __exit__(self, *_: object) -> None:
        seconds = time.perf_counter() - self._start
        self.tell("zoopress_run_ended", run=self.news, cells=tuple(self.ends), seconds=seconds)

    def cell(
        self,
        card: Mapping[str, Any],
        recipe: Mapping[str, Any],
        folder: Path,
        keys: Sequence[str] = (),
        report_key: str = "",
    ) -> CellWatch:
        """Return what tells of a cell of this run."""
        news = CellNews(self.news, card, recipe, tuple(keys), report_key, str(folder))
        return CellWatch(self, news)


@contextmanager
def ending(watch: Callable[[], CellWatch]) -> Iterator[None]:
    """Tell that a cell failed, or was stopped, if what happens within does.

    Args:
        watch: gives the cell's, which is known only once it was opened.
    """
    try:
        yield
    except KeyboardInterrupt:
        watch().end("stopped", error="interrupted; what is finished is in the store")
        raise
    except BaseException as error:
        watch().end("failed", error=str(error) or type(error).__name__)
        raise
