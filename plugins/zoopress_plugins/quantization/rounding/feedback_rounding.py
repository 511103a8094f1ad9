"""Round columns to a grid one after another, with error feedback."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from zoopress.techniques.rounder import Matrix, Rounded, level_limits, spread
from zoopress_plugins.quantization.rounding.error_feedback import (
    Floats,
    decompose,
    with_feedback,
)


def with_error_feedback(matrix: Matrix, start: Rounded, inputs: Tensor, order: Tensor) -> Rounded:
    """Round columns in an order, each toward what makes up for the errors of those before.

    Args:
        matrix: what to round.
        start: scales and zero points.
        inputs: [in, in], positive definite.
        order: [in], of columns.
    """
    low, high = level_limits(matrix.bits, matrix.symmetric)
    scale = spread(start.scale.float(), matrix).T[order].numpy()
    zero = np.zeros_like(scale)
    if start.zero_point is not None:
        zero = spread(start.zero_point.float(), matrix).T[order].numpy()
    keep = None if matrix.keep is None else matrix.keep.T[order].numpy()
    coupling, _ = decompose(inputs[order][:, order].double())
    levels = np.zeros_like(scale)

    def search(targets: Floats, errors: Floats, lines: slice, block: Floats) -> None:
        for place, line in enumerate(range(lines.start, lines.stop)):
            steps = np.rint(targets[place] / scale[line])
            if keep is not None:
                steps *= keep[line]
            found = np.clip(steps + zero[line], low, high)
            levels[line] = found
            errors[place] -= (found - zero[line]) * scale[line]
            targets[place + 1 :] += block[place, place + 1 :, None] * errors[place]

    weights = np.ascontiguousarray(matrix.values.float().T[order].numpy())
    with_feedback(weights, coupling.float().numpy(), search)
    found = torch.empty(levels.shape)
    found[order] = torch.from_numpy(levels)
    return Rounded(found.T.contiguous(), start.scale, start.zero_point)
