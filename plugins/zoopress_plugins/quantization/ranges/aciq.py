"""Clipping computed from two moments, as if numbers came from a known distribution."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from zoopress_plugins.quantization.ranges.observer import Ends, Observer, ends_of
from zoopress_plugins.quantization.ranges.seen import Seen


class AnalyticClipping(Observer):
    """Where clipping and rounding a Laplace or normal distribution lose least together.

    Of the two that one is taken whose ratio of mean deviation to standard deviation is the closer.
    Numbers that are never negative, as behind a ReLU, are taken for half of a distribution, whose
    grid is as fine as one of a bit more on the whole.

    Source: Banner et al. 2019, arXiv:1810.05723, eqs. 8 to 13.
    """

    name = "aciq"

    def range(self, seen: Seen, bits: int, symmetric: bool) -> Ends:
        low, high = ends_of(seen)
        counts, centers = seen.counts.double(), seen.centers()
        half = seen.low >= 0
        zero_bin = torch.zeros(seen.bins, dtype=torch.bool)
        zero_bin[seen.bins // 2] = True
        counts = torch.where(half[:, None] & zero_bin, 0.0, counts)
        total = counts.sum(1).clamp(min=1)
        mean = torch.where(half, 0.0, (counts * centers).sum(1) / total)
        away = centers - mean[:, None]
        deviation = (counts * away.abs()).sum(1) / total  # b of Laplace
        sigma = ((counts * away.square()).sum(1) / total).sqrt()
        whole = bits + 1.0 * half * (not symmetric)
        laplace = deviation * torch.tensor([laplace_clip(b) for b in whole.tolist()])
        normal = sigma * torch.tensor([normal_clip(b) for b in whole.tolist()])
        ratio = deviation / sigma.clamp(min=1e-300)
        heavy = (ratio - math.sqrt(0.5)).abs() < (ratio - math.sqrt(2 / math.pi)).abs()
        reach: Tensor = torch.where(heavy, laplace, normal)
        reach = torch.where(reach > 0, reach, math.inf)  # a constant has no spread to clip
        return torch.maximum(low, (mean - reach).clamp(max=0)), torch.minimum(
            high, (mean + reach).clamp(min=0)
        )


def laplace_clip(bits: float) -> float:
    """Return the best clipping of Laplace's distribution of b = 1: t · e^t = 3 · 4^bits."""
    return _root(lambda t: math.log(t) + t - math.log(3) - bits * math.log(4))


def normal_clip(bits: float) -> float:
    """Return the best clipping of the normal distribution of σ = 1."""

    def slope(t: float) -> float:
        tail = t * math.erfc(t / math.sqrt(2)) - math.sqrt(2 / math.pi) * math.exp(-t * t / 2)
        return tail + t / (3 * 4**bits)

    return _root(slope)


def _root(rising: object) -> float:
    """Return where a function that rises there is 0, between 0 and 40."""
    assert callable(rising)
    low, high = 1e-9, 40.0
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (low, middle) if rising(middle) > 0 else (middle, high)
    return (low + high) / 2
