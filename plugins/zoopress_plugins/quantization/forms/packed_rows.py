"""What packed weights that are made dense row by row share."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from zoopress.models.packing import PackedWeight
from zoopress.models.weights import from_matrix

# Made at once: what is made on the way for a whole tensor would take many times its size.
_BLOCK_WEIGHTS = 1 << 18


def matrix_size(shape: torch.Size, output_axis: int) -> tuple[int, int]:
    """Return the rows and columns of a weight's matrix.

    Raises:
        ValueError: if it is empty.
    """
    if not shape.numel():
        raise ValueError(f"a weight of shape {tuple(shape)} has nothing to quantize")
    return shape[output_axis], shape.numel() // shape[output_axis]


def dense_from_rows(
    weight: PackedWeight, columns: int, values: Callable[[slice], Tensor]
) -> Tensor:
    """Return a weight in its own shape.

    Args:
        weight: the weight; while its buffers are trained, all rows are made at once, since the
            gradient of many blocks would take long.
        columns: of its matrix.
        values: returns some rows of its matrix [n, columns], in its type.
    """
    rows = weight.shape[weight.output_axis]
    if torch.is_grad_enabled() and any(p.requires_grad for p in weight.parameters()):
        matrix = values(slice(rows))
    else:
        device = next(weight.buffers()).device
        matrix = torch.empty(rows, columns, dtype=weight.dtype, device=device)
        step = max(1, _BLOCK_WEIGHTS // columns)
        for some in (slice(first, first + step) for first in range(0, rows, step)):
            matrix[some] = values(some)
    if weight.output_axis == 0:
        return matrix.view(weight.shape)
    return from_matrix(matrix, weight.shape, weight.output_axis)
