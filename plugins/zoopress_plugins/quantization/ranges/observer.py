"""What chooses the range that a grid spans, from what calibration shows: an observer.

An observer is one short file with one class; all are fed from the same pass.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor

from zoopress_plugins.quantization.ranges.seen import Seen

_STEPS = ((10, 0.1), (9, 0.02), (9, 0.004))
"""How many parts of the range are tried around the best so far, and how far apart."""

Ends = tuple[Tensor, Tensor]
Cost = Callable[[Tensor, Tensor], Tensor]


class Observer(ABC):
    """Chooses a range.

    Class attributes:
        name: what recipes call it.
    """

    name: ClassVar[str]

    @abstractmethod
    def range(self, seen: Seen, bits: int, symmetric: bool) -> Ends:
        """Return the lowest and the highest number that the grid is to hold.

        Args:
            seen: at least one number that is not 0.
            bits: of a code.
            symmetric: whether zero is to lie in the middle.

        Returns:
            low, high: [rows], float64, within what was seen.
        """


def ends_of(seen: Seen) -> Ends:
    """Return smallest and largest number, with zero between; [rows], float64."""
    return seen.low.double().clamp(max=0), seen.high.double().clamp(min=0)


def levels_of(low: Tensor, high: Tensor, bits: int, symmetric: bool) -> tuple[Tensor, Tensor]:
    """Return step and code of zero of the grid that spans a range, as `InputGrid.range` does."""
    if symmetric:
        scale = torch.maximum(high, -low) / (2 ** (bits - 1) - 1)
        return torch.where(scale > 0, scale, 1.0), torch.zeros_like(scale)
    scale = (high - low) / (2**bits - 1)
    scale = torch.where(scale > 0, scale, 1.0)
    return scale, (-low / scale).round()


def least(seen: Seen, symmetric: bool, cost: Cost) -> Ends:
    """Return the range of least cost: of both ends together if symmetric, else one by one.

    Args:
        seen: what was seen.
        symmetric: whether both ends are to shrink alike.
        cost: takes low and high, [rows] each, and returns [rows].
    """
    low, high = ends_of(seen)
    if symmetric:
        end = torch.maximum(high, -low)
        found = _best(lambda each: cost(-end * each, end * each), len(end))
        return torch.maximum(low, -end * found), torch.minimum(high, end * found)
    for _ in range(2):  # each end, given the other; then once more
        high = high * _best(partial(_of_high, cost, low, high), len(high))
        low = low * _best(partial(_of_low, cost, low, high), len(low))
    return low, high


def _of_high(cost: Cost, low: Tensor, high: Tensor, part: Tensor) -> Tensor:
    return cost(low, high * part)


def _of_low(cost: Cost, low: Tensor, high: Tensor, part: Tensor) -> Tensor:
    return cost(low * part, high)


def _best(cost: Callable[[Tensor], Tensor], rows: int) -> Tensor:
    found = torch.ones(rows, dtype=torch.float64)
    lowest = cost(found)
    for count, step in _STEPS:
        around = found - step * (count // 2) if step < _STEPS[0][1] else torch.zeros(rows).double()
        for position in range(count):
            tried = (around + step * position).clamp(step, 1.0)
            costs = cost(tried)
            better = costs < lowest
            lowest, found = torch.where(better, costs, lowest), torch.where(better, tried, found)
    return found
