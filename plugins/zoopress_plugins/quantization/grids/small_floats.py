"""Floats of 4 and 8 bits; a code is the number's bits.

Sources: Micikevicius et al. 2022, arXiv:2209.05433 (e4m3, e5m2); Rouhani et al. 2023,
arXiv:2310.10537 (e2m1).
"""

from __future__ import annotations

import torch
from torch import Tensor


def float4_levels() -> Tensor:
    """Return the values of e2m1 [16], float32; NaN for −0."""
    exponent, mantissa = torch.meshgrid(torch.arange(4), torch.arange(2), indexing="ij")
    normal = (1 + mantissa / 2) * 2.0 ** (exponent - 1)
    magnitudes = torch.where(exponent == 0, mantissa / 2, normal).flatten()
    return _both_signs(magnitudes)


def float8_levels(dtype: torch.dtype) -> Tensor:
    """Return the values of an 8-bit type of torch [256], float32; NaN for −0 and infinities."""
    patterns = torch.arange(128, dtype=torch.uint8)
    return _both_signs(patterns.view(dtype).float())


def _both_signs(magnitudes: Tensor) -> Tensor:
    levels = torch.cat([magnitudes, -magnitudes])
    levels[~levels.isfinite()] = torch.nan
    levels[len(magnitudes)] = torch.nan
    return levels
