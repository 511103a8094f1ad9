"""Fit a grid to a weight's matrix: a scale for each group of a row, and the nearest levels."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from zoopress_plugins.quantization.grids.groups import in_groups, ungrouped
from zoopress_plugins.quantization.grids.level_grid import LevelGrid
from zoopress_plugins.quantization.grids.scales import best_scale


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
    codes, scales = [], []
    for groups, costs in in_groups(matrix, group_size, importance):
        scale = best_scale(groups, grid, costs, search, power_of_two)
        codes.append(grid.project(groups, scale[..., None]).flatten())
        scales.append(scale)
    return Fitted(ungrouped(torch.cat(codes), *matrix.shape), torch.cat(scales).bfloat16())
