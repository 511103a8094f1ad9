"""The main path: card → model → stages → artifact → report.

`compress` walks it. Every stage's result is kept in the store under a key of all that it depends
on, so that a run which is repeated, killed or extended computes only what is not there yet. A
stage always starts from the stored result before it, never from what happens to be in memory: a
run that was interrupted gives the same bytes as one that was not.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from zoopress.card import Card
from zoopress.cell import Cell, open_cell
from zoopress.gates import GateInput, StageResult, check_targets
from zoopress.plugins import Plugins, load_plugins
from zoopress.progress import Reporter
from zoopress.provenance import git_state
from zoopress.recipe import Recipe, Targets
from zoopress.report import Report, stage_line, write_results
from zoopress.store import Entry, Store

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

    Raises:
        ZoopressError: whatever goes wrong; finished stages stay in the store.
    """
    plugins, reporter = plugins or load_plugins(), reporter or Reporter()
    cell = open_cell(card, recipe, store or Store(), plugins)

    last, reported = cell.store.find(cell.keys[-1]), cell.store.find(cell.report_key)
    if last is not None and reported is not None:
        report = _of_this_run(Report.from_dict(reported.record), cell)
        for position, result in enumerate(report.stages, start=1):
            _check_targets(cell, position, result)
        reporter.line(f"nothing to compute: {card.name} × {recipe.name} is in the store")
        write_results(report, last, folder, cell.store)
        return Result(report, folder, ())

    # Only from here on is torch imported.
    from zoopress.stages import Workbench

    bench = Workbench(cell, reporter)
    results: list[StageResult] = []
    computed: list[str] = []
    previous: Entry | None = None
    for position, stage in enumerate(recipe.stages, start=1):
        found = cell.store.find(cell.keys[position - 1])
        before = previous
        previous = found or execute(stage.name, lambda: bench.run_stage(position, before))  # noqa: B023
        if found is None:
            computed.append(stage.name)
        result = StageResult.from_dict(previous.record)
        results.append(result)
        count = len(recipe.stages)
        reporter.line(stage_line(position, count, result, from_store=found is not None))
        _check_targets(cell, position, result)

    assert previous is not None
    report = _of_this_run(execute("evaluate", lambda: bench.evaluate(previous, results)), cell)
    write_results(report, previous, folder, cell.store)
    return Result(report, folder, tuple(computed))


def _of_this_run(report: Report, cell: Cell) -> Report:
    """Name this run's card, recipe and commit: they are no part of a key, so may be another's."""
    return replace(
        report,
        card=cell.original.card.as_dict(),
        recipe=cell.recipe.as_dict(),
        made_with={**report.made_with, **git_state(Path.cwd())},
    )


@dataclass(frozen=True)
class Preview:
    """What a run would do."""

    stored: tuple[bool, ...]
    """For each stage, whether its result is in the store."""
    source_bytes: int
    memory_bytes: int
    disk_bytes: int


def preview(card: Card, recipe: Recipe, store: Store, plugins: Plugins) -> Preview:
    """Check a card and a recipe and say what a run would compute, without computing anything.

    Memory holds the original, the model that is worked on, its copy for the reload gate, and a
    tensor or two; disk at most one plain model for each stage.

    Raises:
        ZoopressError: if the two do not fit together.
    """
    cell = open_cell(card, recipe, store, plugins)
    stored = tuple(store.find(key) is not None for key in cell.keys)
    size = cell.original.files.size_bytes()
    return Preview(stored, size, 4 * size, size * stored.count(False))


def _check_targets(cell: Cell, position: int, result: StageResult) -> None:
    """Hold a stage's result to its own targets, and to the recipe's where it has none."""
    stages, shared = cell.recipe.stages, cell.recipe.targets.model_dump(exclude_none=True)
    own = stages[position - 1].targets.model_dump(exclude_none=True)
    given = GateInput(result, Targets(**{**shared, **own}), cell.original.files.size_bytes())
    check_targets(given, position, position == len(stages), cell.plugins)
