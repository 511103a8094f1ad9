"""The figures of reports as rows, which is what DVC's plots and other tools for charts read.

Every row says of which cell it is, so the rows of many cells make one file and one chart.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from zoopress.errors import InputError, StoreError, os_words
from zoopress.results import Report, read_report
from zoopress.store import write_atomic

Rows = list[dict[str, Any]]
FILES = ("stages.json", "layers.json")


def stage_rows(report: Report) -> Rows:
    """Return a row a stage: what it took, and what bytes and fidelity were after it."""
    return [
        {
            **_cell(report),
            "position": position,
            "technique": stage.technique,
            "seconds": round(stage.seconds, 4),
            "weight_bytes": stage.weight_bytes,
            "size_bytes": stage.size_bytes,
            "times_smaller": round(report.original_size_bytes / stage.size_bytes, 4),
            "cosine": stage.fidelity.cosine,
            "label_loyalty": stage.fidelity.label_loyalty,
            "probability_loyalty": stage.fidelity.probability_loyalty,
        }
        for position, stage in enumerate(report.stages, start=1)
    ]


def layer_rows(report: Report) -> Rows:
    """Return a row a weight, in the order of the model."""
    return [
        {**_cell(report), "position": position, **asdict(layer)}
        for position, layer in enumerate(report.layers, start=1)
    ]


def plot_files(reports: list[Report]) -> dict[str, str]:
    """Return the rows of reports as the contents of `FILES`."""
    stages = [row for report in reports for row in stage_rows(report)]
    layers = [row for report in reports for row in layer_rows(report)]
    return {name: _lines(rows) for name, rows in zip(FILES, (stages, layers), strict=True)}


def collect_plots(folder: Path, out: Path) -> int:
    """Write the rows of all cells below a folder, FOLDER/CARD/RECIPE/report.json, and count them.

    Raises:
        InputError: if there are none, or one is damaged.
        StoreError: if the files cannot be written.
    """
    reports = [read_report(path) for path in sorted(folder.glob("*/*/report.json"))]
    if not reports:
        raise InputError(
            f"{folder} holds no results: expected {folder}/CARD/RECIPE/report.json, as "
            "`zoopress run CARD RECIPE --out` leaves it."
        )
    try:
        out.mkdir(parents=True, exist_ok=True)
        for name, text in plot_files(reports).items():
            write_atomic(out / name, text)
    except OSError as error:
        raise StoreError(
            f"Cannot write to {out}: {os_words(error)}. Choose another --out."
        ) from error
    return len(reports)


def _cell(report: Report) -> dict[str, Any]:
    card, recipe = report.card["name"], report.recipe["name"]
    return {"cell": report.name, "card": card, "recipe": recipe}


def _lines(rows: Rows) -> str:
    """Return a JSON list with a row a line, whose differences git shows row by row."""
    lines = [json.dumps(row, allow_nan=False, ensure_ascii=False) for row in rows]
    return "[\n" + ",\n".join(lines) + "\n]\n"
