"""Which inputs flipped: how two confusion matrices differ, and examples that are safe to show."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from zoopress.reports.drawing import INHERITED, Spec
from zoopress.reports.markdown import one_line
from zoopress.results.figures import mapping

if TYPE_CHECKING:
    from zoopress.results import Report

MAX_CLASSES = 30
"""A chart of more classes cannot be read."""
_MAX_NUMBERED = 12
_MAX_IMAGE_BYTES = 100_000
_MAX_TEXT = 600
_PNG = "data:image/png;base64,"

KINDS = {
    "right_to_wrong": "right → wrong",
    "wrong_to_right": "wrong → right",
    "wrong_to_other_wrong": "wrong → other wrong",
}


@dataclass(frozen=True)
class Example:
    """An input whose label changed.

    Attributes:
        row: of the test split.
        kind: one of the values of `KINDS`; "" without labels.
        target: the right label, None if unknown.
        original: the original's label.
        compressed: the compressed model's.
        image: a `data:image/png` address that holds a PNG and nothing else; None if there is none.
        text: the input as text; None if there is none.
    """

    row: str
    kind: str
    target: str | None
    original: str
    compressed: str
    image: str | None
    text: str | None


def changes(report: Report) -> Mapping[str, Any]:
    """Return what the report says of labels that changed; empty if it says nothing."""
    return mapping(mapping(report.evaluation.get("task")).get("changes"))


def counts(report: Report) -> list[tuple[str, int]]:
    """Return how many inputs changed in which way, where there are labels to tell."""
    found = changes(report)
    return [(title, int(found[kind])) for kind, title in KINDS.items() if kind in found]


def examples(report: Report) -> list[Example]:
    """Return the inputs that changed, those of which there is more to say than a row's number.

    An image that is none is left out.
    """
    found = []
    for item in changes(report).get("examples") or ():
        if not isinstance(item, Mapping):
            continue
        shown = item.get("shown")
        is_image = isinstance(shown, str) and shown.startswith("data:")
        position = item.get("position")
        target = item.get("target")
        if shown is None and target is None:
            continue
        found.append(
            Example(
                row=f"{item.get('row', '?')}" + (f", position {position}" if position else ""),
                kind=KINDS.get(str(item.get("kind")), ""),
                target=None if target is None else one_line(target),
                original=one_line(item.get("original", "?")),
                compressed=one_line(item.get("compressed", "?")),
                image=png_address(shown) if is_image else None,
                text=None if is_image or shown is None else _cut(str(shown)),
            )
        )
    return found


def png_address(value: Any) -> str | None:
    """Return a `data:image/png` address that holds a PNG of modest size; None for all else."""
    if not isinstance(value, str) or not value.startswith(_PNG):
        return None
    if len(value) > len(_PNG) + 4 * _MAX_IMAGE_BYTES // 3 + 4:
        return None
    try:
        content = base64.b64decode(value[len(_PNG) :], validate=True)
    except (binascii.Error, ValueError):
        return None
    if not content.startswith(b"\x89PNG\r\n\x1a\n") or content[12:16] != b"IHDR":
        return None
    return _PNG + base64.b64encode(content).decode("ascii")


def _cut(text: str) -> str:
    plain = one_line(text)
    return plain if len(plain) <= _MAX_TEXT else f"{plain[:_MAX_TEXT]}…"


def confused_pairs(report: Report) -> list[dict[str, Any]]:
    """Return what is taken for what otherwise than by the original, the largest change first.

    Returns:
        "target", "predicted", "original", "compressed" and "change", as many as a table bears.
    """
    found = mapping(mapping(report.evaluation.get("task")).get("confusion"))
    if found.get("pairs"):
        rows = [{**row, "change": row["compressed"] - row["original"]} for row in found["pairs"]]
    else:
        labels, before, after = _matrices(found)
        rows = [
            {
                "target": labels[i],
                "predicted": labels[j],
                "original": before[i][j],
                "compressed": after[i][j],
                "change": after[i][j] - before[i][j],
            }
            for i in range(len(labels))
            for j in range(len(labels))
            if i != j
        ]
    changed = [row for row in rows if row["change"]]
    return sorted(changed, key=lambda row: -abs(row["change"]))[:10]


def _matrices(found: Mapping[str, Any]) -> tuple[list[str], Any, Any]:
    labels = [one_line(label) for label in found.get("labels") or ()]
    return labels, found.get("original") or [], found.get("compressed") or []


def confusion_chart(report: Report) -> Spec | None:
    """Return a matrix of compressed − original counts; None if it is too large, or all zero."""
    found = mapping(mapping(report.evaluation.get("task")).get("confusion"))
    labels, before, after = _matrices(found)
    if not 2 <= len(labels) <= MAX_CLASSES:
        return None
    cells = [
        (i, j, after[i][j] - before[i][j]) for i in range(len(labels)) for j in range(len(labels))
    ]
    largest = max(abs(change) for _, _, change in cells)
    if not largest:
        return None
    names = _unique(labels)
    rows = [
        {
            "target": names[i],
            "predicted": names[j],
            # A diagonal cell that grew is good, another one that grew is bad.
            "good": (change > 0) == (i == j),
            "strength": 0.15 + 0.75 * abs(change) / largest if change else 0.0,
            "text": f"{change:+d}".replace("-", "−") if change else "",
            "label": f"{labels[i]} taken for {labels[j]}: {before[i][j]} → {after[i][j]}",
        }
        for i, j, change in cells
    ]
    axis = {"labelLimit": 90, "grid": False, "ticks": False, "domain": False}
    encoding = {
        "y": {
            "field": "target",
            "type": "nominal",
            "sort": names,
            "title": "true label",
            "axis": axis,
        },
        "x": {
            "field": "predicted",
            "type": "nominal",
            "sort": names,
            "title": "predicted label",
            "axis": {**axis, "labelAngle": -45 if max(map(len, names)) > 2 else 0},
        },
    }
    layers: list[Spec] = [
        {
            "data": {"values": rows},
            "mark": {"type": "rect", "stroke": INHERITED, "strokeOpacity": 0.15},
            "encoding": {
                **encoding,
                "color": {
                    "condition": {"test": "datum.good", "value": "#4c78a8"},
                    "value": "#f58518",
                },
                "fillOpacity": {"field": "strength", "type": "quantitative", "scale": None},
                "description": {"field": "label"},
            },
        }
    ]
    if len(labels) <= _MAX_NUMBERED:
        layers.append(
            {
                "data": {"values": [row for row in rows if row["text"]]},
                "mark": {"type": "text", "aria": False, "color": INHERITED, "fontSize": 11},
                "encoding": {**encoding, "text": {"field": "text"}},
            }
        )
    return {"height": 320, "layer": layers}


def _unique(labels: Sequence[str]) -> list[str]:
    """Return labels of which no two are equal once they are cut."""
    cut = [label if len(label) <= 14 else f"{label[:13]}…" for label in labels]
    return [name if cut.count(name) == 1 else f"{i} {name}" for i, name in enumerate(cut)]
