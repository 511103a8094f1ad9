"""All that a report measures of a compressed model beside its original."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from zoopress.errors import PluginError, nearest
from zoopress.evaluation.comparison import Comparison
from zoopress.evaluation.task_metrics import measure_task
from zoopress.progress import Reporter


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
        PluginError: if a measure is not registered, or returns what is no plain data.
        ZoopressError: if one fails.
    """
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
            found[name] = plugins.ask("measures", name, comparison, progress)
    return found
