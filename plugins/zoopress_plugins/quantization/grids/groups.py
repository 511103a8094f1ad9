"""Cut a matrix into the groups of its rows that share scales, and put it together again."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn.functional import pad

_BLOCK_WEIGHTS = 1 << 20


def in_groups(
    matrix: Tensor, group_size: int, importance: Tensor | None = None
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield blocks of rows in groups, and what each error's square is multiplied by.

    Args:
        matrix: [rows, columns], float.
        group_size: columns of a row that share scales; 0 if all of the matrix does.
        importance: broadcasts to the matrix; 1 if None.

    Yields:
        Two tensors [n, groups, group_size], float32; the last group of a row is filled up with
        zeros whose importance is 0. With a size of 0, [1, 1, rows · columns] once.

    Raises:
        ValueError: if the matrix holds NaN or infinity.
    """
    if not bool(matrix.isfinite().all()):
        raise ValueError("NaN and infinity have no level: leave this weight in floating point")
    values = matrix.float()
    costs = values.new_ones(()) if importance is None else importance.to(values)
    costs = costs.expand(values.shape)
    if not group_size:
        yield values.reshape(1, 1, -1), costs.reshape(1, 1, -1)
        return
    columns = values.shape[1]
    fill = (0, -columns % group_size)
    for some in torch.arange(len(values)).split(max(1, _BLOCK_WEIGHTS // columns)):
        groups = pad(values[some], fill).view(len(some), -1, group_size)
        yield groups, pad(costs[some], fill).view(groups.shape)


def ungrouped(groups: Tensor, rows: int, columns: int) -> Tensor:
    """Return what belongs to groups [rows, groups, size] as a matrix [rows, columns]."""
    return groups.reshape(rows, -1)[:, :columns].contiguous()
