"""How a page names the model that everything is compared with, and the one it was first made of."""

from __future__ import annotations

from zoopress.publishing.card_metadata import base_model
from zoopress.reports.first_original import first_original_name, source_name
from zoopress.reports.markdown import link, text
from zoopress.results import Report


def original_link(report: Report) -> str:
    """Return what the model is compared with, which may be a compressed model itself."""
    if not report.first_original:
        return first_original_link(report)
    name = source_name(report)
    if str(report.card["source"]).startswith("hub:"):
        return link(name, f"https://huggingface.co/{name}")
    return f"the compressed model {text(name)}"


def first_original_link(report: Report) -> str:
    """Return the model that all was first made of, whose licence holds."""
    base = base_model(report)
    if base is None:
        name = first_original_name(report) or report.card["name"]
        return f"the original {text(name)}"
    return link(base, f"https://huggingface.co/{base}")
