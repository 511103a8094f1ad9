"""Fit a grid to a weight's matrix: a scale for each group of a row, and the nearest levels."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from zoopress_plugins.quantization.grids.level_grid import LevelGrid
from zoopress_plugins.quantization.grids.scales import best_scale

_BLOCK_WEIGHTS = 1 << 20


@dataclass(frozen=True)
class Fitted:
    """A matrix on a grid.

    Attributes:
        codes: [rows, columns], uint8.
        scale: [rows, groups], bfloat16; [1, 1] if one serves all.
    """

    codes: Tensor
    scale: Tensor


def fit(
    matrix: Tensor,
    grid: LevelGrid,
    group_size: int,
    importance: Tensor | None = None,
    search: bool = True,
    power_of_two: bool = False,
) -> Fitted:
    """Find scales, and the nearest levels at these.

    Args:
        matrix: [rows, columns], float.
        grid: of the levels.
        group_size: columns of a row that share a scale; 0 if all of the matrix does.
        importance: broadcasts to the matrix, what an error's square is multiplied by; 1 if None.
        search: whether scales have the least squared error, or span all weights.
        power_of_two: whether scales are powers of two.

    Raises:
        ValueError: if the matrix holds NaN or infinity.
    """
    if not bool(matrix.isfinite().all()):
        raise ValueError("NaN and infinity have no level: leave this weight in floating point")
    values = matrix.float()
    costs = values.new_ones(()) if importance is None else importance.to(values)
    costs = costs.expand(values.shape)
    if not group_size:
        scale = best_scale(values.flatten(), grid, costs.flatten(), search, power_of_two)
        return Fitted(grid.project(values, scale), scale.view(1, 1).bfloat16())
    columns = values.shape[1]
    fill = (0, -columns % group_size)
    codes, scales = [], []
    for some in torch.arange(len(values)).split(max(1, _BLOCK_WEIGHTS // columns)):
        groups = pad(values[some], fill).view(len(some), -1, group_size)
        mine = pad(costs[some], fill).view(groups.shape)
        scale = best_scale(groups, grid, mine, search, power_of_two)
        found = grid.project(groups, scale[..., None])
        codes.append(found.view(len(some), -1)[:, :columns])
        scales.append(scale)
    return Fitted(torch.cat(codes).contiguous(), torch.cat(scales).bfloat16())
