"""A leaderboard as one HTML page that needs nothing else: no network, no file beside it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from zoopress.reports.drawing import Chart, ChartsMissingError
from zoopress.reports.html import render
from zoopress.reports.leaderboard import Leaderboard
from zoopress.reports.leaderboard_charts import charts
from zoopress.reports.leaderboard_table import (
    MARKS,
    Column,
    columns_of,
    is_unlike,
    mark,
    stages_text,
)
from zoopress.reports.markdown import one_line
from zoopress.reports.standing import Figures, Standing
from zoopress.units import show_seconds

TEMPLATE = Path(__file__).with_name("leaderboard.html.j2")


def leaderboard_page(leaderboard: Leaderboard, folder: Path = Path()) -> str:
    """Return the page.

    Args:
        leaderboard: what it shows.
        folder: where the page will lie; links to reports are relative to it.
    """
    from markupsafe import Markup

    drawn: list[Chart] = []
    missing = ""
    try:
        drawn = charts(leaderboard)
    except ChartsMissingError as error:
        missing = str(error)
    columns = columns_of(leaderboard)
    return render(
        TEMPLATE,
        summary=leaderboard.summary,
        columns=columns,
        marks=MARKS,
        rows=[
            _row(place, cell, figures, columns, folder)
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


def _row(
    place: int, cell: Standing, figures: Figures, columns: Sequence[Column], folder: Path
) -> dict[str, Any]:
    values = [column.value(figures) for column in columns]
    return {
        "place": place,
        "mark": mark(cell),
        "on_front": cell.on_front,
        "unlike": is_unlike(figures),
        "on_card_front": cell.on_card_front,
        "card": one_line(cell.card),
        "recipe": one_line(cell.recipe),
        "report": _link(cell.folder, folder),
        "cells": [
            (value, column.text(figures)) for column, value in zip(columns, values, strict=True)
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
