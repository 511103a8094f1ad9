"""A compressed model beside its original, and all that a report measures of the two."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from zoopress.errors import PluginError, nearest
from zoopress.evaluation.fidelity import Run
from zoopress.tasks import Task

if TYPE_CHECKING:
    from zoopress.models.model import Model
    from zoopress.plugins import Plugins
    from zoopress.progress import Reporter


@dataclass(frozen=True)
class Comparison:
    """Two models on one task; a measure looks at it and returns plain data.

    Attributes:
        task: feeds, runs and judges both.
        original: the model as it came.
        model: what was made of it, with its masks; `compressed` is its module.
        original_run: the original on the test split.
        compressed_run: the compressed model on the test split.
        artifact: the compressed model's folder.
        plugins: what is registered.
        seed: random choices follow from it.
    """

    task: Task
    original: nn.Module
    model: Model
    original_run: Run
    compressed_run: Run
    artifact: Path
    plugins: Plugins
    seed: int = 0

    @property
    def compressed(self) -> nn.Module:
        """The compressed network, as users get it."""
        return self.model.module


def evaluate(comparison: Comparison, measures: Sequence[str], reporter: Reporter) -> dict[str, Any]:
    """Measure the task's metrics and changed labels, if it has any, and what else is asked for.

    Args:
        comparison: of what.
        measures: registered names, such as "computation".
        reporter: where progress goes.

    Returns:
        Plain data: "task", if it has labels or its outputs carry some, and each measure by name. A
        measure that does not apply to the task says so under "skipped".

    Raises:
        PluginError: if a measure is not registered.
        ZoopressError: if one fails.
    """
    from zoopress.evaluation.task_metrics import measure_task

    plugins = comparison.plugins
    for name in measures:
        if name not in plugins.references["measures"]:
            raise PluginError(
                f"There is no measure {name!r}.{nearest(name, plugins.references['measures'])}"
            )
    found: dict[str, Any] = {}
    with reporter.step("comparing predictions"):
        if figures := measure_task(comparison):
            found["task"] = figures
    for name in measures:
        with reporter.step(f"measuring {name}") as progress:
            found[name] = plugins.resolve("measures", name)(comparison, progress)
    return found
