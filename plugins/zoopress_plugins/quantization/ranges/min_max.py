"""The whole range that was seen: nothing is clipped, and outliers decide the step."""

from __future__ import annotations

from zoopress_plugins.quantization.ranges.observer import Ends, Observer, ends_of
from zoopress_plugins.quantization.ranges.seen import Seen


class MinMax(Observer):
    """From the smallest to the largest number.

    Source: Jacob et al. 2018, arXiv:1712.05877, section 3.
    """

    name = "min_max"

    def range(self, seen: Seen, bits: int, symmetric: bool) -> Ends:
        return ends_of(seen)
