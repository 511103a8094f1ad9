"""The task's metrics of both models, with confidence intervals and a paired test."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, Literal

from torch import Tensor

from zoopress.evaluation.changes import classification_changes, confusion, label_changes
from zoopress.evaluation.comparison import Comparison
from zoopress.evaluation.statistics import Bootstrap, bootstrap, interval_entries, mcnemar
from zoopress.tasks import Task

CONFIDENCE = 0.95

LOWER = ("error", "loss", "perplexity", "bits_per")
"""A metric whose name has one of these words in it is better lower."""
HIGHER = (
    *("accuracy", "f1", "precision", "recall", "exact_match", "ndcg", "reciprocal_rank"),
    *("r_squared", "pearson", "spearman"),
)
"""The same of higher."""

Rows = Mapping[str, Tensor]


def measure_task(comparison: Comparison) -> dict[str, Any]:
    """Measure what the task judges, and which predictions changed.

    Returns:
        Plain data, empty for a task with neither labels nor classes:

        - "samples" of the test split; "metric", the one that the task is judged by
        - "metrics", "confidence", "resamples": see `compare_metrics`
        - "mcnemar", "confusion": of classifications, see the functions of these names
        - "changes": see `classification_changes` and `label_changes`
    """
    task = comparison.task
    before, after = comparison.original_run.statistics, comparison.compressed_run.statistics
    found: dict[str, Any] = {}
    if before and after:
        found = {
            "samples": _samples(before),
            "metric": task.metric,
            **compare_metrics(task, before, after, comparison.seed),
        }
    if is_classification(before) and is_classification(after):
        target, a, b = before["target"], before["predicted"], after["predicted"]
        found["mcnemar"] = asdict(mcnemar(a == target, b == target))
        found["confusion"] = confusion(target, a, b, task.label_names())
        found["changes"] = classification_changes(task, target, a, b)
    elif changes := label_changes(comparison):
        found.setdefault("samples", changes["samples"])
        found["changes"] = changes
    return found


def compare_metrics(task: Task, original: Rows, compressed: Rows, seed: int) -> dict[str, Any]:
    """Compute every metric of both models' rows, with bootstrap intervals.

    Returns:
        "metrics": by name "original", "compressed" and "difference" (compressed − original), the
        interval of each, such as "difference_interval": [low, high], and which direction is
        "better": "higher", "lower", or None if nobody says. A value or an interval that does not
        exist is None; "reason" says why a value does not. Also "confidence" and "resamples".
    """
    (before, why_before), (after, why_after) = (
        _metrics(task, rows) for rows in (original, compressed)
    )
    drawn = Bootstrap({}, 0)
    if before and after and _samples(original) > 1:
        drawn = bootstrap(original, compressed, task.metrics, seed=seed, confidence=CONFIDENCE)
    metrics: dict[str, dict[str, Any]] = {}
    for name in [*(before | after)] or [task.metric or "metric"]:
        a, b = before.get(name, math.nan), after.get(name, math.nan)
        row: dict[str, Any] = {
            key: value if math.isfinite(value) else None
            for key, value in (("original", a), ("compressed", b), ("difference", b - a))
        }
        if None in row.values():
            row["reason"] = (
                why_before or why_after or f"the value is {a if math.isfinite(b) else b}"
            )
        entries = interval_entries(drawn.intervals.get(name))
        metrics[name] = {**row, **entries, "better": better(task, name)}
    return {"metrics": metrics, "confidence": CONFIDENCE, "resamples": drawn.resamples}


def better(task: Task, metric: str) -> Literal["higher", "lower"] | None:
    """Return which values of a metric are the better ones.

    The task says it of the one that it is judged by. Of others their names do.
    """
    if metric == task.metric:
        return "higher" if task.higher_is_better else "lower"
    if any(word in metric for word in LOWER):
        return "lower"
    return "higher" if any(word in metric for word in HIGHER) else None


def is_classification(statistics: Rows) -> bool:
    """Tell whether rows have one class a sample, of both target and prediction."""
    return all(
        name in statistics
        and statistics[name].ndim == 1
        and not statistics[name].is_floating_point()
        for name in ("target", "predicted")
    )


def _metrics(task: Task, rows: Rows) -> tuple[dict[str, float], str]:
    """Return a task's metrics, or why there are none."""
    try:
        return dict(task.metrics(rows)), ""
    except ValueError as error:
        return {}, str(error)


def _samples(statistics: Rows) -> int:
    return len(next(iter(statistics.values())))
