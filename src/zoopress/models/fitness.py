"""Which weights numbers of few bits can stand for, told from their values."""

from __future__ import annotations

from torch import Tensor

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
    sizes = weight.parameter.detach().flatten().abs()
    largest = float(sizes.max())
    if not sizes.isfinite().all():
        return "it holds NaN or infinity"
    if largest == 0:
        return None
    if not SMALLEST <= largest <= LARGEST:
        return f"its largest value is {largest:.2g}, whose square is beyond float32"
    middle = _median(sizes)
    if largest > WIDEST_RANGE * middle:
        return f"it holds values up to {largest:.2g} beside others of about {middle:.2g}"
    return None


def _median(sizes: Tensor) -> float:
    """Return the median of what is not zero, of large tensors from evenly spaced ones."""
    some = sizes[:: max(1, len(sizes) // _SAMPLE)].float()
    some = some[some > 0]
    return float(some.median()) if len(some) else float(sizes.max())


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
    # Float64: squares of 1e30 and of 1e-30 are no float32.
    was, now = float(before.double().norm()), float(after.double().norm())
    return now / was if was else float(now == 0)
