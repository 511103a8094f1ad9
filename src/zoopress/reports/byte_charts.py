"""Charts of a report's layers: where the bytes went, and which layers are sensitive."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from math import ceil, floor, log10
from typing import TYPE_CHECKING, Any

from zoopress.reports.drawing import INHERITED, Spec
from zoopress.reports.markdown import one_line
from zoopress.units import show_bytes, show_number

if TYPE_CHECKING:
    from zoopress.results import Report

TOP = 12
"""So many layers get a bar of their own."""

KINDS = {
    "embedding": "embeddings",
    "linear": "linear layers",
    "conv": "convolutions",
    "recurrent": "recurrent layers",
    "experts": "experts",
    "parameter": "other weights",
}
OTHER_TENSORS, OTHER_FILES = "small tensors", "other files"

BYTE_AXIS = {
    "format": "~s",  # writes giga as G and mega as M, as bytes are written
    "tickCount": 5,
    "labelExpr": "datum.value === 0 ? '0' : datum.label",
}

_LABELLED = 3
"""So many sensitive layers are named."""
_APART = 0.5
"""Names of marks closer than this, in tenfolds, would cover each other."""


def parts(report: Report) -> list[tuple[str, int, int]]:
    """Return what a model's bytes are made of: name, bytes before, bytes after.

    The layers by kind; then all other tensors, such as biases, with what a file of tensors says of
    them; then the files beside: tokenizer, configs.
    """
    rows = []
    for kind in dict.fromkeys([*KINDS, *(layer.kind for layer in report.layers)]):
        layers = [layer for layer in report.layers if layer.kind == kind]
        if layers:
            before = sum(layer.bytes_before for layer in layers)
            rows.append((KINDS.get(kind, kind), before, sum(la.bytes_after for la in layers)))
    last = report.last
    before = report.original_weight_bytes - sum(row[1] for row in rows)
    after = last.weight_bytes - sum(row[2] for row in rows)
    rows.append((OTHER_TENSORS, max(0, before), max(0, after)))
    files = report.original_size_bytes - report.original_weight_bytes
    rows.append((OTHER_FILES, max(0, files), max(0, last.size_bytes - last.weight_bytes)))
    return [row for row in rows if row[1] or row[2]]


def parts_chart(report: Report) -> Spec:
    """Return two stacked bars on one scale: the original's bytes and the compressed model's."""
    found = parts(report)
    values: list[dict[str, Any]] = []
    for model, counts in (
        ("original", [before for _, before, _ in found]),
        ("compressed", [after for _, _, after in found]),
    ):
        start = 0
        for (part, _, _), count in zip(found, counts, strict=True):
            label = f"{model}, {part}: {show_bytes(count)} ({count / max(1, sum(counts)):.0%})"
            ends = {"from": start, "to": start + count}
            values.append({"model": model, "part": part, **ends, "label": label})
            start += count
    names = [
        {"model": model, "name": f"{model}: {show_bytes(size)}"}
        for model, size in (
            ("original", report.original_size_bytes),
            ("compressed", report.last.size_bytes),
        )
    ]
    y = {"field": "model", "type": "nominal", "sort": ["original", "compressed"], "axis": None}
    order = [part for part, _, _ in found]
    return {
        "height": {"step": 56},
        "layer": [
            {
                "data": {"values": values},
                "mark": {"type": "bar", "height": 24, "yOffset": 10},
                "encoding": {
                    "y": y,
                    "x": {"field": "from", "type": "quantitative", **_byte_axis()},
                    "x2": {"field": "to"},
                    "color": {
                        "field": "part",
                        "type": "nominal",
                        "sort": order,
                        "scale": {"scheme": "tableau10", "domain": order},
                        "title": None,
                    },
                    "description": {"field": "label"},
                },
            },
            _names(names, y, -12),
        ],
    }


def layers_chart(report: Report) -> Spec:
    """Return a pale bar a layer for its bytes before, a full one in it for those after."""
    ranked = sorted(report.layers, key=lambda layer: -layer.bytes_before)
    shorter = short_names(layer.name for layer in ranked[:TOP])
    rows = [
        _bar(str(i), shorter[i], one_line(layer.name), layer.bytes_before, layer.bytes_after)
        for i, layer in enumerate(ranked[:TOP])
    ]
    rest = ranked[TOP:]
    if rest:
        name = f"{len(rest)} more layers together" if len(rest) > 1 else "1 more layer"
        before = sum(layer.bytes_before for layer in rest)
        after = sum(layer.bytes_after for layer in rest)
        rows.append(_bar("rest", name, name, before, after))
    y = {"field": "id", "type": "nominal", "sort": [row["id"] for row in rows], "axis": None}
    x = {"type": "quantitative", **_byte_axis()}
    mark = {"type": "bar", "height": 10, "yOffset": 8, "color": "#4c78a8"}
    bars = [
        {
            "data": {"values": rows},
            "mark": {**mark, "opacity": opacity},
            "encoding": {"y": y, "x": {"field": field, **x}, "description": {"field": "label"}},
        }
        for field, opacity in (("before", 0.35), ("after", 1))
    ]
    return {"height": {"step": 34}, "layer": [*bars, _names(rows, y, -5)]}


def _bar(key: str, name: str, whole_name: str, before: int, after: int) -> dict[str, Any]:
    change = f"{show_bytes(before)} → {show_bytes(after)}"
    label = f"{whole_name}: {change} ({before / max(1, after):.1f}× smaller)"
    row = {"id": key, "name": f"{name}  {change}", "before": before, "after": after}
    return {**row, "label": label}


def _byte_axis() -> dict[str, Any]:
    return {"title": "bytes", "axis": BYTE_AXIS, "scale": {"nice": False}}


def _names(rows: Sequence[dict[str, Any]], y: dict[str, Any], dy: int) -> Spec:
    return {
        "data": {"values": [{k: v for k, v in row.items() if k != "label"} for row in rows]},
        "mark": {"type": "text", "align": "left", "dy": dy, "limit": 310, "aria": False},
        "encoding": {"y": y, "x": {"value": 0}, "text": {"field": "name"}},
    }


def short_names(names: Iterable[str], most: int = 27) -> list[str]:
    """Return layers' names without most of what all begin with, their ends rather than starts."""
    whole = [one_line(name) for name in names]
    # "2" alone would say nothing.
    cut = [n if (n := name.removesuffix(".weight")) and not n.isdigit() else name for name in whole]
    shown = [name.split(".") for name in cut]
    columns = [len(set(column)) for column in zip(*shown, strict=False)]
    common = next((i for i, different in enumerate(columns) if different > 1), 1)
    # The last part that all have in common stays: "layers.2" says more than "2".
    return [_end_of(".".join(name[max(0, common - 1) :]), most) for name in shown]


def _end_of(name: str, most: int) -> str:
    """Return a name without its first parts, so many that the rest is short enough."""
    while len(name) > most and "." in name:
        name = name.partition(".")[2]
    return name if len(name) <= most else f"…{name[1 - most :]}"


def has_sensitivity(report: Report) -> bool:
    """Tell whether there is anything to compare: at least two layers of different sensitivity."""
    return len({layer.sensitivity for layer in report.layers if layer.sensitivity}) > 1


def sensitivity_chart(report: Report) -> Spec:
    """Return a mark a layer: its bytes across, its sensitivity up, both on logarithmic scales."""
    found = [layer for layer in report.layers if layer.sensitivity and layer.bytes_after > 0]
    found.sort(key=lambda layer: -(layer.sensitivity or 0.0))
    rows: list[dict[str, Any]] = [
        {
            "x": layer.bytes_after,
            "y": layer.sensitivity,
            "kind": KINDS.get(layer.kind, layer.kind),
            "label": f"{one_line(layer.name)}: sensitivity "
            f"{show_number(layer.sensitivity or 0.0, 2)}, "
            f"{show_bytes(layer.bytes_before)} → {show_bytes(layer.bytes_after)}",
        }
        for layer in found
    ]
    named: list[dict[str, Any]] = []
    for row, name in zip(rows, short_names((layer.name for layer in found), 22), strict=True):
        near = any(_distance(row, other) < _APART for other in named)
        if len(named) < _LABELLED and not near:
            named.append({"x": row["x"], "y": row["y"], "name": name})
    # To the inside, where there is room.
    ends = [log10(edge(row["x"] for row in rows)) for edge in (min, max)]
    sides = [
        [n for n in named if (log10(n["x"]) > sum(ends) / 2) is right] for right in (False, True)
    ]
    x, y = (
        {
            "field": field,
            "type": "quantitative",
            "title": title,
            "scale": {"type": "log", "padding": 14, "nice": False},
            "axis": {"format": form, "values": _ticks([row[field] for row in rows])},
        }
        for field, title, form in (
            ("x", "bytes after compression", "~s"),
            ("y", "sensitivity", ".0e"),
        )
    )
    points = {
        "data": {"values": rows},
        "mark": {"type": "point", "filled": True, "size": 80, "opacity": 0.8},
        "encoding": {
            "x": x,
            "y": y,
            "color": {
                "field": "kind",
                "type": "nominal",
                "scale": {"scheme": "tableau10"},
                "title": None,
            },
            "description": {"field": "label"},
        },
    }
    texts = [
        {
            "data": {"values": side},
            "mark": {
                "type": "text",
                "align": align,
                "dx": dx,
                "dy": -9,
                "aria": False,
                "color": INHERITED,
            },
            "encoding": {"x": x, "y": y, "text": {"field": "name"}},
        }
        for side, align, dx in zip(sides, ("left", "right"), (-4, 4), strict=True)
        if side
    ]
    return {"height": 240, "layer": [points, *texts]}


def _ticks(values: Sequence[float]) -> list[float]:
    """Return ticks for a logarithmic axis: powers of ten, and their halves if it spans few."""
    low, high = floor(log10(min(values))) - 1, ceil(log10(max(values))) + 1
    powers = [10.0**exponent for exponent in range(low, high + 1)]
    return powers if high - low > 4 else sorted([*powers, *(5 * tick for tick in powers)])


def most_sensitive(report: Report) -> list[str]:
    """Return the layers that move the outputs most, with their sensitivities."""
    ranked = sorted(report.layers, key=lambda layer: -(layer.sensitivity or 0.0))
    found = [layer for layer in ranked[:_LABELLED] if layer.sensitivity]
    names = short_names((layer.name for layer in found), 40)
    return [
        f"{name} ({show_number(la.sensitivity or 0.0, 2)})"
        for name, la in zip(names, found, strict=True)
    ]


def most_to_gain(report: Report) -> list[str]:
    """Return other layers, with the most bytes left for the harm that compressing them did."""
    ranked = sorted(report.layers, key=lambda layer: -(layer.sensitivity or 0.0))
    found = [layer for layer in ranked[_LABELLED:] if layer.sensitivity and layer.bytes_after]
    found.sort(key=lambda layer: -layer.bytes_after / (layer.sensitivity or 1.0))
    names = short_names((layer.name for layer in found[:_LABELLED]), 40)
    return [
        f"{name} ({show_bytes(layer.bytes_after)})"
        for name, layer in zip(names, found, strict=False)
    ]


def _distance(one: Mapping[str, Any], other: Mapping[str, Any]) -> float:
    """Return how many tenfolds two marks are apart, in the direction in which that is more."""
    return max(abs(log10(one[axis]) - log10(other[axis])) for axis in ("x", "y"))
