"""Run a whole zoo: every card with every recipe, side by side.

    cards ─ open ─┬─ prefix ─┬─ stages ─ finish
                  │          └─ stages ─ finish ─▶ leaderboard
                  └─ stages ──────────── finish

Jobs go to an executor. A job that fails takes with it only the cells that need its result.

Comparing with the original measures latency, so nothing else should run beside it. It comes when
nothing is left to compute; if that takes longer than a moment, no new work is begun until what is
ready has been delivered, one cell after the other. Work that goes on all the same, perhaps for
ever, does not hold them up: they are delivered beside it, and compared once more when it has ended.
"""

from __future__ import annotations

import queue
import time
from collections import deque
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

from zoopress.cells.selection import Selection
from zoopress.errors import ZoopressError
from zoopress.observers.watch import NEWS, Observers, RunWatch, hear
from zoopress.orchestration.board_files import write_leaderboard as write_leaderboard, writing
from zoopress.orchestration.cell_logs import CellLogs
from zoopress.orchestration.jobs import Job, Kind
from zoopress.orchestration.prefixes import Shared, shared_prefixes
from zoopress.orchestration.zoo_state import CellState, ZooOptions as ZooOptions
from zoopress.progress import Listener
from zoopress.provenance import git_state
from zoopress.reports.headline import times_smaller
from zoopress.reports.leaderboard import CellOutcome, Leaderboard
from zoopress.reports.quality_words import MEANING
from zoopress.reports.standing import State
from zoopress.results import Report
from zoopress.store import Store

_OPENING_BYTES = 300_000_000
"""What finding a card's files takes of the memory budget."""


class Submitted(Protocol):
    """A job under way; `concurrent.futures.Future` is one, and so are Prefect's futures."""

    def add_done_callback(self, fn: Callable[[Any], object], /) -> object: ...

    def result(self) -> Any: ...


Submit = Callable[[Job], Submitted]


class ZooRun:
    """One run over a selection.

    Args:
        selection: cards and recipes.
        options: where to.
        submit: starts a job.
        tell: gets events: cells that start, finish and fail.
        observers: plugins that hear of the run, its cells and their stages.
    """

    def __init__(
        self,
        selection: Selection,
        options: ZooOptions,
        submit: Submit,
        tell: Listener,
        observers: Observers,
    ) -> None:
        self.options, self.submit, self.tell = options, submit, tell
        self._done: queue.SimpleQueue[int] = queue.SimpleQueue()
        self._under_way: dict[int, tuple[Submitted, Callable[[Any], None], list[CellState]]] = {}
        self._waiting: deque[tuple[Job, list[CellState], Callable[[Any], None]]] = deque()
        self._ready: list[CellState] = []
        self._compare_again: list[CellState] = []
        self._finishing: int | None = None
        self._delivering_since: float | None = None
        self._wait_s = options.patience_s
        self._numbers = 0
        self._logs = CellLogs(options.logs or options.out / "logs")
        self._store, self._in_use = Store(options.store), ExitStack()
        self._made_in = git_state(Path.cwd())
        self._cells_of: dict[int, list[CellState]] = {}
        self._cells: dict[str, list[CellState]] = {}
        self._problems: list[tuple[CellState, str]] = []
        for card, recipe in selection.cells():
            cell = CellState(
                card.name,
                recipe.name,
                card.reference,
                recipe.reference,
                options.out / card.name / recipe.name,
            )
            problem = card.problem or recipe.problem
            self._cells.setdefault(card.reference, []).append(cell)
            if problem:
                self._problems.append((cell, problem))
        names = [(cell.card, cell.recipe) for cell in self.cells]
        self._watch = RunWatch(observers, names, options.out)

    def hear(self, event: dict[str, Any]) -> None:
        """Take in what a job has to tell; it may come from any thread, and news of stages twice."""
        if event["event"] != NEWS:
            for cell in self._cells_of.get(event.get("number", 0), []):
                self._logs.write(cell.card, cell.recipe, event)
            return
        cells = self._cells_of.get(event["job"], [])
        # A prefix is computed for its first cell; the others will find it in the store.
        if cells:
            hear(event, cells[0].hears)

    def run(self) -> Leaderboard:
        """Run every cell; what is interrupted is told apart from what failed.

        Raises:
            StoreError: if nothing can be written to the output folder.
        """
        with writing(self.options.out):  # before hours of work
            self.options.out.mkdir(parents=True, exist_ok=True)
        with self._watch, self._in_use:  # in use also between two jobs of a cell
            self._run()
        return self._board()

    def _board(self) -> Leaderboard:
        return Leaderboard([cell.outcome for cell in self.cells if cell.outcome is not None])

    def _run(self) -> None:
        try:
            for cell, problem in self._problems:
                self._fail([cell], problem)
            for reference, cells in self._cells.items():
                self._open(reference, [cell for cell in cells if cell.outcome is None])
            while True:
                self._deliver()
                self._submit()
                if not self._under_way:
                    return
                with suppress(queue.Empty):
                    self._take(self._done.get(timeout=self._look_after_s()))
        except KeyboardInterrupt:
            for cell in self.cells:
                if cell.outcome is None:
                    self._conclude(cell, "stopped", "interrupted; what is finished is in the store")

    @property
    def cells(self) -> list[CellState]:
        """Every cell, in the order of the selection."""
        return [cell for cells in self._cells.values() for cell in cells]

    def _open(self, reference: str, cells: list[CellState]) -> None:
        if not cells:
            return
        job = self._job("open", cells, memory_bytes=_OPENING_BYTES)

        def opened(answer: dict[str, Any]) -> None:
            keys: dict[int, list[str]] = {}
            missing: set[str] = set()
            reports: set[str] = set()
            for i, (cell, state) in enumerate(zip(cells, answer["cells"], strict=True)):
                if "report_key" in state:
                    cell.watch = self._watch.cell(
                        state["card"],
                        state["recipe"],
                        cell.folder,
                        state["keys"],
                        state["report_key"],
                    )
                    cell.watch.start()
                if "failure" in state:
                    self._fail([cell], state["failure"])
                elif "result" in state:
                    report = Report.from_dict(state["result"]["report"])
                    for position, result in enumerate(report.stages, start=1):
                        cell.hears.stage_ended(position, result, computed=False, seconds=0.0)
                    self._conclude(cell, "done", result=state["result"])
                else:
                    keys[i] = state["keys"]
                    missing.update(state["missing"])
                    reports.add(state["report_key"])
                    cell.memory_bytes = state["memory_bytes"]
            in_use = {key for chain in keys.values() for key in chain} | reports
            self._in_use.enter_context(self._store.using(in_use))
            tree = shared_prefixes(keys, missing)
            self._grow(tree, cells)

        self._start(job, cells, opened)

    def _grow(self, shared: Shared[int], cells: list[CellState]) -> None:
        """Go on with all that needs nothing but stages which are in the store now."""
        for i in shared.cells:
            self._stages(cells[i])
        for part in shared.longer:
            if part.missing:
                self._prefix(part, cells)
            else:
                self._grow(part, cells)

    def _prefix(self, shared: Shared[int], cells: list[CellState]) -> None:
        members = [cells[i] for i in shared.all_cells()]
        job = self._job("prefix", members[:1], len(members), count=shared.count)

        def computed(answer: dict[str, Any]) -> None:
            members[0].seconds += answer["seconds"]
            members[0].cpu_seconds += answer["cpu_seconds"]
            for cell in members:
                cell.computed += answer["computed"]
            self._grow(shared, cells)

        self._start(job, members, computed)

    def _stages(self, cell: CellState) -> None:
        def computed(answer: dict[str, Any]) -> None:
            cell.seconds += answer["seconds"]
            cell.cpu_seconds += answer["cpu_seconds"]
            cell.computed += answer["computed"]
            cell.ready_at = time.monotonic()
            self._ready.append(cell)

        self._start(self._job("stages", [cell]), [cell], computed)

    def _deliver(self) -> None:
        """Deliver the next cell that is ready, if it is time to."""
        if self._finishing is not None:
            return
        idle, now = not (self._under_way or self._waiting), time.monotonic()
        if self._ready and (idle or now - self._ready[0].ready_at >= self._wait_s):
            # Once it has begun all that are ready are delivered; meanwhile nothing new starts.
            self._delivering_since = self._delivering_since or now
        if self._delivering_since is None:
            if idle and self._compare_again:
                self._finish(self._compare_again.pop(0), final=True)
        elif self._ready:
            self._finish(self._ready.pop(0), final=idle)
        else:
            if self._under_way:
                write_leaderboard(self._board(), self.options.out)  # what there is so far
            # Waiting for quiet keeps cores idle, so it must not be all that is done.
            self._wait_s = max(self.options.patience_s, 5 * (now - self._delivering_since))
            self._delivering_since = None
            self._deliver()

    def _look_after_s(self) -> float | None:
        """Return when something is to be done although no job has ended; None for never."""
        if not self._ready or self._finishing is not None:
            return None
        return max(0.0, self._ready[0].ready_at + self._wait_s - time.monotonic())

    def _finish(self, cell: CellState, final: bool) -> None:
        def finished(answer: dict[str, Any]) -> None:
            self._finishing = None
            cell.seconds += answer["seconds"]
            cell.cpu_seconds += answer["cpu_seconds"]
            if answer["beside"]:
                others = ", ".join(answer["beside"])
                again = "" if final else "; it is measured again when that has ended"
                text = f"latency was measured while other work ran ({others}){again}"
                self._tell(cell, {"event": "warning", "text": text})
                if not final:
                    self._compare_again.append(cell)
            self._conclude(cell, "done", result=answer["result"])

        job = self._job("finish", [cell], quiet=True, final=final)
        self._start(job, [cell], finished)
        self._finishing = self._numbers

    def _job(self, kind: Kind, cells: list[CellState], sharing: int = 1, **details: Any) -> Job:
        first, limits = cells[0], self.options.limits
        title = first.title + (f" and {sharing - 1} more" if sharing > 1 else "")
        return Job(
            kind=kind,
            title=first.card if kind == "open" else title,
            card=first.card_reference,
            recipes=tuple(cell.recipe_reference for cell in cells),
            folders=tuple(str(cell.folder.absolute()) for cell in cells),
            # Workers of a cluster may have another working folder.
            store=None if self.options.store is None else self._store.address,
            threads=None if kind == "finish" else self.options.threads,
            made_in=self._made_in,
            timeout_s=limits.left(first.seconds),
            retries=limits.retries,
            **{"memory_bytes": first.memory_bytes, **details},
        )

    def _start(
        self, job: Job, cells: list[CellState], then: Callable[[dict[str, Any]], None]
    ) -> None:
        """Have a job submitted; `then` gets its answer, and if it fails so do the cells."""
        self._numbers += 1
        job = replace(job, number=self._numbers)
        self._cells_of[job.number] = cells  # before anything can be heard of it
        if job.kind == "finish":
            self._hand_over(job, cells, then)
        else:
            self._waiting.append((job, cells, then))

    def _submit(self) -> None:
        """Submit what waits, as much as may run at once; nothing while results are delivered."""
        most = self.options.at_once
        while self._waiting and self._delivering_since is None:
            if most is not None and len(self._under_way) >= most:
                return
            self._hand_over(*self._waiting.popleft())

    def _hand_over(
        self, job: Job, cells: list[CellState], then: Callable[[dict[str, Any]], None]
    ) -> None:
        submitted = self.submit(job)
        self._under_way[job.number] = (submitted, then, cells)
        submitted.add_done_callback(lambda _: self._done.put(job.number))

    def _take(self, number: int) -> None:
        """Take the answer of a job."""
        submitted, then, cells = self._under_way.pop(number)
        try:
            answer = submitted.result()
            for event in answer.get("news", ()):  # a cluster's machines tell no events
                self.hear(event)
            if answer.get("said"):
                self.hear({"event": "said", "number": number, "text": answer["said"]})
        except Exception as error:  # whatever went wrong, it is this job's alone
            for cell in cells:
                cell.cpu_seconds += getattr(error, "cpu_seconds", 0.0) / len(cells)
            self._fail(cells, str(error) or type(error).__name__)
        else:
            try:
                then(answer)
            except ZoopressError as error:  # such as a disk that is full
                self._fail([cell for cell in cells if cell.outcome is None], str(error))
        if number == self._finishing:
            self._finishing = None

    def _fail(self, cells: list[CellState], reason: str) -> None:
        for cell in cells:
            if cell.outcome is not None and cell.outcome.state == "done":
                # Delivered, and only not compared once more.
                self._tell(cell, {"event": "warning", "text": reason})
            else:
                self._conclude(cell, "failed", reason)

    def _tell(self, cell: CellState, event: dict[str, Any]) -> None:
        self._logs.write(cell.card, cell.recipe, event)
        self.tell({"cell": cell.title, **event})

    def _conclude(
        self,
        cell: CellState,
        state: State,
        reason: str | None = None,
        result: dict[str, Any] | None = None,
    ) -> None:
        report = Report.from_dict(result["report"]) if result else None
        told = cell.outcome is not None
        cell.outcome = CellOutcome(
            card=cell.card,
            recipe=cell.recipe,
            state=state,
            reason=reason,
            folder=str(cell.folder) if result else None,
            report=report,
            computed=tuple(cell.computed),
            seconds=cell.seconds,
            cpu_seconds=cell.cpu_seconds,
            log=self._logs.path_if_any(cell.card, cell.recipe),
        )
        if told:
            return
        if cell.watch is None:  # not even opened
            named = ({"name": cell.card}, {"name": cell.recipe})
            cell.watch = self._watch.cell(*named, cell.folder)
        cell.watch.end(state, report, reason)
        text = reason or ""
        if report:
            cosine = report.last.fidelity.cosine
            text = f"{times_smaller(report.compression_ratio)}, cosine {cosine:.4f}"
            text += "" if report.last_judged.like_original else f", {MEANING}"
        self._tell(cell, {"event": state, "text": text})
