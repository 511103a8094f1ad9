"""Charts of measures: how both models fare under attack and corruption."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import mean
from typing import Any

from zoopress.reports.drawing import INHERITED, Spec
from zoopress.reports.markdown import one_line
from zoopress.results.figures import is_share, mapping, number, show_metric

_ATTACKS = {"clean": "undisturbed", "fgsm": "FGSM attack", "pgd": "PGD attack"}


def robustness_rows(data: Mapping[str, Any]) -> list[tuple[str, float, float]]:
    """Return what disturbs, and the score of both models: attacks, then corruptions' means."""
    found = [(title, mapping(data.get(key))) for key, title in _ATTACKS.items()]
    corruptions = data.get("corruptions")
    items = [mapping(each) for each in corruptions] if isinstance(corruptions, list) else []
    for name in dict.fromkeys(one_line(item.get("name", "")) for item in items):
        same = [item for item in items if one_line(item.get("name", "")) == name]
        scores = {
            which: [s for item in same if (s := number(item.get(which))) is not None]
            for which in ("original", "compressed")
        }
        if all(scores.values()):
            means = {which: mean(values) for which, values in scores.items()}
            found.append((name.replace("_", " "), means))
    both = [
        (title, number(row.get("original")), number(row.get("compressed"))) for title, row in found
    ]
    return [(title, a, b) for title, a, b in both if a is not None and b is not None]


def robustness_chart(data: Mapping[str, Any]) -> Spec | None:
    """Return two marks a disturbance, the original's and the compressed model's score."""
    rows = robustness_rows(data)
    if not rows:
        return None
    score = one_line(data.get("score") or "score")
    order = [title for title, _, _ in rows]
    marks = [
        {
            "of": title,
            "model": model,
            "x": value,
            "label": f"{title}, {model}: {show_metric(score, value)}",
        }
        for title, *values in rows
        for model, value in zip(("original", "compressed"), values, strict=True)
    ]
    lines = [{"of": title, "x": a, "x2": b} for title, a, b in rows]
    y = {
        "field": "of",
        "type": "nominal",
        "sort": order,
        "title": None,
        "axis": {"labelLimit": 120, "grid": True, "ticks": False, "domain": False},
    }
    x = {
        "field": "x",
        "type": "quantitative",
        "title": score.replace("_", " "),
        "scale": {"zero": False, "padding": 10},
        "axis": {"tickCount": 5, **({"format": ".0%"} if is_share(score) else {})},
    }
    return {
        "height": {"step": 24},
        "layer": [
            {
                "data": {"values": lines},
                "mark": {"type": "rule", "color": INHERITED, "opacity": 0.4, "aria": False},
                "encoding": {"y": y, "x": x, "x2": {"field": "x2"}},
            },
            {
                "data": {"values": marks},
                "mark": {"type": "point", "filled": True, "size": 90, "opacity": 1},
                "encoding": {
                    "y": y,
                    "x": x,
                    "color": {
                        "field": "model",
                        "type": "nominal",
                        "title": None,
                        "scale": {
                            "domain": ["original", "compressed"],
                            "range": ["#9aa4ae", "#4c78a8"],
                        },
                    },
                    "description": {"field": "label"},
                },
            },
        ],
    }
