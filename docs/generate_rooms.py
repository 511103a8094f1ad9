"""Write docs/images/rooms.svg and the table of rooms in docs/architecture.md.

    python docs/generate_rooms.py

The floors are those of the contract in pyproject.toml that `make check` holds; what a room is for
is said by the first sentence of its docstring.
"""

from __future__ import annotations

import ast
from collections.abc import Sequence
from html import escape
from pathlib import Path

try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10
    import tomli as tomllib

ROOT = Path(__file__).parents[1]
CORE = ROOT / "src" / "zoopress"
PAGE, PICTURE = ROOT / "docs" / "architecture.md", ROOT / "docs" / "images" / "rooms.svg"
BEGIN, END = "<!-- rooms: written by docs/generate_rooms.py -->\n", "<!-- end of rooms -->"
WIDTH, FLOOR, GAP, LEFT = 920, 34, 8, 40


def floors() -> list[list[str]]:
    """Return the rooms of each floor, from the top down."""
    tool = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]
    (contract,) = [
        each for each in tool["importlinter"]["contracts"] if each.get("containers") == ["zoopress"]
    ]
    return [[room.strip() for room in layer.split("|")] for layer in contract["layers"]]


def purpose(room: str) -> str:
    """Return the first sentence of a room's docstring."""
    path = CORE / room / "__init__.py"
    code = (path if path.is_file() else CORE / f"{room}.py").read_text(encoding="utf-8")
    text = ast.get_docstring(ast.parse(code))
    assert text, f"{room} says nothing of itself"
    return " ".join(text.partition("\n\n")[0].split()).removesuffix(".")


def table(plan: Sequence[Sequence[str]]) -> str:
    """Return a row a room."""
    rows = ["| room | what is in it |", "| --- | --- |"]
    for room in (room for floor in plan for room in floor):
        name = f"`{room}/`" if (CORE / room).is_dir() else f"`{room}.py`"
        rows.append(f"| {name} | {purpose(room)} |")
    return "\n".join(rows) + "\n"


def picture(plan: Sequence[Sequence[str]]) -> str:
    """Return the house: a floor a row, each room a box with its name and its purpose."""
    height = len(plan) * (FLOOR + GAP) + 2 * GAP
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img" '
        'aria-labelledby="t d" '
        "font-family=\"system-ui, -apple-system, 'Segoe UI', Helvetica, Arial, sans-serif\">",
        '  <title id="t">The rooms of the core</title>',
        '  <desc id="d">Each room imports only rooms on floors below it: '
        + escape("; ".join(", ".join(floor) for floor in plan))
        + ".</desc>",
        "  <style>",
        "    .paper { fill: #f6f8fa } .room { fill: #ddf4ff; stroke: #0969da }",
        "    .path { fill: #dafbe1; stroke: #1a7f37 } .file { fill: #ffffff; stroke: #57606a }",
        "    .name { font-size: 14px; font-weight: 600; fill: #1f2328 }",
        "    .note { font-size: 12px; font-weight: 400; fill: #424a53 }",
        "    .line { stroke: #57606a; stroke-width: 1.5; fill: none } .head { fill: #57606a }",
        "    @media (prefers-color-scheme: dark) {",
        "      .paper { fill: #161b22 } .room { fill: #0c2d4d; stroke: #58a6ff }",
        "      .path { fill: #0f3a1d; stroke: #3fb950 } .file { fill: #21262d; stroke: #8b949e }",
        "      .name { fill: #f0f6fc } .note { fill: #c9d1d9 }",
        "      .line { stroke: #8b949e } .head { fill: #8b949e }",
        "    }",
        "  </style>",
        f'  <rect class="paper" width="{WIDTH}" height="{height}" rx="8"/>',
        f'  <path class="line" d="M20 {2 * GAP} V{height - 3 * GAP}"/>',
        f'  <path class="head" d="M20 {height - GAP} l-5 -12 h10 z"/>',
    ]
    for row, floor in enumerate(plan):
        y = GAP + row * (FLOOR + GAP) + GAP // 2
        width = (WIDTH - LEFT - GAP - (len(floor) - 1) * GAP) / len(floor)
        for column, room in enumerate(floor):
            x = LEFT + column * (width + GAP)
            kind = "path" if room == "pipeline" else "room" if (CORE / room).is_dir() else "file"
            parts.append(
                f'  <rect class="{kind}" x="{x:.0f}" y="{y}" width="{width:.0f}" '
                f'height="{FLOOR}" rx="5"/>'
            )
            note = ""
            if len(floor) == 1:
                note = f'<tspan class="note" dx="12">{escape(purpose(room))}</tspan>'
            parts.append(
                f'  <text class="name" x="{x + 10:.0f}" y="{y + 22}">{escape(room)}{note}</text>'
            )
    return "\n".join([*parts, "</svg>"]) + "\n"


def page(plan: Sequence[Sequence[str]]) -> str:
    """Return the page with its table of rooms."""
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    assert rest, f"{PAGE} lacks the line {BEGIN!r}"
    return before + BEGIN + "\n" + table(plan) + "\n" + END + rest.partition(END)[2]


if __name__ == "__main__":
    house = floors()
    PICTURE.write_text(picture(house), encoding="utf-8")
    PAGE.write_text(page(house), encoding="utf-8")
