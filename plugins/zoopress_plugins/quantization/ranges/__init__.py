"""What chooses the range of a grid: one observer a file, fed from one calibration pass."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, get_args

if TYPE_CHECKING:
    from zoopress_plugins.quantization.ranges.observer import Observer

Observing = Literal["min_max", "moving_average", "percentile", "entropy", "mse", "aciq"]
OBSERVERS: tuple[Observing, ...] = get_args(Observing)


def observer_of(name: Observing, percent: float) -> Observer:
    """Return the observer of a name.

    Args:
        name: one of `OBSERVERS`.
        percent: of the numbers that "percentile" keeps within the range.
    """
    from zoopress_plugins.quantization.ranges.aciq import AnalyticClipping
    from zoopress_plugins.quantization.ranges.entropy import Entropy
    from zoopress_plugins.quantization.ranges.mean_squared_error import MeanSquaredError
    from zoopress_plugins.quantization.ranges.min_max import MinMax
    from zoopress_plugins.quantization.ranges.moving_average import MovingAverage
    from zoopress_plugins.quantization.ranges.percentile import Percentile

    if name == "percentile":
        return Percentile(percent)
    kinds = (MinMax, MovingAverage, Entropy, MeanSquaredError, AnalyticClipping)
    return next(kind for kind in kinds if kind.name == name)()
