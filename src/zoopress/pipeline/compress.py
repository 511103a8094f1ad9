"""The main path: card → model → stages → artifact → report.

`compress` walks it. Every stage's result is kept in the store under a key of all that it depends
on, so that a run which is repeated, killed or extended computes only what is not there yet. A
stage always starts from the stored result before it, never from what happens to be in memory: a
run that was interrupted gives the same bytes as one that was not.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from zoopress.cards import Card
from zoopress.cells.cell import Cell, open_cell
from zoopress.gates import check_chosen, check_targets
from zoopress.observers.watch import NOBODY, Observers, RunWatch, StageWatch, ending
from zoopress.pipeline.delivery import source_problem, write_results
from zoopress.pipeline.large import models_kept
from zoopress.plugins import Plugins, load_plugins
from zoopress.progress import Reporter
from zoopress.provenance import git_state
from zoopress.recipes import Recipe
from zoopress.reports.coverage_words import (
    LARGER_REMEDY,
    SHORT_REMEDY,
    larger_words,
    lost_words,
    short_words,
)
from zoopress.reports.quality_words import unlike_remedy, unlike_words
from zoopress.reports.report import stage_line
from zoopress.results import GateInput, Report, StageResult
from zoopress.results.quality import judge_quality, judge_stages
from zoopress.store import Entry, Store

if TYPE_CHECKING:
    from zoopress.pipeline.workbench import Workbench

T = TypeVar("T")
Execute = Callable[[str, Callable[[], T]], T]


@dataclass(frozen=True)
class Result:
    """What a run leaves behind."""

    report: Report
    folder: Path
    computed: tuple[str, ...]
    """Names of the stages that were computed rather than found in the store."""

    @property
    def artifact(self) -> Path:
        return self.folder / "artifact"


def run_inline(name: str, work: Callable[[], T]) -> T:
    """Run a step here and now; other engines take its place."""
    return work()


def compress(
    card: Card,
    recipe: Recipe,
    folder: Path,
    store: Store | None = None,
    plugins: Plugins | None = None,
    reporter: Reporter | None = None,
    execute: Execute[Any] = run_inline,
    memory_bytes: int | None = None,
) -> Result:
    """Take a card's model through a recipe, prove the result, and write it to a folder.

    Args:
        card: which model.
        recipe: which stages and targets.
        folder: gets `artifact/`, `report.json`, `report.md` and `metrics.json`.
        store: where results are kept; the user's own by default.
        plugins: what is registered; everything installed by default.
        reporter: where progress goes; nowhere by default.
        execute: runs each stage, given its name; this is where an engine such as Prefect hooks in.
        memory_bytes: that may be used; models too large for it lie on disk. What this process is
            limited to by default.

    Raises:
        ZoopressError: whatever goes wrong; finished stages stay in the store.
    """
    plugins, reporter = plugins or load_plugins(), reporter or Reporter()
    observers = Observers(plugins, reporter.warn)
    with RunWatch(observers, [(card.name, recipe.name)], folder) as run:
        watch = run.cell(card.as_dict(), recipe.as_dict(), folder)
        with ending(lambda: watch):
            cell = open_cell(card, recipe, store or Store(), plugins)
            watch = run.cell(card.as_dict(), recipe.as_dict(), folder, cell.keys, cell.report_key)
            watch.start()
            result = _compress(cell, folder, reporter, execute, watch, memory_bytes)
            watch.end("done", result.report)
            return result


def _compress(
    cell: Cell,
    folder: Path,
    reporter: Reporter,
    execute: Execute[Any],
    watch: StageWatch,
    memory_bytes: int | None,
) -> Result:
    with cell.store.using(cell.store_keys):
        finished = find_finished(cell, watch)
        if finished is not None:
            reporter.line(f"nothing to compute: {cell.title} is in the store")
            return deliver(cell, *finished, folder, reporter=reporter)

        for text in cell.advice:
            reporter.line(text)
        # Only from here on is torch imported.
        from zoopress.pipeline.workbench import Workbench

        with models_kept(cell, memory_bytes, reporter):
            bench = Workbench(cell, reporter)
            done = run_stages(bench, execute, watch=watch)
            report = execute("evaluate", lambda: bench.evaluate(done.last, done.results))
        return deliver(cell, report, done.last, folder, done.computed, reporter=reporter)


def find_finished(cell: Cell, watch: StageWatch = NOBODY) -> tuple[Report, Entry] | None:
    """Return report and last result of a cell of which nothing is left to compute, else None.

    Args:
        cell: which one.
        watch: told each stage's result.

    Raises:
        GateError: if the stored result misses this recipe's targets.
    """
    last, reported = cell.store.find(cell.keys[-1]), cell.store.find(cell.report_key)
    if last is None or reported is None:
        return None
    report = Report.from_dict(reported.record)
    for position in range(1, len(report.stages) + 1):
        _pass_on(cell, report.stages[:position], watch, computed=False, seconds=0.0)
    return report, last


@dataclass(frozen=True)
class Done:
    """Stages that are in the store.

    Attributes:
        results: what each gained and cost.
        last: the last one's entry.
        computed: names of those that were computed just now.
    """

    results: tuple[StageResult, ...]
    last: Entry
    computed: tuple[str, ...]


def run_stages(
    bench: Workbench,
    execute: Execute[Any] = run_inline,
    count: int | None = None,
    watch: StageWatch = NOBODY,
) -> Done:
    """Compute the stages of a cell that are not in the store.

    Args:
        bench: of the cell.
        execute: runs each stage, given its name.
        count: stop after so many, and hold none to the recipe's targets: these stages are the
            beginning of other recipes as well. All of them by default.
        watch: told of each stage.

    Raises:
        StageError: if a technique cannot do its work.
        GateError: if a result is not sound, or misses the recipe's targets.
    """
    cell = bench.cell
    stages = cell.recipe.stages
    results: list[StageResult] = []
    computed: list[str] = []
    previous: Entry | None = None
    for position, stage in enumerate(stages[:count], start=1):
        found = cell.store.find(cell.keys[position - 1])
        before, start = previous, time.perf_counter()
        if found is None:
            watch.stage_started(position)
            with _failing(watch, position):
                previous = execute(stage.name, lambda: bench.run_stage(position, before))  # noqa: B023
        else:
            previous = found
        assert previous is not None
        if found is None:
            computed.append(stage.name)
        result = StageResult.from_dict(previous.record)
        results.append(result)
        quality = judge_quality(result, cell.recipe.targets_of(position))
        bench.reporter.line(stage_line(position, len(stages), result, found is not None, quality))
        seconds = time.perf_counter() - start
        _pass_on(cell, results, watch, found is None, seconds, held_to_targets=count is None)
    assert previous is not None, "a recipe has at least one stage"
    return Done(tuple(results), previous, tuple(computed))


def deliver(
    cell: Cell,
    report: Report,
    last: Entry,
    folder: Path,
    computed: tuple[str, ...] = (),
    made_in: Mapping[str, str] | None = None,
    reporter: Reporter | None = None,
) -> Result:
    """Write what is in the store of a finished cell to a folder; warn of one unlike its original.

    Args:
        cell: which one.
        report: of its result.
        last: the result of its last stage.
        folder: where to.
        computed: names of the stages that were computed just now.
        made_in: the commit that this run belongs to; that of the working folder by default.
        reporter: where the warning goes; nowhere by default.

    Raises:
        StoreError: if the folder cannot be written.
    """
    report = _of_this_run(report, cell, git_state(Path.cwd()) if made_in is None else made_in)
    write_results(report, last, folder, cell.plugins)
    words = unlike_words(report)
    if words and reporter is not None:
        remedy = unlike_remedy(report.last_judged)
        reporter.warn(f"{words} {remedy} `zoopress push` refuses it as it is.", loud=True)
    if reporter is not None and (words := short_words(report)):
        reporter.warn(f"{words} {SHORT_REMEDY}", loud=True)
    if reporter is not None and (words := larger_words(report)):
        reporter.warn(f"{words} {LARGER_REMEDY}", loud=True)
    if reporter is not None and (words := lost_words(report.last)):
        reporter.warn(f"{words[0].upper()}{words[1:]}.")
    return Result(report, folder, computed)


def _of_this_run(report: Report, cell: Cell, made_in: Mapping[str, str]) -> Report:
    """Name this run's card, recipe and commit: they are no part of a key, so may be another's."""
    unlike = source_problem(cell.original)
    return replace(
        report,
        first_original={**report.first_original, **({"unlike": unlike} if unlike else {})},
        card=cell.original.card.as_dict(),
        recipe=cell.recipe.as_dict(),
        store_keys=list(cell.store_keys),
        quality=judge_stages(cell.recipe, report.stages),
        made_with={**report.made_with, **made_in},
    )


@contextmanager
def _failing(watch: StageWatch, position: int, result: StageResult | None = None) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        watch.stage_failed(position, str(error) or type(error).__name__, result)
        raise


def _pass_on(
    cell: Cell,
    results: Sequence[StageResult],
    watch: StageWatch,
    computed: bool,
    seconds: float,
    held_to_targets: bool = True,
) -> None:
    """Ask the last of these results what the recipe asks of it, and tell it, or that it failed."""
    if held_to_targets:
        with _failing(watch, len(results), results[-1]):
            _check(cell, results)
    watch.stage_ended(len(results), results[-1], computed, seconds)


def _check(cell: Cell, results: Sequence[StageResult]) -> None:
    """Hold the last of these stages' results to its targets, and ask it the recipe's gates."""
    recipe, position = cell.recipe, len(results)
    given = GateInput(
        results[-1],
        recipe.targets_of(position),
        results[-1].original_size_bytes or cell.original.files.size_bytes(),
        position,
        len(recipe.stages),
        results[-2] if position > 1 else None,
    )
    check_targets(given, position, given.last)
    check_chosen(given, position, recipe.gates_of(position))
