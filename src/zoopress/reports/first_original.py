"""What a report says where the card's model is itself a compressed one."""

from __future__ import annotations

from zoopress.hub.address import parse_address
from zoopress.reports.headline import times_smaller
from zoopress.reports.markdown import one_line
from zoopress.results import Report
from zoopress.units import show_bytes


def earlier_stages(report: Report) -> list[str]:
    """Return the techniques that made the card's model, in order; none of a plain one."""
    return [one_line(name) for name in report.first_original.get("stages") or ()]


def source_name(report: Report) -> str:
    """Return what to call the model that everything is compared with."""
    source = str(report.card["source"])
    if report.first_original and source.startswith("hub:"):
        return parse_address(source).repo_id
    return one_line(report.card["name"])


def first_original_name(report: Report) -> str:
    """Return what to call the first original, "" where the card's model is a plain one."""
    first = report.first_original
    return one_line(first.get("base_model") or first.get("name") or "")


def first_original_text(report: Report) -> str:
    """Say what is compared with what, and how it stands beside the first original.

    Empty where the card's model is a plain one.
    """
    first = report.first_original
    if not first:
        return ""
    name, stages = first_original_name(report), ", ".join(earlier_stages(report))
    size = show_bytes(int(first["size_bytes"]))
    return (
        f"The original here, {source_name(report)}, is itself a compressed model: made of {name} "
        f"({size}) by {stages or 'no stage'}. Sizes, speed and fidelity are those beside "
        f"{source_name(report)}. Beside {name} the result is "
        f"{times_smaller(report.first_original_ratio or 1)}; how close its outputs are to those "
        f"of {name} was not measured here, and `zoopress evaluate` with a card of {name} does."
    )
