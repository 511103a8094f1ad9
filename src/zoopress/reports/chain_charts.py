"""Charts of a report's stages: what each gained and cost, and how those that train learned."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from zoopress.reports.byte_charts import BYTE_AXIS
from zoopress.reports.drawing import INHERITED, Spec
from zoopress.reports.markdown import one_line
from zoopress.results.figures import is_share, mapping, number, primary_metric, show_metric
from zoopress.units import show_bytes, show_number

if TYPE_CHECKING:
    from zoopress.results import Report

MAX_CURVES = 4
"""So many stages that trained are drawn."""


class Step(NamedTuple):
    """The model after a stage; position 0 is the original."""

    position: int
    name: str
    weight_bytes: int
    size_bytes: int
    quality: float | None
    quality_text: str

    @property
    def title(self) -> str:
        return self.name if not self.position else f"{self.position} {self.name}"


def quality_name(report: Report) -> str:
    """Return what the quality of each step is: the task's metric if it has labels, else cosine."""
    return (report.last.metric or "cosine").replace("_", " ")


def steps(report: Report) -> list[Step]:
    """Return the original, then the model after each stage."""
    metric = report.last.metric
    known = primary_metric(report)
    first = report.stages[0]
    original = 1.0 if metric is None else known.original if known else None
    found = [
        Step(
            0,
            "original",
            first.weight_bytes_before,
            report.original_size_bytes,
            original,
            _quality_text(metric, original),
        )
    ]
    for position, stage in enumerate(report.stages, start=1):
        quality = stage.fidelity.cosine if metric is None else stage.metrics.get(metric)
        name = one_line(stage.technique).replace("_", " ")
        if stage.recovery:
            by = one_line(stage.recovery.get("technique", "recovery"))
            name += f" + {by.replace('_', ' ')}"
        sizes = (stage.weight_bytes, stage.size_bytes)
        found.append(Step(position, name, *sizes, quality, _quality_text(metric, quality)))
    return found


def _quality_text(metric: str | None, value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:.4f}" if metric is None else show_metric(metric, value)


def stages_chart(report: Report) -> Spec:
    """Return a bar a stage: the bytes of the tensor files after it."""
    name = quality_name(report)
    rows = [
        {
            "id": str(step.position),
            "name": f"{step.title}  {show_bytes(step.weight_bytes)}",
            "bytes": step.weight_bytes,
            "label": f"{step.title}: {show_bytes(step.weight_bytes)}, {name} {step.quality_text}",
            "kind": "stage" if step.position else "original",
        }
        for step in steps(report)
    ]
    y = {"field": "id", "type": "nominal", "sort": [row["id"] for row in rows], "axis": None}
    bars = {
        "data": {"values": rows},
        "mark": {"type": "bar", "height": 12, "yOffset": 9},
        "encoding": {
            "y": y,
            "x": {
                "field": "bytes",
                "type": "quantitative",
                "title": "bytes of the tensor files",
                "axis": BYTE_AXIS,
                "scale": {"nice": False},
            },
            "color": {
                "condition": {"test": "datum.kind === 'original'", "value": "#9aa4ae"},
                "value": "#4c78a8",
            },
            "description": {"field": "label"},
        },
    }
    names = {
        "data": {"values": [{"id": row["id"], "name": row["name"]} for row in rows]},
        "mark": {"type": "text", "align": "left", "dy": -6, "limit": 310, "aria": False},
        "encoding": {"y": y, "x": {"value": 0}, "text": {"field": "name"}},
    }
    return {"height": {"step": 38}, "layer": [bars, names]}


def trail_chart(report: Report) -> Spec | None:
    """Return the way of the chain: size across, quality up; None if quality is unknown."""
    name = quality_name(report)
    found = [step for step in steps(report) if step.quality is not None]
    if len(found) < 2:
        return None
    rows: list[dict[str, Any]] = []
    for step in found:
        ratio = report.original_size_bytes / max(1, step.size_bytes)
        label = f"{step.title}: {ratio:.2f}× smaller, {name} {step.quality_text}"
        point = {"x": ratio, "y": step.quality, "order": step.position, "label": label}
        rows.append({**point, "text": str(step.position)})
    # Stages that only prepare may end where they began: their numbers stand side by side.
    apart: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        at = (f"{row['x']:.2g}", f"{row['y']:.3g}")
        apart.setdefault(at, []).append("original" if row["text"] == "0" else row["text"])
    texts = []
    for row in rows:
        names = apart.pop((f"{row['x']:.2g}", f"{row['y']:.3g}"), None)
        if names:
            texts.append({"x": row["x"], "y": row["y"], "text": ", ".join(names)})
    x = {
        "field": "x",
        "type": "quantitative",
        "title": "times smaller, all files",
        "scale": {"zero": False, "padding": 22},
        "axis": {"tickCount": 5},
    }
    y = {
        "field": "y",
        "type": "quantitative",
        "title": name,
        "scale": {"zero": False, "padding": 22},
        "axis": _metric_axis(report.last.metric or ""),
    }
    line = {
        "data": {"values": rows},
        "mark": {"type": "line", "opacity": 0.5, "strokeDash": [4, 3], "aria": False},
        "encoding": {"x": x, "y": y, "order": {"field": "order"}},
    }
    marks = {
        "data": {"values": rows},
        "mark": {"type": "point", "filled": True, "size": 110, "color": "#4c78a8"},
        "encoding": {"x": x, "y": y, "description": {"field": "label"}},
    }
    labels = {
        "data": {"values": texts},
        "mark": {"type": "text", "dy": -13, "aria": False, "color": INHERITED},
        "encoding": {"x": x, "y": y, "text": {"field": "text"}},
    }
    return {"height": 240, "layer": [line, marks, labels]}


class Curve(NamedTuple):
    """What a stage that trained says of it."""

    title: str
    losses: list[tuple[float, float]]
    validation: list[tuple[float, float]]
    metrics: dict[str, list[tuple[float, float]]]
    best_step: int | None
    stopped_early: bool


def curves(report: Report) -> list[Curve]:
    """Return the training of each stage and of its recovery, in order."""
    found = []
    for position, stage in enumerate(report.stages, start=1):
        recovery = stage.notes.get("recovery")
        notes: list[tuple[str, Any]] = [(stage.technique, stage.notes)]
        by = (stage.recovery or {}).get("technique", "recovery")
        notes += [(by, item) for item in (recovery if isinstance(recovery, list) else [recovery])]
        for name, item in notes:
            curve = _curve(f"{position} {one_line(name).replace('_', ' ')}", mapping(item))
            if curve.losses or curve.validation:
                found.append(curve)
    return found


def _curve(title: str, notes: Mapping[str, Any]) -> Curve:
    looked = [mapping(item) for item in _list(notes.get("evaluations"))]
    names = dict.fromkeys(name for item in looked for name in mapping(item.get("metrics")))
    best = notes.get("best_step")
    return Curve(
        title,
        _points(_list(notes.get("losses"))),
        _points([(item.get("step"), item.get("loss")) for item in looked]),
        {
            one_line(name): _points(
                [(item.get("step"), mapping(item.get("metrics")).get(name)) for item in looked]
            )
            for name in names
        },
        best if isinstance(best, int) else None,
        bool(notes.get("stopped_early")),
    )


def _list(value: Any) -> list[Any]:
    return list(value) if isinstance(value, (list, tuple)) else []


def _points(pairs: Sequence[Any]) -> list[tuple[float, float]]:
    """Return what is a step and a finite value; a technique of a plugin notes what it likes."""
    known = [[number(value) for value in _list(pair)] for pair in pairs]
    return [(p[0], p[1]) for p in known if len(p) == 2 and p[0] is not None and p[1] is not None]


def loss_chart(curve: Curve) -> Spec:
    """Return the training loss, and that of the validation split where it was looked at."""
    rows = _lines({"training": curve.losses, "validation": curve.validation})
    return _curves_chart(rows, "loss", curve.best_step)


def metric_chart(curve: Curve, name: str) -> Spec:
    """Return a metric of the validation split by step."""
    rows = _lines({"validation": curve.metrics[name]})
    return _curves_chart(rows, name, curve.best_step)


def _metric_axis(name: str) -> dict[str, Any]:
    return {"tickCount": 5, **({"format": ".1%"} if is_share(name) else {})}


def _lines(named: Mapping[str, Sequence[tuple[float, float]]]) -> list[dict[str, Any]]:
    return [
        {
            "of": name,
            "x": step,
            "y": value,
            "label": f"{name}, step {show_number(step, 6)}: {show_number(value, 4)}",
        }
        for name, points in named.items()
        for step, value in points
    ]


def _curves_chart(rows: list[dict[str, Any]], name: str, best_step: int | None) -> Spec:
    x = {"field": "x", "type": "quantitative", "title": "step", "axis": {"tickCount": 5}}
    y = {
        "field": "y",
        "type": "quantitative",
        "title": name.replace("_", " "),
        "scale": {"zero": False, "padding": 10},
        "axis": _metric_axis(name),
    }
    names = list(dict.fromkeys(row["of"] for row in rows))
    colour = {
        "field": "of",
        "type": "nominal",
        "title": None,
        "scale": {"domain": names, "range": ["#4c78a8", "#f58518"][: len(names)]},
        "legend": {} if len(names) > 1 else None,
    }
    layers: list[Spec] = [
        {
            "data": {"values": rows},
            "mark": {"type": "line", "aria": False},
            "encoding": {"x": x, "y": y, "color": colour},
        },
        {
            "data": {"values": rows},
            "mark": {"type": "point", "filled": True, "size": 28},
            "encoding": {"x": x, "y": y, "color": colour, "description": {"field": "label"}},
        },
    ]
    if best_step is not None and best_step > 0:
        rule = {"type": "rule", "strokeDash": [3, 3], "color": INHERITED, "opacity": 0.6}
        layers.append(
            {
                "data": {"values": [{"x": best_step, "label": f"kept: step {best_step}"}]},
                "mark": rule,
                "encoding": {"x": x, "description": {"field": "label"}},
            }
        )
    return {"height": 200, "layer": layers}
