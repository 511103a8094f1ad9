"""Which weights numbers of few bits can stand for, told from their values."""

from __future__ import annotations

import math

from torch import Tensor

from zoopress.models.on_disk import pieces
from zoopress.models.weights import Weight

WIDEST_RANGE = 1e5
"""Largest magnitude ÷ median magnitude that steps of one size can tell apart, with room to spare:
a grid, a codebook or a lattice would make nothing of one end or the other."""
SMALLEST, LARGEST = 1e-18, 1e18
"""Of a weight's largest magnitude: the squares of others, by which errors are judged, are beyond
float32."""
_SAMPLE = 1 << 20


def unfit_for_few_bits(weight: Weight) -> str | None:
    """Say why a weight had better stay in floating point, None if steps can stand for its values.

    Zeros fit anything, so a weight of nothing else fits.
    """
    if not all(bool(piece.isfinite().all()) for piece in pieces(weight.parameter)):
        return "it holds NaN or infinity"
    largest = max(float(piece.abs().max()) for piece in pieces(weight.parameter))
    if largest == 0:
        return None
    if not SMALLEST <= largest <= LARGEST:
        return f"its largest value is {largest:.2g}, whose square is beyond float32"
    middle = _median(weight.parameter.detach(), largest)
    if largest > WIDEST_RANGE * middle:
        return f"it holds values up to {largest:.2g} beside others of about {middle:.2g}"
    return None


def _median(values: Tensor, largest: float) -> float:
    """Return the median magnitude of what is not zero, of large tensors from some of it."""
    flat = values.flatten()
    some = flat[:: max(1, len(flat) // _SAMPLE)].abs().float()
    some = some[some > 0]
    return float(some.median()) if len(some) else largest


def lost_to_rounding(before: Tensor, after: Tensor) -> float:
    """Return the share of numbers, zeros aside, that rounding made zero.

    Args:
        before: any shape.
        after: the same, rounded.
    """
    count = int(before.count_nonzero())
    return 1 - int(after.count_nonzero()) / count if count else 0.0


def norm_kept(before: Tensor, after: Tensor) -> float:
    """Return ‖after‖ ÷ ‖before‖ (Frobenius), 1 for what was zero and stayed so.

    Args:
        before: any shape, float.
        after: the same.
    """
    was, now = norm(before), norm(after)
    return now / was if was else float(now == 0)


def norm(tensor: Tensor) -> float:
    """Return ‖tensor‖ (Frobenius); little is made of it at a time."""
    # Float64: squares of 1e30 and of 1e-30 are no float32.
    return math.hypot(*(float(piece.double().norm()) for piece in pieces(tensor)))
