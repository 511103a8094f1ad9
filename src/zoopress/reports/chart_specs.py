"""Vega-Lite specifications of a leaderboard's charts: plain data, made without drawing anything.

Every mark of a cell is labelled "#PLACE NAME: figures", for people who cannot see it, and for the
page's script, which shows the label and finds the row.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from zoopress.reports.drawing import Spec
from zoopress.reports.markdown import one_line
from zoopress.reports.pareto import pareto_front

if TYPE_CHECKING:
    from zoopress.reports.leaderboard import Leaderboard
    from zoopress.reports.standing import Figures, Standing

MAX_RECIPES, MAX_CARDS, MAX_BARS = 10, 8, 40
"""Above these, colours and shapes can no longer be told apart, and bars no longer be read."""


class Axis(NamedTuple):
    """A measure that a chart shows."""

    title: str
    value: Callable[[Figures], float | None]
    show: str
    """How a value is written, in Python's format language."""


RATIO = Axis("times smaller", lambda figures: figures.compression_ratio, "{:.2f}× smaller")
COSINE = Axis("cosine", lambda figures: figures.cosine, "cosine {:.4f}")
SPEED_UP = Axis(
    "speed-up, batch size 1",
    lambda figures: figures.single.speed_up if figures.single else None,
    "{:.2f}× as fast",
)


def metric_axis(leaderboard: Leaderboard) -> Axis | None:
    """Return the task's metric, if all cells are of one card and a larger value is better."""
    metrics = [figures.metric for _, figures in leaderboard.done if figures.metric is not None]
    same = (
        len({cell.card for cell, _ in leaderboard.done}) == 1
        and len({metric.name for metric in metrics}) == 1
    )
    if not same or metrics[0].higher_is_better is not True:
        return None
    name = one_line(metrics[0].title)
    return Axis(
        name,
        lambda figures: figures.metric.compressed if figures.metric else None,
        name.replace("{", "{{").replace("}", "}}") + " {:.4f}",
    )


def _label(place: int, cell: Standing, *texts: str) -> str:
    return f"#{place} {one_line(cell.name)}: {', '.join(texts)}"


def scatter(leaderboard: Leaderboard, x: Axis, y: Axis, ink: str) -> Spec | None:
    """Return a chart with a mark a cell; None if no cell has both measures."""
    rows: list[dict[str, Any]] = []
    for place, (cell, figures) in enumerate(leaderboard.done, start=1):
        across, up = x.value(figures), y.value(figures)
        if across is None or up is None:
            continue
        row = {"card": one_line(cell.card), "recipe": one_line(cell.recipe), "x": across, "y": up}
        label = _label(place, cell, x.show.format(across), y.show.format(up))
        rows.append({**row, "front": cell.on_front, "label": label})
    if not rows:
        return None
    best = pareto_front([(row["x"], row["y"]) for row in rows])
    line = [{"x": r["x"], "y": r["y"]} for r, is_best in zip(rows, best, strict=True) if is_best]
    across_axis, up_axis = (
        {
            "field": field,
            "type": "quantitative",
            "title": axis.title,
            "scale": _scale([row[field] for row in rows]),
            "axis": {"tickCount": 6},
        }
        for field, axis in (("x", x), ("y", y))
    )
    marks = {
        "data": {"values": rows},
        "mark": {
            "type": "point",
            "filled": True,
            "size": 90 if len(rows) <= 200 else 40,
            "strokeWidth": 1.5,
        },
        "encoding": {
            "x": across_axis,
            "y": up_axis,
            **_colour_and_shape(rows, ink),
            "opacity": _if_front(1, 0.55),
            "stroke": _if_front(ink, "transparent"),
            "description": {"field": "label"},
        },
    }
    front = {
        "data": {"values": line},
        "mark": {
            "type": "line",
            "interpolate": "step-before",
            "strokeDash": [4, 3],
            "opacity": 0.5,
            "aria": False,
        },
        "encoding": {"x": across_axis, "y": up_axis},
    }
    return {"height": 240, "layer": [front, marks]}


def _scale(values: Sequence[float]) -> dict[str, Any]:
    """Return a scale for values: by powers of two where they span many."""
    low, high = min(values), max(values)
    if low == high:  # a domain without width would have no ticks
        return {"domain": [0.95 * low, 1.05 * high] if low else [-1, 1], "nice": False}
    if low > 0 and high > 6 * low:
        return {"type": "log", "base": 2, "padding": 8}
    return {"zero": False, "padding": 8}


def _multiples(low: float, high: float) -> list[float]:
    """Return ticks for a logarithmic axis, the more the less it spans."""
    powers = [2.0**exponent for exponent in range(-10, 21)]
    between = powers if high > 12 * low else sorted([*powers, *(1.5 * tick for tick in powers)])
    return [tick for tick in between if low <= tick <= high]


def _if_front(then: Any, otherwise: Any) -> dict[str, Any]:
    return {"condition": {"test": "datum.front", "value": then}, "value": otherwise}


def _colour_and_shape(rows: Sequence[dict[str, Any]], ink: str) -> dict[str, Any]:
    """Return colour by recipe and shape by card, as far as they can be told apart."""
    recipes, cards = ({row[key] for row in rows} for key in ("recipe", "card"))
    encoding: dict[str, Any] = {"color": {"value": "#4c78a8"}}
    if len(recipes) <= MAX_RECIPES:
        encoding["color"] = {"field": "recipe", "type": "nominal", "scale": {"scheme": "tableau10"}}
    if 1 < len(cards) <= MAX_CARDS:
        legend = {"symbolFillColor": ink, "symbolStrokeColor": ink}
        encoding["shape"] = {"field": "card", "type": "nominal", "legend": legend}
    return encoding


def stage_bars(leaderboard: Leaderboard, ink: str) -> Spec:
    """Return a chart with a bar a cell, made of what each of its stages gained."""
    places = list(enumerate(leaderboard.done, start=1))
    places.sort(key=lambda item: (not item[1][0].on_front, not item[1][0].on_card_front))
    shown = places[:MAX_BARS]
    names = [
        {"cell": str(place), "name": f"#{place} {one_line(cell.name)}"}
        for place, (cell, _) in shown
    ]
    y = {"field": "cell", "type": "nominal", "sort": [row["cell"] for row in names], "axis": None}
    bars = [row for place, (cell, figures) in shown for row in _gains(place, cell, figures)]
    techniques = {
        "field": "technique",
        "type": "nominal",
        "scale": {"scheme": "tableau10"},
        "legend": {"orient": "top"},
    }
    low = min([1.0, *(row["to"] for row in bars)])
    high = max([2.0, *(row["to"] for row in bars)])
    x = {
        "title": "times smaller (tensor files)",
        "scale": {"type": "log", "base": 2, "domain": [low, high], "nice": False},
        "axis": {"orient": "top", "values": _multiples(low, high)},
    }
    return {
        "height": {"step": 34},
        "layer": [
            {
                "data": {"values": bars},
                "mark": {
                    "type": "bar",
                    "height": 10,
                    "yOffset": 8,
                    "stroke": ink,
                    "strokeWidth": 0.3,
                },
                "encoding": {
                    "y": y,
                    "x": {"field": "from", "type": "quantitative", **x},
                    "x2": {"field": "to"},
                    "color": techniques,
                    "description": {"field": "label"},
                },
            },
            {
                "data": {"values": names},
                "mark": {"type": "text", "align": "left", "dy": -5, "limit": 280, "aria": False},
                "encoding": {"y": y, "x": {"value": 0}, "text": {"field": "name"}},
            },
        ],
    }


def _gains(place: int, cell: Standing, figures: Figures) -> Iterator[dict[str, Any]]:
    """Yield where each stage of a cell begins and ends on the bar, as multiples."""
    reached = 1.0
    for position, stage in enumerate(figures.stages, start=1):
        label = _label(
            place,
            cell,
            f"stage {position} {one_line(stage.technique)}",
            f"{stage.ratio:.2f}× smaller",
            *([] if stage.cosine is None else [f"cosine {stage.cosine:.4f}"]),
        )
        row = {"cell": str(place), "technique": one_line(stage.technique), "label": label}
        yield {**row, "from": reached, "to": reached * stage.ratio}
        reached *= stage.ratio
