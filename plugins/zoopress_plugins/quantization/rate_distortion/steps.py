"""Steps of a matrix: fine where an error costs much, and cheap to store.

At high rate a uniform quantizer's distortion D is step² / 12 times what a squared error costs, and
falls with bits as −dD/dR = 2·ln 2·D. So at a slope, step² is 6 / ln 2 · slope ÷ that cost.

Source: Gray & Neuhoff 1998, doi:10.1109/18.720541, section III.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from zoopress_plugins.quantization.rate_distortion.codes import LARGEST_CODE

STEP_BITS = 3.0
"""What a step takes in a file: a power of the fourth root of 2, and its neighbours are alike."""
_MOST_EXPONENT = 100.0
_UNIFORM = 6 / math.log(2)
_TRELLIS = 3.6
"""The same of a trellis, whose two quantizers have twice the step each and gain 1.1 dB: that gives
2.8 at high rate, at 2 to 4 bits more pays."""


def choose_steps(
    matrix: Tensor, rows: Tensor, columns: Tensor, slope: float, axes: str, trellis: bool
) -> tuple[Tensor | None, Tensor | None]:
    """Return steps of rows [out] and of columns [in], bfloat16; None where the other is enough.

    Args:
        matrix: [out, in].
        rows: what a squared error costs, rows[r] · columns[c]; [out], float64.
        columns: [in], float64.
        slope: the distortion that a bit is worth.
        axes: what may have steps of its own where that pays: tensor, row, column or both.
        trellis: of which quantizer.
    """
    by_row = axes in ("row", "both") and _pay(rows, matrix.shape[1])
    by_column = axes in ("column", "both") and _pay(columns, matrix.shape[0])
    row = (rows if by_row else rows.mean().expand(len(rows))).rsqrt()
    column = (columns if by_column else columns.mean().expand(len(columns))).rsqrt()
    base = math.sqrt((_TRELLIS if trellis else _UNIFORM) * slope)
    # Codes are to fit, with room for what feedback adds.
    excess = (matrix.double().abs() / row[:, None] / column).max() / base / (LARGEST_CODE / 4)
    base *= max(1.0, float(excess))
    if by_row and by_column:
        return _power_steps(row), _power_steps(base * column)
    if by_column:
        return None, _power_steps(base * row[0] * column)
    return _power_steps(base * row * column[0]), None


def _pay(worth: Tensor, weights: int) -> bool:
    """Tell whether steps of their own, each of so many weights, save more bits than they take."""
    saved = 0.5 * float(worth.mean().log2() - worth.log2().mean())
    return saved * weights > STEP_BITS


def _power_steps(steps: Tensor) -> Tensor:
    """Round to powers of the fourth root of 2, rounded to bfloat16."""
    exponents = (steps.log2() * 4).round() / 4
    return torch.exp2(exponents.clamp(-_MOST_EXPONENT, _MOST_EXPONENT)).bfloat16()
