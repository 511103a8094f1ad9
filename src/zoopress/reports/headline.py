"""What came out of a run, in one sentence."""

from __future__ import annotations

from zoopress.results import Report
from zoopress.results.figures import flips, primary_metric
from zoopress.results.speed import speeds
from zoopress.units import show_bytes


def times_smaller(ratio: float) -> str:
    """Say a compression ratio in words; an original that was packed already may be smaller."""
    return f"{ratio:.2f}× smaller" if ratio >= 1 else f"{1 / ratio:.2f}× larger"


def times_fewer(reduction: float) -> tuple[str, str]:
    """Return a reduction as a multiple and a word: ("2.00×", "fewer")."""
    if reduction >= 1:
        return f"{reduction:.2f}×", "fewer"
    return f"{1 / reduction:.2f}×", "more"


def headline(report: Report) -> list[str]:
    """Return what came out in plain words, the parts of one sentence."""
    parts = [times_smaller(report.compression_ratio)]
    sizes = f"{show_bytes(report.original_size_bytes)} → {show_bytes(report.last.size_bytes)}"
    parts[0] += f" ({sizes})"
    if report.first_original_ratio is not None:
        parts.append(f"{times_smaller(report.first_original_ratio)} than the first original")
    for speed in speeds(report)[:1]:
        for_what = "" if speed.batch_size == 1 else f" in batches of {speed.batch_size}"
        where = f" ({speed.where})" if speed.where else ""
        parts.append(f"{speed.speed_up:.2f}× as fast{for_what}{where}")
    metric = primary_metric(report)
    if metric is not None:
        before, after = metric.show(metric.original), metric.show(metric.compressed)
        parts.append(f"{metric.title} {before} → {after} ({metric.difference_text})")
    else:
        worst = report.last.fidelity.worst()
        by = "" if worst.usual else f" ({worst.of_output})"
        parts.append(f"outputs {worst.value:.4f} similar to the original's{by}")
    changed = flips(report.evaluation)
    loyalty = report.last.fidelity.label_loyalty
    if changed is not None:
        what = "inputs" if changed[1] == report.last.fidelity.samples else "labels"
        parts.append(f"{changed[0]:,} of {changed[1]:,} {what} flipped")
    elif loyalty is not None:
        parts.append(f"{100 * loyalty:.1f} % of labels kept")
    return parts
