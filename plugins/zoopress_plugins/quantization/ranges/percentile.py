"""The range that all but a few numbers lie in."""

from __future__ import annotations

import torch

from zoopress_plugins.quantization.ranges.observer import Ends, Observer, ends_of
from zoopress_plugins.quantization.ranges.seen import Seen


class Percentile(Observer):
    """From the lower to the upper percentile of what was seen, to the width of a bin.

    Args:
        percent: of the numbers that lie within; half of the others on each side.

    Source: Wu et al. 2020, arXiv:2004.09602, section 5 (calibration by percentile).
    """

    name = "percentile"

    def __init__(self, percent: float = 99.99) -> None:
        self.percent = percent

    def range(self, seen: Seen, bits: int, symmetric: bool) -> Ends:
        low, high = ends_of(seen)
        beyond = (1 - self.percent / 100) / 2 * seen.counts.sum(1, keepdim=True)
        below = seen.counts.cumsum(1)
        above = seen.counts.flip(1).cumsum(1).flip(1)
        # The first bin from either side behind which more lie than may.
        first = (below > beyond).int().argmax(1)
        last = seen.bins - 1 - (above > beyond).flip(1).int().argmax(1)
        width, middle = seen.width(), seen.bins // 2
        return (
            torch.maximum(low, ((first - middle) * width).clamp(max=0)),
            torch.minimum(high, ((last + 1 - middle) * width).clamp(min=0)),
        )
