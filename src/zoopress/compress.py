"""The main path: card → model → stages → artifact → report.

`compress` walks it. Every stage's result is kept in the store under a key of all that it depends
on, so that a run which is repeated, killed or extended computes only what is not there yet. A
stage always starts from the stored result before it, never from what happens to be in memory: a
run that was interrupted gives the same bytes as one that was not.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, TypeVar

from zoopress.card import Card
from zoopress.gates import GateInput, StageResult, check_targets
from zoopress.plan import make_plan
from zoopress.plugins import Plugins, load_plugins
from zoopress.progress import Reporter
from zoopress.recipe import Recipe, Stage, Targets
from zoopress.report import Report, publish, stage_line
from zoopress.source import Architecture, SourceFiles, detect_architecture, pull
from zoopress.store import Entry, Store, digest
from zoopress.task import Task

T = TypeVar("T")
Execute = Callable[[str, Callable[[], T]], T]
SCHEMA = 1
"""Raise it when stored results of older versions can no longer be used."""


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
    store, plugins = store or Store(), plugins or load_plugins()
    reporter = reporter or Reporter()

    plan = make_plan(card, recipe)
    files = pull(card, plugins)
    architecture = detect_architecture(card, files, plugins)
    task: Task = plugins.resolve("tasks", card.task)(card, files.folder)
    keys = _keys(card, recipe, files, architecture, task, plugins, store)

    entry = store.find(digest([keys[-1], "report"]))
    if entry is not None and _targets_met(entry, plan.stages, recipe, plugins):
        stored = store.find(keys[-1])
        if stored is not None:
            reporter.line(f"nothing to compute: {card.name} × {recipe.name} is in the store")
            report = Report.from_dict(entry.record)
            publish(report, stored, folder, store)
            return Result(report, folder, ())

    # Only from here on is torch imported.
    from zoopress.stages import Workbench

    bench = Workbench(card, recipe, files, architecture, task, plugins, store, reporter)
    results: list[StageResult] = []
    computed: list[str] = []
    previous: Entry | None = None
    for position, (stage, key) in enumerate(zip(plan.stages, keys[1:], strict=True), start=1):
        found = store.find(key)
        before = previous
        previous = found or execute(
            stage.name,
            lambda: bench.run_stage(position, stage, key, before),  # noqa: B023
        )
        if found is None:
            computed.append(stage.name)
        result = StageResult.from_dict(previous.record)
        results.append(result)
        reporter.line(stage_line(position, len(plan.stages), result, from_store=found is not None))
        _check_targets(result, position, plan.stages, recipe, files.size_bytes(), plugins)

    assert previous is not None
    report = execute("evaluate", lambda: bench.evaluate(keys[-1], previous, results))
    publish(report, previous, folder, store)
    return Result(report, folder, tuple(computed))


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
    make_plan(card, recipe)
    files = pull(card, plugins)
    architecture = detect_architecture(card, files, plugins)
    task: Task = plugins.resolve("tasks", card.task)(card, files.folder)
    keys = _keys(card, recipe, files, architecture, task, plugins, store)
    stored = tuple(store.find(key) is not None for key in keys[1:])
    size = files.size_bytes()
    return Preview(stored, size, 4 * size, size * stored.count(False))


def _keys(
    card: Card,
    recipe: Recipe,
    files: SourceFiles,
    architecture: Architecture,
    task: Task,
    plugins: Plugins,
    store: Store,
) -> list[str]:
    """Return the key of the source, and of the result of each stage."""
    keys = [
        digest(
            {
                "schema": SCHEMA,
                "versions": {
                    name: _version(name) for name in ("zoopress", "torch", "transformers")
                },
                "source": card.source,
                "revision": files.revision,
                "files": {name: store.hash_file(files.folder / name) for name in files.all},
                "architecture": [architecture.name, architecture.arguments, architecture.code()],
                "task": card.task,
                "data": [card.data and card.data.model_dump(mode="json"), task.fingerprint()],
                "card": [card.name, card.base_model, card.license],
                "seed": recipe.seed,
            }
        )
    ]
    for stage in recipe.stages:
        origin = plugins.technique_origin(stage.name)
        keys.append(
            digest(
                {
                    "input": keys[-1],
                    "stage": stage.as_dict(),
                    "from": [origin.distribution, origin.version],
                    "code": _code_digest(type(stage.technique)),
                }
            )
        )
    return keys


def _code_digest(technique: type) -> str:
    """Return the digest of the file a technique is in: versions stand still while one develops."""
    import sys

    file = getattr(sys.modules.get(technique.__module__), "__file__", None)
    return digest(Path(file).read_text(encoding="utf-8")) if file else ""


def _version(distribution: str) -> str:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return ""


def _targets_met(entry: Entry, stages: tuple[Stage, ...], recipe: Recipe, plugins: Plugins) -> bool:
    """Check a stored report against the targets, which are no part of its key."""
    report = Report.from_dict(entry.record)
    for position, result in enumerate(report.stages, start=1):
        _check_targets(result, position, stages, recipe, report.original_size_bytes, plugins)
    return True


def _check_targets(
    result: StageResult,
    position: int,
    stages: tuple[Stage, ...],
    recipe: Recipe,
    original_size_bytes: int,
    plugins: Plugins,
) -> None:
    own = stages[position - 1].targets.model_dump(exclude_none=True)
    targets = Targets(**{**recipe.targets.model_dump(exclude_none=True), **own})
    last = position == len(stages)
    check_targets(GateInput(result, targets, original_size_bytes), position, last, plugins)
