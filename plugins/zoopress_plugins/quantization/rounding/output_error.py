"""What errors of a weight do to the outputs of its product, and how to make that less.

With H the mean of x xᵀ over inputs x, rows that are off by E [out, in] change outputs by
tr(E H Eᵀ), the mean of their squares, summed over outputs.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from zoopress.techniques.rounder import Matrix, Rounded, spread
from zoopress_plugins.quantization.rounding.kernels import improve_lines
from zoopress_plugins.quantization.rounding.lines import Lines, as_lines
from zoopress_plugins.quantization.rounding.uniform_grid import (
    dequantized,
    in_groups,
    nearest,
    storable,
)

_BLOCK = 128


def output_error(error: Tensor, inputs: Tensor) -> Tensor:
    """Return what each row's error costs, [out].

    Args:
        error: [out, in].
        inputs: [in, in], or their diagonal [in].
    """
    seen = error @ inputs if inputs.ndim == 2 else error * inputs
    return (seen * error).sum(1)


def damped(inputs: Tensor, damping: float) -> Tensor:
    """Return inputs with a share of the mean of the diagonal added to it, of the same shape.

    Args:
        inputs: [in, in], or their diagonal [in].
        damping: which share.
    """
    diagonal = inputs if inputs.ndim == 1 else inputs.diagonal()
    more = damping * (float(diagonal.mean()) or 1.0)
    return inputs + (more if inputs.ndim == 1 else more * torch.eye(len(inputs)))


def start_of(matrix: Matrix) -> Rounded:
    """Return nearest points of grids whose ranges make outputs err least, inputs taken alone."""
    if matrix.inputs is None:
        return nearest(matrix)
    diagonal = matrix.inputs if matrix.inputs.ndim == 1 else matrix.inputs.diagonal()
    return nearest(matrix, damped(diagonal, 0.01))


def descend(matrix: Matrix, rounded: Rounded, inputs: Tensor, order: Tensor) -> Rounded:
    """Give each column in turn the levels that are best beside all others; none gets worse.

    Args:
        matrix: what is rounded.
        rounded: the levels so far.
        inputs: [in, in], with a positive diagonal.
        order: [in], of columns.
    """
    lines = Lines(matrix, rounded, order)
    held = lines.values()
    ordered = np.ascontiguousarray(inputs[order][:, order].numpy())
    # Half the derivative of what outputs err.
    pull = ordered @ (as_lines(matrix.values.float(), order) - held)
    for start in range(0, len(ordered), _BLOCK):
        some = slice(start, min(start + _BLOCK, len(ordered)))
        moves = np.empty_like(held[some])
        near = np.ascontiguousarray(ordered[some, some])
        improve_lines(held[some], pull[some], near, *lines.grid(some), lines.levels[some], moves)
        pull[some.stop :] += ordered[some.stop :, some] @ moves
    return Rounded(lines.found(), rounded.scale, rounded.zero_point)


def refitted(matrix: Matrix, rounded: Rounded, inputs: Tensor) -> Rounded:
    """Fit the scales of each row to its levels by least squares of the outputs' errors.

    Rows to which that does no good, as stored scales are rounded, keep theirs.

    Args:
        matrix: what is rounded.
        rounded: levels and scales so far.
        inputs: [in, in], positive definite.
    """
    steps = rounded.levels.float()
    if rounded.zero_point is not None:
        steps = steps - spread(rounded.zero_point.float(), matrix)
    grouped = in_groups(steps, matrix.group_size)  # [out, groups, size]
    rows, groups, size = grouped.shape
    seen = torch.empty(rows, groups, steps.shape[1])
    for group in range(groups):
        some = slice(group * size, (group + 1) * size)
        seen[:, group] = steps[:, some] @ inputs[some]
    gram = in_groups(seen, size).mul_(grouped[:, None]).sum(-1)
    right = seen @ matrix.values.float()[:, :, None]
    # Groups of nothing but zeros, and those that hardly differ, keep what they have.
    weight = 1e-4 * gram.diagonal(dim1=1, dim2=2).mean(1)[:, None, None] + 1e-30
    gram = gram + weight * torch.eye(groups)
    right = right + weight * rounded.scale.float()[:, :, None]
    solved, failed = torch.linalg.solve_ex(gram.double(), right.double())
    scale = solved.squeeze(-1).float()
    usable = (scale > 0) & scale.isfinite() & (failed == 0)[:, None]
    scale = torch.where(usable, storable(scale.nan_to_num(1.0)), rounded.scale.float())
    new = Rounded(rounded.levels, scale.bfloat16(), rounded.zero_point)
    before = output_error(matrix.values - dequantized(rounded, matrix), inputs)
    after = output_error(matrix.values - dequantized(new, matrix), inputs)
    kept = torch.where((after < before)[:, None], new.scale, rounded.scale)
    return Rounded(rounded.levels, kept, rounded.zero_point)


def better_rows(matrix: Matrix, first: Rounded, second: Rounded, inputs: Tensor) -> Rounded:
    """Return of each row the one of two that makes outputs err less."""
    costs = [
        output_error(matrix.values - dequantized(one, matrix), inputs) for one in (first, second)
    ]
    takes = (costs[1] < costs[0])[:, None]
    zero = None
    if first.zero_point is not None and second.zero_point is not None:
        zero = torch.where(takes, second.zero_point.float(), first.zero_point.float())
    return Rounded(
        torch.where(takes, second.levels.float(), first.levels.float()),
        torch.where(takes, second.scale, first.scale),
        zero,
    )
