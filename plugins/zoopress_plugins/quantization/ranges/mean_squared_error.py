"""The range with the least squared error."""

from __future__ import annotations

from torch import Tensor

from zoopress_plugins.quantization.ranges.observer import Ends, Observer, least, levels_of
from zoopress_plugins.quantization.ranges.seen import Seen


class MeanSquaredError(Observer):
    """The range on which rounding and clipping together lose least, by squares.

    Source: Choukroun et al. 2019, arXiv:1902.06822, eq. 6 (OMSE); Banner et al. 2019,
        arXiv:1810.05723, section 3.
    """

    name = "mse"

    def range(self, seen: Seen, bits: int, symmetric: bool) -> Ends:
        counts, centers = seen.counts.double(), seen.centers()
        limits = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if symmetric else (0, 2**bits - 1)

        def cost(low: Tensor, high: Tensor) -> Tensor:
            scale, zero = (each[:, None] for each in levels_of(low, high, bits, symmetric))
            codes = ((centers / scale).round() + zero).clamp(*limits)
            return (counts * ((codes - zero) * scale - centers).square()).sum(1)

        return least(seen, symmetric, cost)
