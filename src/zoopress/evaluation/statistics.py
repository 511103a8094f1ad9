"""How sure a figure is: intervals by the bootstrap, and a test of paired accuracy."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

Interval = tuple[float, float]
"""Lower and upper end."""

Metrics = Callable[[Mapping[str, Tensor]], Mapping[str, float]]
"""Returns metrics by name from rows by name, each [samples, …]."""

LEAST_RESAMPLES = 100
"""So many are drawn, however many rows there are."""
MOST_ROWS = 5_000_000
"""Rows of all resamples together, beyond which fewer are drawn: the same on every machine."""


@dataclass(frozen=True)
class MetricIntervals:
    """How far a metric of two models on the same samples may lie from its true value.

    Attributes:
        original: of the first model's metric.
        compressed: of the second's.
        difference: of second − first; narrower than the two tell, since both saw the same samples.
    """

    original: Interval
    compressed: Interval
    difference: Interval


def interval_entries(intervals: MetricIntervals | None) -> dict[str, list[float] | None]:
    """Return intervals as reports have them: "original_interval": [low, high] and so on."""
    return {
        f"{name}_interval": list(getattr(intervals, name)) if intervals else None
        for name in ("original", "compressed", "difference")
    }


@dataclass(frozen=True)
class Bootstrap:
    """What a bootstrap found.

    Attributes:
        intervals: by metric; without those that have no value on a tenth of the resamples or more.
        resamples: how many were drawn.
    """

    intervals: dict[str, MetricIntervals]
    resamples: int


def bootstrap(
    original: Mapping[str, Tensor],
    compressed: Mapping[str, Tensor],
    metrics: Metrics,
    *,
    resamples: int = 1000,
    seed: int = 0,
    confidence: float = 0.95,
) -> Bootstrap:
    """Draw samples with replacement, the same for both models, and take the percentiles of metrics.

    Percentiles rather than BCa: BCa needs every metric once more a row, to leave it out, and its
    correction of bias is undefined where most resamples give the very value measured, as when a
    dozen predictions of thousands differ. Percentile intervals are a little too narrow on less than
    some 30 samples. If no sample differs, that of the difference is [0, 0]; of n samples up to
    3 ÷ n may differ in truth (the rule of three).

    Resamples on which the metrics raise a ValueError, such as one whose targets are all equal, or
    where one of the two values is not finite, are left out.

    Args:
        original: the first model's rows by name, each [samples, …].
        compressed: the second's, of the same samples.
        metrics: what to compute of rows.
        resamples: how many to draw; fewer, but no less than `LEAST_RESAMPLES`, where they would
            have more than `MOST_ROWS` together.
        seed: the same one draws the same resamples.
        confidence: how often intervals like these hold the true value.

    Raises:
        ValueError: if there are less than two samples, or not the same number of both.

    Source: Efron and Tibshirani 1993, An Introduction to the Bootstrap, chapters 13 and 14.
    """
    count = _rows(original, compressed)
    generator = torch.Generator().manual_seed(seed)
    drawn: dict[str, list[Interval]] = {}
    resamples = min(resamples, max(LEAST_RESAMPLES, MOST_ROWS // count))
    for _ in range(resamples):
        rows = torch.randint(count, (count,), generator=generator)
        try:
            before, after = (
                metrics({name: values[rows] for name, values in statistics.items()})
                for statistics in (original, compressed)
            )
        except ValueError:
            continue
        for name in before.keys() & after.keys():
            if math.isfinite(before[name]) and math.isfinite(after[name]):
                drawn.setdefault(name, []).append((before[name], after[name]))
    intervals = {}
    for name, pairs in sorted(drawn.items()):
        if len(pairs) > 0.9 * resamples:
            a, b = torch.tensor(pairs, dtype=torch.float64).unbind(1)
            intervals[name] = MetricIntervals(
                *(_percentiles(values, confidence) for values in (a, b, b - a))
            )
    return Bootstrap(intervals, resamples)


def mean_interval(
    values: Tensor, *, resamples: int = 1000, seed: int = 0, confidence: float = 0.95
) -> Interval:
    """Return the percentile bootstrap interval of the mean of `values` [samples].

    Raises:
        ValueError: if there are less than two.
    """
    count = _rows({"values": values})
    generator = torch.Generator().manual_seed(seed)
    means = [
        float(values[torch.randint(count, (count,), generator=generator)].double().mean())
        for _ in range(resamples)
    ]
    return _percentiles(torch.tensor(means, dtype=torch.float64), confidence)


@dataclass(frozen=True)
class McNemar:
    """McNemar's test of two models' right and wrong answers to the same questions.

    Attributes:
        right_to_wrong: what only the original got right.
        wrong_to_right: what only the compressed model got right.
        p_value: how likely so uneven a pair of counts, or a more uneven one, is if both models are
            right equally often; two-sided.
    """

    right_to_wrong: int
    wrong_to_right: int
    p_value: float


def mcnemar(original_right: Tensor, compressed_right: Tensor) -> McNemar:
    """Test whether two models are right equally often, from where they differ.

    By the binomial distribution, exactly, whatever the counts; no approximation is needed.

    Args:
        original_right: [samples], bool.
        compressed_right: [samples], bool, of the same samples.

    Raises:
        ValueError: if the two have another number of samples.

    Source: McNemar 1947, doi:10.1007/BF02295996; Dietterich 1998, doi:10.1162/089976698300017197.
    """
    if original_right.shape != compressed_right.shape:
        raise ValueError(
            f"answers {list(original_right.shape)} and {list(compressed_right.shape)} are not of "
            "the same samples"
        )
    lost = int((original_right & ~compressed_right).sum())
    won = int((~original_right & compressed_right).sum())
    return McNemar(lost, won, _two_sided_binomial(min(lost, won), lost + won))


def _two_sided_binomial(fewer: int, trials: int) -> float:
    """Return how likely a fair coin shows either side `fewer` times of `trials` or less often."""
    term, total = 1, 1  # whole numbers: the powers exceed floating point
    for i in range(fewer):
        term = term * (trials - i) // (i + 1)
        total += term
    return min(1.0, 2 * total / (1 << trials))


def _percentiles(values: Tensor, confidence: float) -> Interval:
    tail = (1 - confidence) / 2
    ends = torch.quantile(values, torch.tensor([tail, 1 - tail], dtype=torch.float64))
    return float(ends[0]), float(ends[1])


def _rows(*statistics: Mapping[str, Tensor]) -> int:
    counts = {len(values) for rows in statistics for values in rows.values()}
    if len(counts) != 1:
        raise ValueError(f"all statistics must be of the same samples, not of {sorted(counts)}")
    count = counts.pop()
    if count < 2:
        raise ValueError("an interval needs at least two samples, there is one")
    return count
