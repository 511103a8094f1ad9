"""Find the scale of each group of weights at which the levels of a grid err least.

The error's least square over scale and levels together is found by turns: the best scale for given
levels is ⟨w, q⟩ ÷ ⟨q, q⟩, and the best levels for a given scale are the nearest. Neither raises the
error. Started at several scales, since where it ends depends on that.

Sources: Gong et al. 2021, arXiv:2005.08501 (VecQ: direction by a search, then length in closed
form); Leng et al. 2018, arXiv:1707.09870, section 3.2.2 (by turns); Rastegari et al. 2016,
arXiv:1603.05279, section 3.1 (of signs); Li et al. 2016, arXiv:1605.04711, section 2.2 (of three
levels).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from zoopress_plugins.quantization.grids.level_grid import LevelGrid

TURNS = 3
"""How often scale and levels are found by turns, from each start."""
STARTS = tuple(0.85**power for power in range(12))
"""Shares of the largest weight that the largest level is put at: 1 to 0.17."""
TINY = 2.0**-120
"""Smallest scale: below it products of levels and scales would be subnormal."""


def spanning_scale(groups: Tensor, grid: LevelGrid) -> Tensor:
    """Return the least scale at which no weight lies outside of the grid.

    Args:
        groups: [..., size], float.
        grid: has levels on both sides of zero.

    Returns:
        [...], at least `TINY`.
    """
    high, low = groups.amax(-1) / grid.largest, groups.amin(-1) / grid.smallest
    return torch.maximum(high, low).clamp_min(TINY)


def closed_form_scale(groups: Tensor, levels: Tensor, importance: Tensor) -> Tensor:
    """Return the scale at which given levels err least: ⟨w, q⟩ ÷ ⟨q, q⟩.

    Args:
        groups: [..., size], float.
        levels: the same shape; the level that each takes.
        importance: broadcasts to it, what an error's square is multiplied by.

    Returns:
        [...]; NaN or not above 0 where there is none.
    """
    mine = importance * levels
    return (mine * groups).sum(-1) / (mine * levels).sum(-1)


def best_ternary_scale(groups: Tensor, importance: Tensor) -> Tensor:
    """Return the scale at which {−1, 0, 1} err least, exactly.

    If the k largest magnitudes are kept, that scale is their mean, and the error is less by their
    sum's square ÷ k: so all k are tried. With importances, what is kept are the largest magnitudes
    all the same, and the mean is weighted.

    Args:
        groups: [..., size], float.
        importance: the same shape.

    Returns:
        [...], at least `TINY`.
    """
    sizes, order = groups.abs().sort(-1, descending=True)
    costs = importance.expand(groups.shape).gather(-1, order).double()
    mass = costs.cumsum(-1)
    sums = (costs * sizes.double()).cumsum(-1)
    saved = torch.where(mass > 0, sums.square() / mass, 0.0)
    kept = saved.argmax(-1, keepdim=True)
    scale = sums.gather(-1, kept) / mass.gather(-1, kept)
    return scale.squeeze(-1).nan_to_num(0.0).to(groups.dtype).clamp_min(TINY)


def stored(scale: Tensor, power_of_two: bool = False) -> Tensor:
    """Return what is stored of a scale, as float32.

    Args:
        scale: any shape, above 0.
        power_of_two: whether to take the nearest power of two (in the logarithm).
    """
    if power_of_two:
        return torch.exp2(scale.log2().round().clamp(-120, 120))
    return scale.bfloat16().float().clamp_min(TINY)


def squared_error(groups: Tensor, grid: LevelGrid, scale: Tensor, importance: Tensor) -> Tensor:
    """Return the error [...] of the nearest levels at a scale [...]."""
    each = scale[..., None]
    found = grid.values(grid.project(groups, each)) * each
    return (importance * (found - groups).square()).sum(-1)


def best_scale(
    groups: Tensor,
    grid: LevelGrid,
    importance: Tensor,
    search: bool = True,
    power_of_two: bool = False,
    starts: Sequence[float] = STARTS,
) -> Tensor:
    """Return the scale [...] of each group, as it is stored, float32.

    Args:
        groups: [..., size], float32.
        grid: of the levels.
        importance: [..., size], what an error's square is multiplied by; 0 for what fills up.
        search: whether to look for the least error; else the grid spans all weights, except for
            signs, whose scale is the mean magnitude.
        power_of_two: whether scales are powers of two.
        starts: where to look, as shares of the scale that spans all weights.
    """
    span = spanning_scale(groups, grid)
    if grid.name == "binary":
        span = closed_form_scale(groups, groups.sign(), importance)
        span = span.nan_to_num(0.0).clamp_min(TINY)
        return stored(span, power_of_two)
    best = stored(span, power_of_two)
    if not search:
        return best
    least = squared_error(groups, grid, best, importance)
    first = [best_ternary_scale(groups, importance)] if grid.name == "ternary" else []
    for scale in (*first, *(span * start for start in starts)):
        if grid.name != "ternary":
            scale = by_turns(groups, grid, scale.clamp_min(TINY), importance)
        scale = stored(scale, power_of_two)
        error = squared_error(groups, grid, scale, importance)
        better = error < least
        best, least = torch.where(better, scale, best), torch.where(better, error, least)
        if first:
            break  # it is the best there is
    return best


def by_turns(
    groups: Tensor, grid: LevelGrid, scale: Tensor, importance: Tensor, turns: int = TURNS
) -> Tensor:
    """Return a scale whose error is at most that of `scale`, found by turns; see the module.

    Args:
        groups: [..., size], float32.
        grid: of the levels.
        scale: [...], above 0.
        importance: [..., size].
        turns: how many.
    """
    for _ in range(turns):
        levels = grid.values(grid.project(groups, scale[..., None]))
        found = closed_form_scale(groups, levels, importance)
        scale = torch.where(found > TINY, found, scale)
    return scale
