"""Bytes at equal fidelity: ours and NNCodec's curves of size over fidelity, and their ratio.

NNCodec runs over its quantization parameter: with its defaults (dependent quantization, search of
the coder's parameters), and tuned (rate–distortion optimization by `lambda_scale` as well, and a
coarser step for biases and norms). Between two of its points bytes and what is lost of fidelity
are interpolated by their logarithms, for each way of running it; the smaller result is compared.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

from coding_subjects import Point, Subject
from nncodec_client import Nncodec

NNCODEC: dict[str, dict[str, Any]] = {
    "defaults": {},
    "tuned": {"nonweight_qp": -40, "lambda_scale": 1.0},
}
QP = {
    "minilm": (-36, -32, -28, -26, -24, -20),
    "smollm2": (-30, -26, -22),
    "lenet-300-100": (-32, -28, -24, -20, -16, -12),
    "lenet-300-100-sparse": (-32, -28, -24, -20, -16, -12),
    "lenet-5": (-32, -28, -24, -20, -16, -12),
    "lenet-5-sparse": (-32, -28, -24, -20, -16, -12),
    "efficientnet-lite0": (-40, -36, -32, -28, -24),
    "crepe-tiny": (-36, -32, -28, -24, -20, -16),
}
BITS = {
    "minilm": 5.0,
    "smollm2": 4.5,
    "lenet-300-100": 4.0,
    "lenet-300-100-sparse": 0.5,
    "lenet-5": 4.0,
    "lenet-5-sparse": 0.5,
    "efficientnet-lite0": 5.5,
    "crepe-tiny": 5.0,
}
"""A weight of the first point of ours, which a search finds; the others follow from its slope."""
FOLDED = ("efficientnet-lite0",)
"""Ours start by folding batch normalization, which is the same network, where sensitivities tell
its channels apart."""
SLOPES = (4, 16, 64)
"""Times the first point's: each takes about a bit a weight away."""
OURS: dict[str, dict[str, Any]] = {
    "zpz, no data": {"sensitivity": "none"},
    "zpz, synthetic inputs": {"sensitivity": "synthetic"},
    "zpz, calibration inputs": {"sensitivity": "calibration"},
}


def lost_cosine(point: Point) -> float | None:
    return 1 - point.fidelity.cosine


def lost_probability_loyalty(point: Point) -> float | None:
    loyalty = point.fidelity.probability_loyalty
    return None if loyalty is None else 1 - loyalty


LOST: dict[str, Callable[[Point], float | None]] = {
    "cosine": lost_cosine,
    "probability loyalty": lost_probability_loyalty,
}


def nncodec_points(subject: Subject, client: Nncodec) -> list[Point]:
    points = []
    for name, options in NNCODEC.items():
        for qp in QP[subject.name]:
            coded, tensors = client.code_model(subject.tensors(), qp=qp, **options)
            point = subject.judge(f"nncodec, {name}", f"qp {qp}", coded, tensors)
            subject.reporter.line(f"{subject.name}: {line(point)}")
            points.append(point)
    return points


def our_points(subject: Subject, variants: Sequence[str]) -> list[Point]:
    points = []
    for name in variants:
        stage = {"technique": "rate_distortion_quantization", **OURS[name]}
        folds = subject.name in FOLDED and stage["sensitivity"] != "none"
        before = [{"technique": "batch_norm_folding"}] if folds else []
        bits = BITS[subject.name]
        target = {"target": {"bits_per_weight": bits}}
        first, notes = subject.compress(name, f"{bits} bits", [*before, {**stage, **target}])
        points.append(first)
        for factor in SLOPES:
            slope = {"slope": factor * notes["slope"]}
            points.append(
                subject.compress(name, f"{factor} × slope", [*before, {**stage, **slope}])[0]
            )
        for point in points[-1 - len(SLOPES) :]:
            subject.reporter.line(f"{subject.name}: {line(point)}")
    return points


def line(point: Point) -> str:
    lost = ", ".join(f"{name} {fmt(measure(point))}" for name, measure in LOST.items())
    return f"{point.coder}, {point.setting}: {point.size_bytes:,} bytes; lost: {lost}"


def fmt(value: float | None) -> str:
    return "–" if value is None else f"{value:.3g}"


def bytes_at(curve: Sequence[tuple[float, int]], lost: float) -> float | None:
    """Return the bytes of a curve of (lost, bytes) at a loss; None beyond its ends."""
    ordered = sorted(curve)
    for (low, more), (high, fewer) in pairwise(ordered):
        if low <= lost <= high and low > 0:
            share = math.log(lost / low) / math.log(high / low) if high > low else 0.0
            return math.exp((1 - share) * math.log(more) + share * math.log(fewer))
    return None


def ratio(point: Point, theirs: Sequence[Point], measure: Callable[[Point], float | None]) -> Any:
    """Return bytes of ours ÷ NNCodec's at equal fidelity; None where its curves do not reach."""
    lost = measure(point)
    curves: dict[str, list[tuple[float, int]]] = {}
    for other in theirs:
        value = measure(other)
        if value is not None:
            curves.setdefault(other.coder, []).append((value, other.size_bytes))
    if lost is None:
        return None
    found = [size for curve in curves.values() if (size := bytes_at(curve, lost)) is not None]
    return point.size_bytes / min(found) if found else None


def rows(subject: Subject, points: Sequence[Point]) -> list[dict[str, Any]]:
    """Return every point with its bits per weight and, for ours, its ratios."""
    theirs = [point for point in points if point.coder.startswith("nncodec")]
    return [
        {
            "model": subject.name,
            **point.as_dict(),
            "bits_per_weight": 8 * point.size_bytes / subject.weights,
            "bytes_by_nncodec": {
                name: None if point in theirs else ratio(point, theirs, measure)
                for name, measure in LOST.items()
            },
        }
        for point in points
    ]
