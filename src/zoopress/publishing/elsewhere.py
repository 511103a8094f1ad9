"""What a page says of the files that are opened without zoopress: what runs where, and how fast."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from zoopress.reports.markdown import code, fence, table, text
from zoopress.units import show_bytes, show_number

if TYPE_CHECKING:
    from zoopress.publishing.exports import Beside, Exports

_HEADER = ("files", "size", "outputs differ by", "batch", "ms", "this model in eager PyTorch, ms")


def elsewhere(exports: Exports, place: str) -> dict[str, Any]:
    """Return the variables of a page's section; nothing without such files.

    Args:
        exports: the files, and what was measured of them.
        place: the repository.
    """
    if not exports.made:
        return {}
    ways = [
        {"title": text(f"{use.title}:"), "code": fence(use.code, use.language)}
        for each in exports.made
        for use in each.uses(place)
    ]
    return {
        "table": table(_HEADER, [row for each in exports.made for row in _rows(each)]),
        "ways": ways,
        "notes": [f"{code(each.exporter)}: {text(n)}" for each in exports.made for n in each.notes],
        "machine": _machine(exports) if any(each.timings for each in exports.made) else "",
    }


def _rows(each: Beside) -> list[list[str]]:
    files = "<br>".join(code(path) for path in _shown(sorted(each.files)))
    differ = "not compared"
    if each.difference is not None:
        differ = f"{each.difference:.2g} of the largest (up to {each.bound:.2g} is rounding)"
    head = [files, show_bytes(each.size_bytes), differ]
    if not each.timings:
        return [[*head, "–", "–", "–"]]
    return [
        [
            *(head if position == 0 else ["", "", ""]),
            str(int(row["batch_size"])),
            show_number(row["ms_p50"]),
            show_number(row["eager_ms_p50"]),
        ]
        for position, row in enumerate(each.timings)
    ]


def _shown(paths: list[str]) -> list[str]:
    """Return a folder once where there are many files in it."""
    folders = {path.partition("/")[0] for path in paths}
    if len(paths) > 3 and len(folders) == 1 and all("/" in path for path in paths):
        return [f"{folders.pop()}/"]
    return paths


def _machine(exports: Exports) -> str:
    machine = exports.machine
    return (
        f"Medians, in turns, on {machine.get('threads', 1)} threads of "
        f"{text(str(machine.get('processor') or 'a CPU'))} ({text(str(machine.get('capability')))})"
        "; on another machine they differ."
    )
