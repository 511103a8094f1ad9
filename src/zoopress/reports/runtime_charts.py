"""Charts of runtimes: how long a call of either model takes in each."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from zoopress.reports.drawing import Spec
from zoopress.reports.markdown import one_line
from zoopress.results.figures import mapping, number
from zoopress.units import show_number

_MODELS = ("original", "compressed")


def groups(evaluation: Mapping[str, Any]) -> Iterator[tuple[int, int, list[Mapping[str, Any]]]]:
    """Yield the rows of the measure `runtimes` by number of threads and batch size."""
    rows = mapping(evaluation.get("runtimes")).get("rows")
    known: dict[tuple[int, int], list[Mapping[str, Any]]] = {}
    for row in map(mapping, rows if isinstance(rows, list) else []):
        threads, size = number(row.get("threads")), number(row.get("batch_size"))
        if threads and size:
            known.setdefault((int(threads), int(size)), []).append(row)
    for (threads_, size_), same in known.items():
        yield threads_, size_, same


def chart(rows: Sequence[Mapping[str, Any]]) -> Spec | None:
    """Return a mark a runtime and model at the median, with a line to the 95th percentile."""
    marks: list[dict[str, Any]] = []
    soonest: dict[str, float] = {}
    for row in rows:
        for which in _MODELS:
            median, late = (number(row.get(f"{which}_ms_{each}")) for each in ("p50", "p95"))
            if median is not None and late is not None:
                name = one_line(row.get("runtime", ""))
                label = f"{name}, {which}: {show_number(median)} ms, p95 {show_number(late)} ms"
                marks.append({"of": name, "model": which, "x": median, "x2": late, "label": label})
                soonest[name] = min(median, soonest.get(name, median))
    if not marks:
        return None
    order = sorted(soonest, key=lambda name: soonest[name])
    y = {
        "field": "of",
        "type": "nominal",
        "sort": order,
        "title": None,
        "axis": {"labelLimit": 120, "grid": True, "ticks": False, "domain": False},
    }
    offset = {"field": "model", "sort": list(_MODELS)}
    x = {"field": "x", "type": "quantitative", "title": "ms", "axis": {"tickCount": 5}}
    color = {
        "field": "model",
        "type": "nominal",
        "title": None,
        "scale": {"domain": list(_MODELS), "range": ["#9aa4ae", "#4c78a8"]},
    }
    encoding = {"y": y, "yOffset": offset, "x": x, "color": color}
    return {
        "height": {"step": 14},
        "data": {"values": marks},
        "layer": [
            {
                "mark": {"type": "rule", "aria": False},
                "encoding": {**encoding, "x2": {"field": "x2"}},
            },
            {
                "mark": {"type": "point", "filled": True, "size": 70, "opacity": 1},
                "encoding": {**encoding, "description": {"field": "label"}},
            },
        ],
    }
