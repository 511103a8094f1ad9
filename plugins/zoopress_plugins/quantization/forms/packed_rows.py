"""What packed weights that are made dense row by row share."""

from __future__ import annotations

import torch
from torch import Tensor

from zoopress.models.packed_call import is_traced
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


def dense_from_rows(weight: PackedWeight, columns: int) -> Tensor:
    """Return a weight in its own shape, made of its rows.

    While its buffers are trained, and while the model is traced, all rows are made at once: the
    gradient of many blocks would take long, and so would a program of them.

    Args:
        weight: the weight.
        columns: of its matrix.
    """
    count = weight.shape[weight.output_axis]
    trained = torch.is_grad_enabled() and any(p.requires_grad for p in weight.parameters())
    if trained or is_traced():
        matrix = weight.dense_rows(slice(count))
    else:
        matrix = torch.empty(count, columns, dtype=weight.dtype, device=weight.device)
        step = max(1, _BLOCK_WEIGHTS // columns)
        for some in (slice(first, first + step) for first in range(0, count, step)):
            matrix[some] = weight.dense_rows(some)
    if weight.output_axis == 0:
        return matrix.view(weight.shape)
    return from_matrix(matrix, weight.shape, weight.output_axis)
