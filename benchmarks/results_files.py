"""What the benchmarks share: a description of the machine, tables, and files of results."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"


def machine_line(machine: dict[str, Any]) -> str:
    threads = "one thread" if machine["threads"] == 1 else f"{machine['threads']} threads"
    return (
        f"{machine['cores']}-core {machine['processor']} with {machine['capability']}, {threads}, "
        f"torch {machine['torch']}, Python {machine['python']}"
    )


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Return a Markdown table; every column but the first is right-aligned."""
    rule = ["---", *("---:" for _ in header[1:])]
    return ["| " + " | ".join(line) + " |" for line in (header, rule, *rows)]


def write(name: str, title: str, lines: Sequence[str], figures: dict[str, Any]) -> None:
    """Print a page of results and keep it, with its figures, in benchmarks/results/."""
    RESULTS.mkdir(exist_ok=True)
    machine = machine_line(figures["machine"])
    page = "\n".join([f"# {title}", "", f"`{figures['command']}` on a {machine}.", "", *lines, ""])
    print(page)
    (RESULTS / f"{name}.md").write_text(page, encoding="utf-8")
    text = json.dumps(figures, indent=2, ensure_ascii=False, allow_nan=False)
    (RESULTS / f"{name}.json").write_text(text + "\n", encoding="utf-8")
