"""The range on which the distribution stays most like itself."""

from __future__ import annotations

import torch
from torch import Tensor

from zoopress_plugins.quantization.ranges.observer import Ends, Observer, least, levels_of
from zoopress_plugins.quantization.ranges.seen import Seen


class Entropy(Observer):
    """The range with the least Kullback–Leibler divergence of what was rounded from what was seen.

    What lies beyond is added to the ends; a level's count is spread over the bins that it stands
    for, where there was something.

    Source: Migacz 2017, 8-bit inference with TensorRT (GTC), pages 23 to 26.
    """

    name = "entropy"

    def range(self, seen: Seen, bits: int, symmetric: bool) -> Ends:
        counts, centers = seen.counts.double(), seen.centers()
        # What a ReLU makes of half of all numbers is exact on each grid, and would outweigh all.
        counts[:, seen.bins // 2] *= (seen.low < 0).double()
        rows, top = len(counts), 2 ** (bits - 1) - 1 if symmetric else 2**bits - 1
        bottom = -top - 1 if symmetric else 0

        def cost(low: Tensor, high: Tensor) -> Tensor:
            scale, zero = (each[:, None] for each in levels_of(low, high, bits, symmetric))
            within = (centers >= low[:, None]) & (centers <= high[:, None])
            held = torch.where(within, counts, 0.0)
            places = ((centers / scale).round() + zero).clamp(bottom, top).long() - bottom
            levels = torch.zeros(rows, top - bottom + 1, dtype=torch.float64)
            filled = levels.scatter_add(1, places, (held > 0).double())
            sums = levels.scatter_add(1, places, held)
            spread = (sums / filled.clamp(min=1)).gather(1, places) * (held > 0)
            seen_there = held.clone()
            for outside, end in ((centers < low[:, None], 0), (centers > high[:, None], -1)):
                beyond = torch.where(outside, counts, 0.0).sum(1)
                seen_there.scatter_add_(1, _edge(within, end), beyond[:, None])
            p = seen_there / seen_there.sum(1, keepdim=True).clamp(min=1)
            q = spread / spread.sum(1, keepdim=True).clamp(min=1)
            # Where the edge alone has something, q has nothing: as little as one number.
            q = q.clamp(min=1 / float(counts.sum().clamp(min=1)))
            terms = torch.where(p > 0, p * (p / q).log(), 0.0)
            return terms.sum(1)

        return least(seen, symmetric, cost)


def _edge(within: Tensor, end: int) -> Tensor:
    """Return the first or last bin within the range, [rows, 1]."""
    if end == 0:
        return within.int().argmax(1, keepdim=True)
    return within.shape[1] - 1 - within.flip(1).int().argmax(1, keepdim=True)
