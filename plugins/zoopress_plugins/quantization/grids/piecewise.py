"""Two uniform grids, one for the centre and one for the tails, with a step each.

Source: Fang et al. 2020, arXiv:2002.00104 (piecewise linear quantization, one breakpoint, without
overlap).
"""

from __future__ import annotations

import torch
from torch import Tensor

from zoopress_plugins.quantization.grids.groups import in_groups, ungrouped
from zoopress_plugins.quantization.grids.scales import TINY, stored

BREAKPOINTS = tuple(share / 20 for share in range(2, 20))
"""Where the centre may end, as shares of the range that the grid spans."""
RANGES = (1.0, 0.9, 0.8, 0.7)
"""Shares of the largest magnitude that the grid may span."""


def inner_steps(bits: int) -> int:
    """Return how many steps the centre has on each side: half of all, rounded up."""
    return 1 << (bits - 2)


def project(values: Tensor, inner: Tensor, outer: Tensor, bits: int) -> Tensor:
    """Return the code of the nearest level: an integer with a sign.

    Args:
        values: any shape, float.
        inner: step of the centre; broadcasts, above 0.
        outer: step of the tails, likewise.
        bits: of a code, 3 to 8.

    Returns:
        int8, of magnitude at most 2^(bits − 1) − 1.
    """
    count, most = inner_steps(bits), (1 << (bits - 1)) - 1
    sizes, end = values.abs(), inner * inner_steps(bits)
    centre = (sizes / inner).round().clamp(max=count)
    tail = count + ((sizes - end) / outer).round().clamp(0, most - count)
    return (torch.where(sizes > end, tail, centre) * values.sign()).to(torch.int8)


def values_of(codes: Tensor, inner: Tensor, outer: Tensor, bits: int) -> Tensor:
    """Return what codes stand for; differentiable with respect to both steps."""
    count = inner_steps(bits)
    wide = codes.to(inner.dtype)
    sizes = wide.abs()
    return wide.sign() * (sizes.clamp(max=count) * inner + (sizes - count).clamp(min=0) * outer)


def fit_piecewise(
    matrix: Tensor, bits: int, group_size: int, importance: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Find the steps with the least squared error of those tried; equal steps are among them.

    Args:
        matrix: [rows, columns], float.
        bits: of a code, 3 to 8.
        group_size: columns of a row that share steps.
        importance: broadcasts to the matrix.

    Returns:
        codes [rows, columns], int8; the centre's and the tails' steps, [rows, groups], bfloat16.

    Raises:
        ValueError: if the matrix holds NaN or infinity.
    """
    count, most = inner_steps(bits), (1 << (bits - 1)) - 1
    codes, steps = [], []
    for groups, costs in in_groups(matrix, group_size, importance):
        largest = groups.abs().amax(-1)
        best = least = None
        for part in RANGES:
            for breakpoint in (count / most, *BREAKPOINTS):
                end = largest * part
                inner = stored((end * breakpoint / count).clamp_min(TINY))
                outer = stored((end * (1 - breakpoint) / (most - count)).clamp_min(TINY))
                pair = torch.stack([inner, outer])[..., None]
                found = values_of(project(groups, pair[0], pair[1], bits), pair[0], pair[1], bits)
                error = (costs * (found - groups).square()).sum(-1)
                if best is None or least is None:
                    best, least = pair, error
                    continue
                better = error < least
                best = torch.where(better[None, ..., None], pair, best)
                least = torch.where(better, error, least)
        assert best is not None
        codes.append(project(groups, best[0], best[1], bits).flatten())
        steps.append(best.squeeze(-1))
    inner, outer = torch.cat(steps, 1).bfloat16()
    return ungrouped(torch.cat(codes), *matrix.shape), inner, outer
