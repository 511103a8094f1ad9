"""What one calibration pass shows of the numbers that enter a layer."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

BINS_OF_ALL, BINS_OF_CHANNEL = 8192, 1024
"""In a histogram of all numbers, and in each channel's."""


@dataclass
class Seen:
    """Ranges and histograms, of all numbers together or of each channel.

    Histograms have equally wide bins from −2^e to 2^e, where 2^e is the first power of two above
    all sizes; it grows with what is seen, two bins becoming one, so that counts are exact.

    Attributes:
        rows: 1, or the number of channels.
        bins: of a histogram, a multiple of 4.
        low: [rows], smallest number; infinite before there is one.
        high: [rows], largest number.
        calls: for each call of the layer its smallest and largest, [rows] each, in order.
        counts: [rows, bins], int64.
        exponent: [rows], e; NaN as long as there are but zeros.
        numbers: how many were seen.
        odd: how many were NaN or infinite; these are in nothing else.
    """

    rows: int
    bins: int
    low: Tensor = field(init=False)
    high: Tensor = field(init=False)
    calls: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    counts: Tensor = field(init=False)
    exponent: Tensor = field(init=False)
    numbers: int = 0
    odd: int = 0

    def __post_init__(self) -> None:
        self.low = torch.full((self.rows,), math.inf)
        self.high = -self.low
        self.counts = torch.zeros(self.rows, self.bins, dtype=torch.int64)
        self.exponent = torch.full((self.rows,), math.nan)

    def add(self, values: Tensor) -> None:
        """Add what a call was given.

        Args:
            values: [rows, n], float.
        """
        values = values.detach().float().cpu()
        finite = values.isfinite()
        odd = values.numel() - int(finite.sum())
        self.numbers += values.numel()
        self.odd += odd
        if not values.numel():
            return
        if odd:
            low = torch.where(finite, values, math.inf).amin(1)
            high = torch.where(finite, values, -math.inf).amax(1)
            values = torch.where(finite, values, 0.0)
        else:
            low, high = torch.aminmax(values, dim=1)
        self.low, self.high = torch.minimum(self.low, low), torch.maximum(self.high, high)
        self.calls.append((low, high))
        self._count(values, finite if odd else None)

    def _count(self, values: Tensor, finite: Tensor | None) -> None:
        largest = torch.maximum(values.amax(1), -values.amin(1))
        exponent = torch.where(largest > 0, torch.frexp(largest)[1].float(), math.nan)
        grown = torch.fmax(self.exponent, exponent)
        for row in ((grown - self.exponent) > 0).nonzero().flatten().tolist():
            for _ in range(min(int(grown[row] - self.exponent[row]), 64)):
                self._widen(self.counts[row])
        self.exponent = grown
        width = self.width().float()[:, None]
        places = (values / width).floor_().long().add_(self.bins // 2).clamp_(0, self.bins - 1)
        places += torch.arange(self.rows)[:, None] * self.bins
        if finite is not None:
            places = places[finite]
        found = torch.bincount(places.flatten(), minlength=self.rows * self.bins)
        self.counts += found.view(self.rows, self.bins)

    def _widen(self, counts: Tensor) -> None:
        """Let bins be twice as wide: pairs become one, in the middle half."""
        pairs = counts.reshape(-1, 2).sum(1)
        quarter = self.bins // 4
        counts.zero_()
        counts[quarter : 3 * quarter] = pairs

    def width(self) -> Tensor:
        """Return how wide a bin is: [rows], float64; 1 where there are but zeros."""
        power = torch.exp2(self.exponent.double() + 1) / self.bins
        return torch.where(self.exponent.isnan(), 1.0, power)

    def centers(self) -> Tensor:
        """Return the middle of each bin, [rows, bins], float64; that of exact zeros is 0."""
        steps = torch.arange(self.bins, dtype=torch.float64) - self.bins // 2
        centers = (steps + 0.5) * self.width()[:, None]
        # What a ReLU gives is mostly zeros, which cost nothing on any grid.
        centers[:, self.bins // 2] = torch.where(self.low >= 0, 0.0, centers[:, self.bins // 2])
        return centers

    @property
    def is_empty(self) -> bool:
        """Whether no number but zeros was seen."""
        return bool((self.low.isinf() | ((self.low == 0) & (self.high == 0))).all())
