"""Run a whole zoo: every card with every recipe, side by side.

    cards ─ open ─┬─ prefix ─┬─ stages ─┐
                  │          └─ stages ─┼─ finish ─ finish ─ … ─▶ leaderboard
                  └─ stages ────────────┘

Jobs go to an executor, which says how many run at once and where. A job that fails takes with it
only the cells that need its result. Comparing with the original comes last and one at a time:
latency is measured, and nothing else may run beside it.
"""

from __future__ import annotations

import json
import queue
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

from zoopress.cells.selection import Selection
from zoopress.errors import StoreError, ZoopressError
from zoopress.observers.watch import NOBODY, CellWatch, Observers, RunWatch, StageWatch, hear
from zoopress.orchestration.jobs import Job, Kind
from zoopress.orchestration.prefixes import Shared, shared_prefixes
from zoopress.progress import Listener
from zoopress.provenance import git_state
from zoopress.reports.headline import times_smaller
from zoopress.reports.leaderboard import CellOutcome, Leaderboard
from zoopress.reports.leaderboard_page import leaderboard_page
from zoopress.reports.leaderboard_table import leaderboard_markdown
from zoopress.reports.quality_words import MEANING
from zoopress.reports.standing import State
from zoopress.results import Report
from zoopress.store import Store, write_atomic

_OPENING_BYTES = 300_000_000
"""What finding a card's files takes of the memory budget."""


class Submitted(Protocol):
    """A job under way; `concurrent.futures.Future` is one, and so are Prefect's futures."""

    def add_done_callback(self, fn: Callable[[Any], object], /) -> object: ...

    def result(self) -> Any: ...


Submit = Callable[[Job], Submitted]


@dataclass(frozen=True)
class ZooOptions:
    """How to run a zoo.

    Attributes:
        out: results go to OUT/CARD/RECIPE.
        store: where stage results are kept; None for the user's own.
        threads: how many each job computes with, where several run at once.
    """

    out: Path = Path("out")
    store: str | None = None
    threads: int | None = None


@dataclass
class _CellState:
    """What is known of one cell so far."""

    card: str
    recipe: str
    card_reference: str
    recipe_reference: str
    folder: Path
    memory_bytes: int = 0
    computed: list[str] = field(default_factory=list)
    seconds: float = 0.0
    outcome: CellOutcome | None = None
    watch: CellWatch | None = None

    @property
    def title(self) -> str:
        return f"{self.card} × {self.recipe}"

    @property
    def hears(self) -> StageWatch:
        """What tells observers of its stages; nobody before it is open."""
        return self.watch or NOBODY


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
        self._under_way: dict[int, tuple[Submitted, Callable[[Any], None], list[_CellState]]] = {}
        self._to_finish: list[_CellState] = []
        self._numbers = 0
        self._store, self._in_use = Store(options.store), ExitStack()
        self._made_in = git_state(Path.cwd())
        self._cells_of: dict[int, list[_CellState]] = {}
        self._cells: dict[str, list[_CellState]] = {}
        self._problems: list[tuple[_CellState, str]] = []
        for card, recipe in selection.cells():
            cell = _CellState(
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
        """Take in what a job has to tell of its stages; it may come from any thread, and twice."""
        cells = self._cells_of.get(event["job"], [])
        # A prefix is computed for its first cell; the others will find it in the store.
        if cells:
            hear(event, cells[0].hears)

    def run(self) -> Leaderboard:
        """Run every cell; what is interrupted is told apart from what failed.

        Raises:
            StoreError: if nothing can be written to the output folder.
        """
        with _writing(self.options.out):  # before hours of work
            self.options.out.mkdir(parents=True, exist_ok=True)
        with self._watch, self._in_use:  # in use also between two jobs of a cell
            self._run()
        return Leaderboard([cell.outcome for cell in self.cells if cell.outcome is not None])

    def _run(self) -> None:
        try:
            for cell, problem in self._problems:
                self._fail([cell], problem)
            for reference, cells in self._cells.items():
                self._open(reference, [cell for cell in cells if cell.outcome is None])
            self._wait()
            for cell in self._to_finish:
                self._finish(cell)
            self._wait()
        except KeyboardInterrupt:
            for cell in self.cells:
                if cell.outcome is None:
                    self._conclude(cell, "stopped", "interrupted; what is finished is in the store")

    @property
    def cells(self) -> list[_CellState]:
        """Every cell, in the order of the selection."""
        return [cell for cells in self._cells.values() for cell in cells]

    def _open(self, reference: str, cells: list[_CellState]) -> None:
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

    def _grow(self, shared: Shared[int], cells: list[_CellState]) -> None:
        """Go on with all that needs nothing but stages which are in the store now."""
        for i in shared.cells:
            self._stages(cells[i])
        for part in shared.longer:
            if part.missing:
                self._prefix(part, cells)
            else:
                self._grow(part, cells)

    def _prefix(self, shared: Shared[int], cells: list[_CellState]) -> None:
        members = [cells[i] for i in shared.all_cells()]
        job = self._job("prefix", members[:1], len(members), count=shared.count)

        def computed(answer: dict[str, Any]) -> None:
            members[0].seconds += answer["seconds"]
            for cell in members:
                cell.computed += answer["computed"]
            self._grow(shared, cells)

        self._start(job, members, computed)

    def _stages(self, cell: _CellState) -> None:
        def computed(answer: dict[str, Any]) -> None:
            cell.seconds += answer["seconds"]
            cell.computed += answer["computed"]
            self._to_finish.append(cell)

        self._start(self._job("stages", [cell]), [cell], computed)

    def _finish(self, cell: _CellState) -> None:
        def finished(answer: dict[str, Any]) -> None:
            cell.seconds += answer["seconds"]
            self._conclude(cell, "done", result=answer["result"])

        self._start(self._job("finish", [cell], memory_bytes=None), [cell], finished)

    def _job(self, kind: Kind, cells: list[_CellState], sharing: int = 1, **details: Any) -> Job:
        first = cells[0]
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
            **{"memory_bytes": first.memory_bytes, **details},
        )

    def _start(
        self, job: Job, cells: list[_CellState], then: Callable[[dict[str, Any]], None]
    ) -> None:
        """Submit a job; `then` gets its answer, and if it fails so do the cells."""
        self._numbers += 1
        number = self._numbers
        self._cells_of[number] = cells  # before anything can be heard of it
        submitted = self.submit(replace(job, number=number))
        self._under_way[number] = (submitted, then, cells)
        submitted.add_done_callback(lambda _: self._done.put(number))

    def _wait(self) -> None:
        """Take answers until nothing is under way."""
        while self._under_way:
            submitted, then, cells = self._under_way.pop(self._done.get())
            try:
                answer = submitted.result()
                for event in answer.get("news", ()):  # a cluster's machines tell no events
                    self.hear(event)
            except Exception as error:  # whatever went wrong, it is this job's alone
                self._fail(cells, str(error) or type(error).__name__)
                continue
            try:
                then(answer)
            except ZoopressError as error:  # such as a disk that is full
                self._fail([cell for cell in cells if cell.outcome is None], str(error))

    def _fail(self, cells: list[_CellState], reason: str) -> None:
        for cell in cells:
            self._conclude(cell, "failed", reason)

    def _conclude(
        self,
        cell: _CellState,
        state: State,
        reason: str | None = None,
        result: dict[str, Any] | None = None,
    ) -> None:
        report = Report.from_dict(result["report"]) if result else None
        cell.outcome = CellOutcome(
            card=cell.card,
            recipe=cell.recipe,
            state=state,
            reason=reason,
            folder=str(cell.folder) if result else None,
            report=report,
            computed=tuple(cell.computed),
            seconds=cell.seconds,
        )
        if cell.watch is None:  # not even opened
            named = ({"name": cell.card}, {"name": cell.recipe})
            cell.watch = self._watch.cell(*named, cell.folder)
        cell.watch.end(state, report, reason)
        text = reason or ""
        if report:
            cosine = report.last.fidelity.cosine
            text = f"{times_smaller(report.compression_ratio)}, cosine {cosine:.4f}"
            text += "" if report.last_judged.like_original else f", {MEANING}"
        self.tell({"event": state, "cell": cell.title, "text": text})


def write_leaderboard(board: Leaderboard, out: Path) -> None:
    """Write OUT/leaderboard.json, .md and .html, each in one step.

    Raises:
        StoreError: if they cannot be written.
    """
    with _writing(out):
        write_atomic(out / "leaderboard.json", json.dumps(board.as_dict(), indent=2) + "\n")
        write_atomic(out / "leaderboard.md", leaderboard_markdown(board))
        write_atomic(out / "leaderboard.html", leaderboard_page(board, out))


@contextmanager
def _writing(out: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StoreError(
            f"Cannot write to {out}: {error.strerror or error}. Choose another --out; what was "
            "computed is in the store."
        ) from error
