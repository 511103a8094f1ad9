"""Track zoopress' runs in MLflow: every cell a run, every stage a step of its metrics.

Nothing is tracked, and MLflow is not even imported, unless MLFLOW_TRACKING_URI is set. The
experiment is MLFLOW_EXPERIMENT_NAME, or "zoopress".
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zoopress import hookimpl
from zoopress.provenance import git_state

if TYPE_CHECKING:
    from mlflow import MlflowClient

    from zoopress.observers import CellEnd, CellNews, RunNews, StageNews, State
    from zoopress.results import Report, StageResult

STATUS = {"done": "FINISHED", "failed": "FAILED", "stopped": "KILLED"}
FILES = ("report.json", "report.md", "metrics.json")
_LONGEST_PARAM, _LONGEST_TAG, _BATCH = 500, 5000, 100
"""What every kind of MLflow's stores takes."""


class Tracker:
    """Remembers which of MLflow's runs stands for what."""

    def __init__(self) -> None:
        self._runs: dict[tuple[str, str], str] = {}
        self._opened: tuple[str, MlflowClient, str] | None = None

    def open(self) -> tuple[MlflowClient, str] | None:
        """Return a client and the experiment's id, or None if nothing is to be tracked."""
        uri = os.environ.get("MLFLOW_TRACKING_URI")
        if not uri:
            return None
        if self._opened is None or self._opened[0] != uri:
            from mlflow import MlflowClient

            client = MlflowClient(tracking_uri=uri)
            name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or "zoopress"
            known = client.get_experiment_by_name(name)
            experiment = known.experiment_id if known else client.create_experiment(name)
            self._opened = uri, client, experiment
        return self._opened[1:]

    def start(self, run: str, cell: str, title: str, tags: Mapping[str, str]) -> bool:
        """Begin a run of MLflow's, if any are wanted; `cell` is empty for the one above cells."""
        opened = self.open()
        if opened is None:
            return False
        client, experiment = opened
        parent = self._runs.get((run, ""))
        nested = {"mlflow.parentRunId": parent} if parent else {}
        short = {key: value[:_LONGEST_TAG] for key, value in {**tags, **nested}.items() if value}
        made = client.create_run(experiment, run_name=title, tags=short)
        self._runs[run, cell] = made.info.run_id
        return True

    def run_of(self, cell: CellNews) -> tuple[MlflowClient, str] | None:
        """Return a client and the run of a cell, or None if it is not tracked."""
        run, opened = self._runs.get((cell.run.id, cell.name)), self.open()
        return (opened[0], run) if opened and run else None

    def end(self, run: str, cell: str, state: str) -> None:
        """Finish a run of MLflow's."""
        ended, opened = self._runs.pop((run, cell), None), self.open()
        if ended and opened:
            opened[0].set_terminated(ended, STATUS[state])


tracker = Tracker()


@hookimpl
def zoopress_run_started(run: RunNews) -> None:
    """Begin a run above those of a zoo run's cells."""
    if len(run.cells) > 1:
        tags = {"zoopress.run": run.id, "zoopress.folder": run.folder}
        tracker.start(run.id, "", f"zoo run of {len(run.cells)} cells", tags)


@hookimpl
def zoopress_run_ended(run: RunNews, cells: Iterable[CellEnd]) -> None:
    """Finish the run above: with the worst of what its cells ended with."""
    states = {end.state for end in cells}
    state = next((s for s in ("stopped", "failed") if s in states), "done" if states else "stopped")
    tracker.end(run.id, "", state)


@hookimpl
def zoopress_cell_started(cell: CellNews) -> None:
    """Begin a run with the card, the recipe, all configs, the store's keys and the commit."""
    commit = git_state(Path.cwd()).get("commit", "")
    tags = {
        "zoopress.run": cell.run.id,
        "zoopress.folder": cell.folder,
        "zoopress.report_key": cell.report_key,
        "mlflow.source.git.commit": commit,
        **{f"zoopress.key.{i}": key for i, key in enumerate(cell.keys, start=1)},
    }
    if not tracker.start(cell.run.id, cell.name, cell.name, tags):
        return
    from mlflow.entities import Param

    about = {
        f"card.{key}": cell.card[key] for key in ("name", "source", "task") if key in cell.card
    }
    about |= {f"recipe.{key}": cell.recipe[key] for key in ("name", "seed") if key in cell.recipe}
    for i, stage in enumerate(cell.recipe.get("stages", ()), start=1):
        about |= {f"stage_{i}.{key}": value for key, value in _flat(stage).items()}
    params = [
        Param(key, str(value)[:_LONGEST_PARAM]) for key, value in about.items() if value is not None
    ]
    if (tracked := tracker.run_of(cell)) is not None:
        for start in range(0, len(params), _BATCH):
            tracked[0].log_batch(tracked[1], params=params[start : start + _BATCH])


@hookimpl
def zoopress_stage_ended(
    cell: CellNews, stage: StageNews, result: StageResult, computed: bool
) -> None:
    """Log what a stage left, as step number `position`."""
    _log(cell, {**_figures(result), "computed": float(computed)}, stage.position)


@hookimpl
def zoopress_stage_failed(
    cell: CellNews, stage: StageNews, error: str, result: StageResult | None
) -> None:
    """Say which stage failed; log what it left if that was measured."""
    if result is not None:
        _log(cell, _figures(result), stage.position)
    if (tracked := tracker.run_of(cell)) is not None:
        client, run = tracked
        client.set_tag(run, "zoopress.failed_stage", f"{stage.position} {stage.technique}")


@hookimpl
def zoopress_cell_ended(
    cell: CellNews, state: State, report: Report | None, error: str | None
) -> None:
    """Log the final figures and the report, and finish the run."""
    if (tracked := tracker.run_of(cell)) is None:
        return
    client, run = tracked
    try:
        if error is not None:
            client.set_tag(run, "zoopress.error", error[:_LONGEST_TAG])
        if report is not None:
            figures = report.metrics()
            _log(cell, {f"final.{key}": figures[key] for key in figures}, len(report.stages))
            for name in FILES:
                client.log_artifact(run, str(Path(cell.folder) / name))
    finally:
        tracker.end(cell.run.id, cell.name, state)


def _figures(result: StageResult) -> dict[str, Any]:
    fidelity = result.fidelity
    return {
        "cosine": fidelity.cosine,
        "label_loyalty": fidelity.label_loyalty,
        "probability_loyalty": fidelity.probability_loyalty,
        "weight_bytes": result.weight_bytes,
        "size_bytes": result.size_bytes,
        "parameters": result.parameters,
        "pruned": result.pruned,
        "technique_seconds": result.seconds,
        "metric_drop": result.metric_drop,
        **{f"task.{name}": value for name, value in result.metrics.items()},
    }


def _log(cell: CellNews, figures: Mapping[str, Any], step: int) -> None:
    if (tracked := tracker.run_of(cell)) is None:
        return
    from mlflow.entities import Metric

    client, run = tracked
    now = int(time.time() * 1000)
    metrics = [
        Metric(key, float(value), now, step)
        for key, value in figures.items()
        if isinstance(value, (int, float))  # what was not measured is None
    ]
    client.log_batch(run, metrics=metrics)


def _flat(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return a mapping of mappings as one, its keys joined by dots."""
    flat: dict[str, Any] = {}
    for key, item in value.items():
        if isinstance(item, Mapping):
            flat |= _flat(item, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = item
    return flat
