"""Round columns to a grid one after another, with error feedback."""

from __future__ import annotations

from torch import Tensor

from zoopress.techniques.rounder import Matrix, Rounded
from zoopress_plugins.quantization.rounding.error_feedback import (
    Floats,
    decompose,
    with_feedback,
)
from zoopress_plugins.quantization.rounding.kernels import round_lines
from zoopress_plugins.quantization.rounding.lines import Lines, as_lines


def with_error_feedback(matrix: Matrix, start: Rounded, inputs: Tensor, order: Tensor) -> Rounded:
    """Round columns in an order, each toward what makes up for the errors of those before.

    Args:
        matrix: what to round.
        start: scales and zero points.
        inputs: [in, in], positive definite.
        order: [in], of columns.
    """
    lines = Lines(matrix, start, order)
    coupling, _ = decompose(inputs[order][:, order].double())

    def search(targets: Floats, errors: Floats, some: slice, block: Floats) -> None:
        round_lines(targets, errors, block, *lines.grid(some), lines.levels[some])

    with_feedback(as_lines(matrix.values.float(), order), coupling.float().numpy(), search)
    return Rounded(lines.found(), start.scale, start.zero_point)
