"""What is said of how much of a model a stage reached, and of layers that it nearly erased."""

from __future__ import annotations

import math

from zoopress.results import Coverage, KindCoverage, LayerChange, Report, StageResult

LEAST_NORM = 0.5
"""Of a layer's norm, below which it is named: less is left than was lost."""
_NEARLY_ALL = 0.995
_MOST_NAMED = 3


def stage_words(result: StageResult) -> str:
    """Say in short what share a stage reached; empty if that is about all, or is not known."""
    coverage = result.coverage
    if coverage is None or coverage.byte_share >= _NEARLY_ALL:
        return ""
    return f"reached {share(coverage.byte_share)} of the bytes"


def coverage_words(position: int, result: StageResult) -> str:
    """Say what a stage reached, kind by kind, and what it left and why; empty if not known.

    Args:
        position: of the stage; 1 for the first.
        result: of the stage.
    """
    coverage = result.coverage
    if coverage is None or not coverage.kinds:
        return ""
    reached = [_reached(kind) for kind in coverage.kinds if kind.reached]
    left = [_left(kind, coverage) for kind in coverage.kinds if kind.reached < kind.parameters]
    words = (
        f"Stage {position} ({result.technique}) reached {share(coverage.share)} of the parameters "
        f"and {share(coverage.byte_share)} of the bytes: {', '.join(reached) or 'nothing'}."
    )
    bits = result.notes.get("bits_per_weight")
    if isinstance(bits, (int, float)) and result.parameters:
        over_all = 8 * result.weight_bytes / result.parameters
        words += f" Bits per weight: {bits:.2f} where it reached, {over_all:.2f} over all."
    return f"{words} Left as they were: {'; '.join(left)}." if left else words


def short_words(report: Report) -> str:
    """Say which stages reached much less than they promise; empty if none did."""
    short = [
        f"stage {position} ({result.technique}) reached {share(result.coverage.byte_share)} of the "
        f"bytes; {_largest(result.coverage)}"
        for position, result in enumerate(report.stages, start=1)
        if is_short(result) and result.coverage is not None
    ]
    return f"MOST OF THE MODEL IS AS IT WAS: {'; '.join(short)}." if short else ""


SHORT_REMEDY = (
    "Name more 'kinds' in the stage, or add a stage for the rest. If it is meant to be so, say so "
    "with 'kinds' or 'include'."
)


_MANIFEST = 0.01
"""What the manifest takes in a small model; a gate holds stages to the bytes that they promise."""


def larger_words(report: Report) -> str:
    """Say that what came out takes more bytes than the original; empty if it does not."""
    before, after = report.original_size_bytes, report.last.size_bytes
    if after <= before * (1 + _MANIFEST):
        return ""
    return (
        f"LARGER THAN THE ORIGINAL: {after:,} bytes, where the original's files have {before:,} "
        "that the model uses."
    )


LARGER_REMEDY = (
    "Add a stage that shrinks it, such as 'float_precision' or 'entropy_coding', or publish the "
    "original."
)


def is_short(result: StageResult) -> bool:
    """Tell whether a stage that promises a share of something reached less than half of it."""
    promises = bool(result.claims) and result.shrinks
    return promises and result.coverage is not None and result.coverage.is_short


def lost_layers(result: StageResult) -> list[LayerChange]:
    """Return the layers of whose norm less than half is left, the worst first."""
    lost = [
        layer
        for layer in result.layers or []
        if layer.norm_kept is not None and layer.norm_kept < LEAST_NORM
    ]
    return sorted(lost, key=lambda layer: layer.norm_kept or 0.0)


def lost_words(result: StageResult) -> str:
    """Name layers of which less than half is left; empty if there are none."""
    lost = lost_layers(result)
    if not lost:
        return ""
    named = ", ".join(
        f"{layer.name} ({share(layer.norm_kept or 0.0)})" for layer in lost[:_MOST_NAMED]
    )
    more = f" and {len(lost) - _MOST_NAMED} more" if len(lost) > _MOST_NAMED else ""
    return f"less than half of the norm is left of {named}{more}"


def worst_layers(result: StageResult) -> str:
    """Name the layers that are furthest from the original's; empty if all are as they were."""
    changed = [layer for layer in result.layers or [] if layer.error]
    changed.sort(key=lambda layer: -(layer.error or 0.0))
    return ", ".join(
        f"{layer.name} ({'∞' if math.isinf(layer.error or 0.0) else f'{layer.error:.3g}'})"
        for layer in changed[:_MOST_NAMED]
    )


def share(value: float) -> str:
    """Write a share in per cent; never 0 or 100 for what is neither."""
    if 0 < value < 0.001:
        return "less than 0.1 %"
    if 0.999 < value < 1:
        return "more than 99.9 %"
    return f"{100 * value:.1f} %" if value not in (0, 1) else f"{100 * value:.0f} %"


def _reached(kind: KindCoverage) -> str:
    named = f" ({', '.join(kind.named)})" if kind.named else ""
    part = "" if kind.reached == kind.parameters else f"{share(kind.reached / kind.parameters)} of "
    return f"{part}{kind.kind}{named}"


def _left(kind: KindCoverage, coverage: Coverage) -> str:
    total = sum(each.bytes for each in coverage.kinds) or 1
    reasons: dict[str, list[str]] = {}
    for name, reason in kind.left.items():
        reasons.setdefault(reason, []).append(name)
    told = "; ".join(f"{', '.join(names)}: {reason}" for reason, names in reasons.items())
    more = f", and {kind.unnamed} more" if kind.unnamed else ""
    return f"{kind.kind}, {share((kind.bytes - kind.reached_bytes) / total)} ({told}{more})"


def _largest(coverage: Coverage) -> str:
    """Name the kind with the most bytes that were left, and why."""
    kind = max(coverage.kinds, key=lambda each: each.bytes - each.reached_bytes)
    return f"most of the rest is {_left(kind, coverage)}"
