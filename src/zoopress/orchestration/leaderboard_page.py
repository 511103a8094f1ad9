"""A leaderboard as one HTML page that needs nothing else: no network, no file beside it."""

from __future__ import annotations

import base64
import hashlib
import os
from pathlib import Path
from typing import Any
from urllib.parse import quote

from zoopress.hub.markdown import one_line
from zoopress.orchestration.charts import Chart, ChartsMissingError, charts
from zoopress.orchestration.leaderboard import Leaderboard
from zoopress.orchestration.leaderboard_table import COLUMNS, MARKS, mark, stages_text
from zoopress.orchestration.standing import Figures, Standing
from zoopress.units import show_seconds

TEMPLATE = Path(__file__).with_name("leaderboard.html.j2")


def page(leaderboard: Leaderboard, folder: Path) -> str:
    """Return the page.

    Args:
        leaderboard: what it shows.
        folder: where the page will lie; links to reports are relative to it.
    """
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup

    drawn: list[Chart] = []
    missing = ""
    try:
        drawn = charts(leaderboard)
    except ChartsMissingError as error:
        missing = str(error)
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["csp_hash"] = _csp_hash
    return environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        summary=leaderboard.summary,
        columns=COLUMNS,
        marks=MARKS,
        rows=[
            _row(place, cell, figures, folder)
            for place, (cell, figures) in enumerate(leaderboard.done, start=1)
        ],
        cards=sorted({one_line(cell.card) for cell in leaderboard.cells}),
        recipes=sorted({one_line(cell.recipe) for cell in leaderboard.cells}),
        unfinished=[
            {
                "name": one_line(cell.name),
                "card": one_line(cell.card),
                "recipe": one_line(cell.recipe),
                "state": cell.state,
                "first": cell.reason_line,
                "reason": cell.reason or "",
            }
            for cell in leaderboard.unfinished
        ],
        # Vega escapes the texts in it.
        charts=[(chart, Markup(chart.svg)) for chart in drawn],
        missing=missing,
        processors=sorted({f.processor for _, f in leaderboard.done if f.processor}),
    )


def _row(place: int, cell: Standing, figures: Figures, folder: Path) -> dict[str, Any]:
    values = [column.value(figures) for column in COLUMNS]
    return {
        "place": place,
        "mark": mark(cell),
        "on_front": cell.on_front,
        "on_card_front": cell.on_card_front,
        "card": one_line(cell.card),
        "recipe": one_line(cell.recipe),
        "report": _link(cell.folder, folder),
        "cells": [
            (value, column.text(figures)) for column, value in zip(COLUMNS, values, strict=True)
        ],
        "stages": stages_text(figures),
        "chain": " → ".join(stage.technique for stage in figures.stages),
        "seconds": cell.seconds,
        "time": show_seconds(cell.seconds),
    }


def _link(results: str | None, folder: Path) -> str | None:
    """Return the address of a cell's report, relative to a folder."""
    if results is None:
        return None
    try:
        path = os.path.relpath(Path(results) / "report.md", folder)
    except ValueError:  # another drive
        return None
    # Also quotes ":", so that no folder's name is taken for a scheme such as javascript.
    return quote(Path(path).as_posix(), safe="/")


def _csp_hash(content: str) -> str:
    """Return what allows an inline script, and only that one, in a content security policy."""
    digest = hashlib.sha256(content.encode("utf-8")).digest()
    return f"'sha256-{base64.b64encode(digest).decode('ascii')}'"
