"""A uniform grid for each group of a row: its range, its levels, and the bytes they become.

Sources: Jacob et al. 2018, arXiv:1712.05877, section 2.1 (the affine grid); Banner et al. 2019,
arXiv:1810.05723 (clipping chosen by mean squared error).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

from zoopress.techniques.rounder import Matrix, Rounded, level_limits, spread

_CLIPPINGS = tuple(1 - 0.04 * step for step in range(11))


def in_groups(tensor: Tensor, size: int) -> Tensor:
    """Return [..., in] as [..., groups, size], the last group filled up with zeros."""
    full: Tensor = pad(tensor, (0, -tensor.shape[-1] % size))
    return full.view(*full.shape[:-1], -1, size)


def storable(scale: Tensor) -> Tensor:
    """Return scales as they are stored, positive.

    Rounded to bfloat16 before any weight is: so storing it there costs nothing. Only then compared
    with 0, which the scale of subnormal weights becomes.
    """
    scale = scale.bfloat16().float()
    return torch.where(scale > 0, scale, 1.0)


def nearest(matrix: Matrix, importance: Tensor | None = None) -> Rounded:
    """Round to the nearest point of the grid with the least squared error.

    Args:
        matrix: what to round.
        importance: [in], what a squared error in each column counts; None: all alike.
    """
    values, symmetric, bits = matrix.values.float(), matrix.symmetric, matrix.bits
    size = matrix.group_size
    if matrix.keep is not None:
        values = torch.where(matrix.keep, values, 0.0)
    groups = in_groups(values, size)
    worth = None if importance is None else in_groups(importance.float(), size)
    highest = groups.amax(-1).clamp(min=0)
    lowest = groups.amin(-1).clamp(max=0)
    limits = level_limits(bits, symmetric)
    best: tuple[Tensor, Tensor, Tensor] | None = None
    for factor in _CLIPPINGS if matrix.clipping else (1.0,):
        low, high = lowest * factor, highest * factor
        if symmetric:
            scale = storable(torch.maximum(high, -low) / (2 ** (bits - 1) - 1))
            zero = torch.zeros_like(scale)
        else:
            scale = storable((high - low) / (2**bits - 1))
            zero = (-low / scale).round().clamp(0, 2**bits - 1)
        levels = ((groups / scale[..., None]).round() + zero[..., None]).clamp(*limits)
        squares = ((levels - zero[..., None]) * scale[..., None] - groups).square()
        error = (squares if worth is None else squares * worth).sum(-1)
        if best is None:
            best, least = (levels, scale, zero), error
        else:
            better = error < least
            least = torch.where(better, error, least)
            best = (
                torch.where(better[..., None], levels, best[0]),
                torch.where(better, scale, best[1]),
                torch.where(better, zero, best[2]),
            )
    assert best is not None
    levels, scale, zero = best
    levels = levels.flatten(-2)[:, : values.shape[1]]
    return Rounded(levels, scale.bfloat16(), None if symmetric else zero)


def dequantized(rounded: Rounded, matrix: Matrix) -> Tensor:
    """Return the values that levels stand for: [out, in], float32."""
    levels = rounded.levels.float()
    if rounded.zero_point is not None:
        levels = levels - spread(rounded.zero_point.float(), matrix)
    return levels * spread(rounded.scale.float(), matrix)


def stored(rounded: Rounded, bits: int) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return codes [out, in], uint8 (two's complement if symmetric), scales and zero points."""
    codes = (rounded.levels.to(torch.int16) & (2**bits - 1)).to(torch.uint8).contiguous()
    zero = rounded.zero_point
    return codes, rounded.scale.bfloat16(), None if zero is None else zero.to(torch.uint8)
