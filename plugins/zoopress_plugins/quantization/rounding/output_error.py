"""What errors of a weight do to the outputs of its product, and how to make that less.

With H the mean of x xᵀ over inputs x, rows that are off by E [out, in] change outputs by
tr(E H Eᵀ), the mean of their squares, summed over outputs.
"""

from __future__ import annotations

import torch
from torch import Tensor

from zoopress.techniques.rounder import Matrix, Rounded, level_limits, spread
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
    low, high = level_limits(matrix.bits, matrix.symmetric)
    scale = spread(rounded.scale.float(), matrix).T
    zero = torch.zeros_like(scale)
    if rounded.zero_point is not None:
        zero = spread(rounded.zero_point.float(), matrix).T
    weights = matrix.values.T
    keep = None if matrix.keep is None else matrix.keep.T
    levels = rounded.levels.float().T.clone()
    errors = weights - (levels - zero) * scale
    pull = inputs @ errors  # [in, out]: half the derivative
    alone = inputs.diagonal()
    for some in order.split(_BLOCK):
        near = inputs[some][:, some]
        mine, change = pull[some], torch.zeros(len(some), weights.shape[1])
        for place, column in enumerate(some.tolist()):
            target = weights[column] - errors[column] + mine[place] / alone[column]
            new = ((target / scale[column]).round() + zero[column]).clamp(low, high)
            if keep is not None:
                new = torch.where(keep[column], new, zero[column])
            moved = (levels[column] - new) * scale[column]
            levels[column] = new
            change[place] = moved
            mine[place + 1 :] += near[place + 1 :, place, None] * moved
        errors[some] += change
        pull += inputs[:, some] @ change
    return Rounded(levels.T.contiguous(), rounded.scale, rounded.zero_point)


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
