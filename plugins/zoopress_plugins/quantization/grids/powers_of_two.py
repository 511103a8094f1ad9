"""Zero and signed powers of two: products with such weights are shifts.

Source: Miyashita et al. 2016, arXiv:1603.01025; the levels are those of Zhou et al. 2017,
arXiv:1702.03044, section 2.1, with the largest as 1.
"""

from __future__ import annotations

import torch
from torch import Tensor


def power_levels(bits: int) -> Tensor:
    """Return zero and ±2^−k of all exponents that `bits` tell apart, by code.

    Codes are two's complement: k+1 places from the smallest magnitude up, so that larger levels
    have larger codes.

    Args:
        bits: of a code.

    Returns:
        [2^bits], float32; NaN for the most negative code, which stands for nothing.
    """
    powers = (1 << (bits - 1)) - 1
    magnitudes = 2.0 ** torch.arange(1 - powers, 1)
    levels = torch.full((1 << bits,), torch.nan)
    levels[0] = 0.0
    levels[1 : powers + 1] = magnitudes
    levels[-powers:] = -magnitudes.flip(0)
    return levels


def smallest_power(bits: int) -> float:
    """Return the smallest magnitude above zero."""
    return float(2.0 ** (2 - (1 << (bits - 1))))
