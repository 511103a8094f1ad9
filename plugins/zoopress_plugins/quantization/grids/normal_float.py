"""NF4: sixteen levels that normal weights take about equally often, zero and both ends included.

Source: Dettmers et al. 2023, arXiv:2305.14314, section 3 and appendix E.
"""

from __future__ import annotations

import torch
from torch import Tensor

OFFSET = 0.9677083
"""The probability of the end's quantile: between those of ½ · (1/30 + 1/32) from the last."""


def normal_float_levels() -> Tensor:
    """Return the levels [16], rising, from −1 to 1, float32: eight above zero, seven below."""
    above = _quantiles(9)
    below = _quantiles(8)
    levels = torch.cat([-below.flip(0), torch.zeros(1, dtype=torch.float64), above])
    return (levels / levels.max()).float()


def _quantiles(count: int) -> Tensor:
    """Return the `count` − 1 positive quantiles, evenly spaced in probability, rising."""
    shares = torch.linspace(OFFSET, 0.5, count, dtype=torch.float64)[:-1]
    quantiles: Tensor = torch.special.ndtri(shares)
    return quantiles.flip(0)
