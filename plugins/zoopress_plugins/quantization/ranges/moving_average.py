"""A moving average of each batch's range: what happens once hardly counts."""

from __future__ import annotations

import torch

from zoopress_plugins.quantization.ranges.observer import Ends, Observer, ends_of
from zoopress_plugins.quantization.ranges.seen import Seen

MOMENTUM = 0.9


class MovingAverage(Observer):
    """Smallest and largest number of each call, averaged with weights that fall by a tenth.

    Source: Jacob et al. 2018, arXiv:1712.05877, section 3.1 (exponential moving averages).
    """

    name = "moving_average"

    def range(self, seen: Seen, bits: int, symmetric: bool) -> Ends:
        low, high = ends_of(seen)
        means = None
        for first, last in seen.calls:
            there = first.isfinite()  # a call of NaN alone has no range
            ends = torch.stack([first.double().clamp(max=0), last.double().clamp(min=0)])
            if means is None:
                means = torch.where(there, ends, torch.stack([low, high]))
            else:
                means = torch.where(there, MOMENTUM * means + (1 - MOMENTUM) * ends, means)
        assert means is not None
        return torch.maximum(low, means[0]), torch.minimum(high, means[1])
