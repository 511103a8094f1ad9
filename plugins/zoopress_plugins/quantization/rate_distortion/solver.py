"""Quantize a matrix so that distortion + slope × bits is as small as can be.

At equal slope for all matrices of a model no bit could do more good elsewhere, so their sizes and
distortions are the best that go together.

Source: Shoham & Gersho 1988, doi:10.1109/29.90373.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor

from zoopress.coding.coder import estimate_bits
from zoopress.coding.layout import Scan
from zoopress_plugins.quantization.rate_distortion.codes import choose_codes
from zoopress_plugins.quantization.rate_distortion.sensitivity import Sensitivity
from zoopress_plugins.quantization.rate_distortion.steps import STEP_BITS, choose_steps
from zoopress_plugins.quantization.rounding.error_feedback import Floats, conditioned, decompose

_SMALL = 1 << 16
"""Up to so many weights, whose lines may be short, and …"""
_FEW_BITS = 1.2
"""… below so many bits a weight, a trellis may take more bits than it saves: both are tried."""
_SPARSE = 0.5
_VECTOR_SLOPE = 1 / 256
"""Of a vector's mean distortion without any bits, that a bit is worth at most: 4 to 5 bits for each
of its numbers, which hardly count, and whose errors no other number can make up for."""
_MOST_WORTH = 1e8
_BLIND = 0.5
"""What bits count for where it is not known which of a matrix's inputs matter. Choosing fewer bits
makes weights smaller, all of them, and such errors add up in the outputs, which squares of errors
do not show."""


@dataclass(frozen=True)
class Settings:
    """How to quantize.

    Attributes:
        quantizer: whether any integer may follow any other, or those of a trellis.
        feedback: whether columns still to come make up for the errors of those before.
        steps: what may have steps of its own; it has where they save more bits than they take.
    """

    quantizer: Literal["uniform", "trellis"] = "trellis"
    feedback: bool = True
    steps: Literal["tensor", "row", "column", "both"] = "both"


@dataclass(frozen=True)
class Grid:
    """A quantized matrix: value = codes · row_step[:, None] · column_step[None, :].

    Attributes:
        codes: [out, in], int16.
        row_step: [out], bfloat16; None: all one.
        column_step: [in], bfloat16; None: all one.
        scan: along what codes are coded.
        trellis: whether each line along `scan` is a path of the trellis.
        bits: that codes and steps take, by estimate.
        distortion: as the sensitivity counts it.
    """

    codes: Tensor
    row_step: Tensor | None
    column_step: Tensor | None
    scan: Scan
    trellis: bool
    bits: float
    distortion: float

    def values(self) -> Tensor:
        """Return the matrix [out, in] that the grid stands for, float32."""
        values = self.codes.float()
        if self.row_step is not None:
            values = values * self.row_step.float()[:, None]
        return values if self.column_step is None else values * self.column_step.float()


def quantize_matrix(
    matrix: Tensor,
    sensitivity: Sensitivity | None,
    settings: Settings,
    slope: float,
    keep: Tensor | None = None,
) -> Grid:
    """Quantize a matrix to minimize distortion + slope × bits.

    Args:
        matrix: [out, in], float32.
        sensitivity: what errors cost; None: the sum of their squares.
        settings: how.
        slope: the distortion that a bit is worth.
        keep: [out, in], bool; elsewhere weights are pruned and stay 0.

    Raises:
        ValueError: if the slope is not positive, or a weight is not finite.
    """
    if not (slope > 0 and math.isfinite(slope)):
        raise ValueError(f"The slope must be positive and finite, not {slope}.")
    if matrix.ndim != 2 or not matrix.numel() or not bool(matrix.isfinite().all()):
        raise ValueError(
            f"A matrix [out, in] of finite weights is needed, not one of shape "
            f"{list(matrix.shape)} with {int((~matrix.isfinite()).sum())} that are not finite."
        )
    problem = _Problem(matrix, sensitivity or Sensitivity(), slope, keep)
    grids = [problem.solve(settings)]
    small = matrix.numel() <= _SMALL or grids[0].bits < _FEW_BITS * matrix.numel()
    if settings.quantizer == "trellis" and small:
        grids.append(problem.solve(replace(settings, quantizer="uniform")))
    if settings.feedback and keep is not None and float(keep.double().mean()) < _SPARSE:
        # Feedback counts on columns still to come, of which few are kept here.
        grids.append(problem.solve(replace(settings, quantizer="uniform", feedback=False)))
    return min(grids, key=lambda grid: grid.distortion + slope * grid.bits)


class _Problem:
    """A matrix and what its errors cost, decomposed once."""

    def __init__(
        self,
        matrix: Tensor,
        sensitivity: Sensitivity,
        slope: float,
        keep: Tensor | None,
    ) -> None:
        self.matrix, self.sensitivity, self.slope = matrix.float(), sensitivity, slope
        self.keep = None if keep is None else keep.T.contiguous().numpy()
        self.row_worth = _positive(sensitivity.rows, len(matrix))
        self.worth_of_bits = _BLIND if sensitivity.columns is None else 1.0
        if 1 in matrix.shape:
            limit = _VECTOR_SLOPE * self._distortion(self.matrix) / matrix.numel()
            self.slope = min(slope, limit) if limit > 0 else slope

    @cached_property
    def alone(self) -> Tensor:
        """What errors of each column cost, float64 [in]."""
        columns = self.sensitivity.columns
        if columns is None:
            return torch.ones(self.matrix.shape[1], dtype=torch.float64)
        columns = conditioned(columns)
        return _positive(columns if columns.ndim == 1 else columns.diagonal(), len(columns))

    @cached_property
    def together(self) -> tuple[Tensor, Tensor]:
        """M and d of `feedback.decompose`."""
        assert self.sensitivity.columns is not None
        return decompose(conditioned(self.sensitivity.columns))

    def solve(self, settings: Settings) -> Grid:
        """Choose steps, then codes; lines are the columns of the matrix."""
        trellis = settings.quantizer == "trellis"
        columns = self.sensitivity.columns
        mixing, worth = None, self.alone
        if settings.feedback and columns is not None and columns.ndim == 2:
            mixing, worth = self.together
        row_step, column_step = choose_steps(
            self.matrix, self.row_worth, worth, self.slope, settings.steps, trellis
        )
        one = torch.ones(1, dtype=torch.float64)
        row = one if row_step is None else row_step.double()
        column = one if column_step is None else column_step.double()
        if mixing is not None:
            scale = column.expand(len(mixing))
            mixing = mixing * scale[:, None] / scale
        codes = choose_codes(
            (self.matrix.double() / row[:, None] / column).T.float().contiguous().numpy(),
            None if mixing is None else mixing.float().numpy(),
            *self._worth_of_errors(worth * column.square(), self.row_worth * row.square()),
            self.keep,
            trellis,
        )
        steps = sum(len(step) for step in (row_step, column_step) if step is not None)
        bits = estimate_bits(codes, trellis=trellis) + STEP_BITS * steps
        kept = torch.from_numpy(codes).T.contiguous()
        grid = Grid(kept, row_step, column_step, "columns", trellis, bits, 0.0)
        return replace(grid, distortion=self._distortion(self.matrix - grid.values()))

    def _worth_of_errors(self, along: Tensor, across: Tensor) -> tuple[Floats, Floats]:
        """Return two factors of what a squared error of a step is worth in bits, for float32."""
        slope = self.slope * self.worth_of_bits
        worth = min(float(along.max() * across.max()) / slope, _MOST_WORTH)
        one, other = along / along.max() * worth, across / across.max()
        return one.float().numpy(), other.float().numpy()

    def _distortion(self, error: Tensor) -> float:
        columns, rows = self.sensitivity.columns, self.sensitivity.rows
        if columns is None:
            costs = error.square()
        else:
            costs = error * (error @ columns if columns.ndim == 2 else error * columns)
        sums = costs.sum(1, dtype=torch.float64)
        return float((sums if rows is None else sums * rows).sum())


def _positive(worth: Tensor | None, count: int) -> Tensor:
    """Return what errors cost as float64 [count], positive."""
    if worth is None:
        return torch.ones(count, dtype=torch.float64)
    worth = worth.double()
    return worth.clamp(min=max(1e-6 * float(worth.mean()), 1e-30))
