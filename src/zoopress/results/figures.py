"""What a report says of the task, in numbers and in words; it copes with whatever is missing."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from zoopress.units import show_number

if TYPE_CHECKING:
    from zoopress.results import Report, StageResult

Interval = tuple[float, float]

_SHARES = re.compile(r"accuracy|(^|_)f1|recall|precision|error_rate|top_\d+")


@dataclass(frozen=True)
class TaskMetric:
    """One metric of the task, of both models.

    Attributes:
        name: what the task calls it.
        original: the original's.
        compressed: the compressed model's.
        original_interval: where the original's lies with 95 % confidence; None if unknown.
        compressed_interval: the same of the compressed model's.
        difference_interval: the same of compressed − original, from the same resampled inputs.
        higher_is_better: None if unknown.
        primary: whether the task is judged by it.
    """

    name: str
    original: float | None
    compressed: float | None
    original_interval: Interval | None = None
    compressed_interval: Interval | None = None
    difference_interval: Interval | None = None
    higher_is_better: bool | None = None
    primary: bool = False

    @property
    def title(self) -> str:
        return self.name.replace("_", " ")

    @property
    def difference(self) -> float | None:
        """Compressed − original."""
        if self.original is None or self.compressed is None:
            return None
        return self.compressed - self.original

    @property
    def drop(self) -> float | None:
        """How much worse the compressed model is; negative if it is better."""
        if self.difference is None or self.higher_is_better is None:
            return None
        return -self.difference if self.higher_is_better else self.difference

    @property
    def original_text(self) -> str:
        return self._with_interval(self.original, self.original_interval)

    @property
    def compressed_text(self) -> str:
        return self._with_interval(self.compressed, self.compressed_interval)

    @property
    def difference_text(self) -> str:
        """The signed difference with half the width of its interval: "−0.3 ± 0.2 points"."""
        if self.difference is None:
            return "–"
        share = is_share(self.name)
        scale, unit = (100.0, " points") if share else (1.0, "")
        shown = signed(self.difference * scale, 1 if share else None)
        if self.difference_interval is not None:
            low, high = self.difference_interval
            half = (high - low) / 2 * scale
            shown += f" ± {half:.1f}" if share else f" ± {show_number(half, 2)}"
        return shown + unit

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> TaskMetric:
        """Rebuild from `dataclasses.asdict`, also after it was JSON."""
        intervals = {key: _interval(data[key]) for key in data if key.endswith("_interval")}
        return cls(**{**data, **intervals})

    def show(self, value: float | None) -> str:
        """Write a value of this metric."""
        return show_metric(self.name, value)

    def _with_interval(self, value: float | None, interval: Interval | None) -> str:
        if interval is None:
            return self.show(value)
        low, high = (self.show(bound).removesuffix(" %") for bound in interval)
        return f"{self.show(value)} [{low}, {high}]"


def is_share(name: str) -> bool:
    """Tell whether a metric is a share of the samples, which people read in per cent."""
    return bool(_SHARES.search(name))


def show_metric(name: str, value: float | None) -> str:
    """Write a metric's value: shares of the samples in per cent, all else with four figures."""
    if value is None:
        return "–"
    return f"{100 * value:.1f} %" if is_share(name) else show_number(value, 4)


def signed(value: float, places: int | None = None) -> str:
    """Write a number with its sign, a true minus."""
    shown = show_number(abs(value)) if places is None else f"{abs(value):,.{places}f}"
    if not shown.strip("0.,"):
        return shown
    return ("+" if value > 0 else "−") + shown


def task_metrics(
    evaluation: Mapping[str, Any], last: StageResult | None = None
) -> list[TaskMetric]:
    """Return the task's metrics, the one that it is judged by first; empty without labels.

    Args:
        evaluation: a report's, or what `zoopress evaluate` found.
        last: the last stage, which knows some of it also where nothing was evaluated.
    """
    task = mapping(evaluation.get("task"))
    known = mapping(task.get("metrics"))
    primary = task.get("metric") or (last.metric if last else None)
    measured = last.metrics if last else {}
    found = []
    for name in dict.fromkeys([*known, *measured]):
        row = mapping(known.get(name))
        compressed = number(row.get("compressed", measured.get(name)))
        original = number(row.get("original"))
        better = {"higher": True, "lower": False}.get(str(row.get("better")))
        if last and name == last.metric:
            better = not last.lower_is_better
            if original is None and compressed is not None and last.metric_drop is not None:
                original = compressed + (last.metric_drop if better else -last.metric_drop)
        found.append(
            TaskMetric(
                name=str(name),
                original=original,
                compressed=compressed,
                original_interval=_interval(row.get("original_interval")),
                compressed_interval=_interval(row.get("compressed_interval")),
                difference_interval=_interval(row.get("difference_interval")),
                higher_is_better=better,
                primary=name == primary,
            )
        )
    return sorted(found, key=lambda metric: not metric.primary)


def primary_metric(report: Report) -> TaskMetric | None:
    """Return the metric that the task is judged by, if it has labels."""
    metrics = task_metrics(report.evaluation, report.last)
    return next((metric for metric in metrics if metric.primary), None)


def macs_reduction(report: Report) -> float | None:
    """Return the original's MACs ÷ the compressed model's, if they were counted."""
    found = number(mapping(report.evaluation.get("computation")).get("reduction"))
    return found if found and found > 0 else None


def task_figures(report: Report) -> dict[str, float]:
    """Return the primary metric, the original's, the drop, and the MACs reduction, flat."""
    figures: dict[str, float] = {}
    metric = primary_metric(report)
    if metric is not None and metric.compressed is not None:
        figures[metric.name] = round(metric.compressed, 6)
        if metric.original is not None:
            figures[f"{metric.name}_original"] = round(metric.original, 6)
        if metric.drop is not None:
            figures[f"{metric.name}_drop"] = round(metric.drop, 6)
    reduction = macs_reduction(report)
    if reduction is not None:
        figures["macs_reduction"] = round(reduction, 4)
    return figures


def metric_of_figures(figures: Mapping[str, Any]) -> TaskMetric | None:
    """Return the metric that `task_figures` wrote."""
    for name in figures:
        before, after = number(figures.get(f"{name}_original")), number(figures[name])
        drop = number(figures.get(f"{name}_drop"))
        if before is not None and after is not None:
            better = None if not drop else (drop > 0) == (after < before)
            return TaskMetric(str(name), before, after, higher_is_better=better, primary=True)
    return None


def flips(evaluation: Mapping[str, Any]) -> tuple[int, int] | None:
    """Return how many labels differ from the original's, and of how many."""
    changes = mapping(mapping(evaluation.get("task")).get("changes"))
    count, samples = number(changes.get("flipped")), number(changes.get("samples"))
    return None if count is None or samples is None else (int(count), int(samples))


def mapping(value: Any) -> Mapping[str, Any]:
    """Return a mapping, an empty one for anything else."""
    return value if isinstance(value, Mapping) else {}


def number(value: Any) -> float | None:
    """Return a finite number, None for anything else."""
    plain = isinstance(value, (int, float)) and not isinstance(value, bool)
    return value if plain and math.isfinite(value) else None


def _interval(value: Any) -> Interval | None:
    if not isinstance(value, (list, tuple)) or len(value) != 2:
        return None
    low, high = (number(bound) for bound in value)
    return None if low is None or high is None else (low, high)
