"""Take out of a report where on a disk somebody keeps files: a page must not tell."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from zoopress.results import Report

_LOCAL = re.compile(
    r"(?P<scheme>[a-z]{2,}:)?"
    r"(?P<path>(/|~[\w.-]*[/\\]|\.\.[/\\]|[A-Za-z]:[/\\]|\\\\\w|file:/).*)",
    re.DOTALL,
)
_ADDRESS = re.compile(r"(?!file:)[a-z][a-z0-9+.-]*://")


def without_local_paths(report: Report) -> tuple[Report, list[str]]:
    """Return the report with paths outside the card's folder cut to their last part.

    Returns:
        The report, and the names of the card's keys that were cut.
    """
    hidden: list[str] = []
    card = {
        key: value if key == "description" else _cut(value, key, hidden.append)
        for key, value in report.card.items()
    }
    recipe = {
        key: value if key == "description" else _cut(value, key, hidden.append)
        for key, value in report.recipe.items()
    }
    if "base_model" in hidden:  # what is left of a path could be the name of somebody's model
        del card["base_model"]
    stages = [replace(s, config=_cut(s.config, "", lambda key: None)) for s in report.stages]
    revision = _cut(report.revision, "", lambda key: None)
    changed = replace(
        report,
        card=card,
        recipe=recipe,
        stages=stages,
        revision=revision,
        first_original=_cut(report.first_original, "", lambda key: None),
    )
    return changed, list(dict.fromkeys(hidden))


def _cut(value: Any, key: str, tell: Callable[[str], None]) -> Any:
    if isinstance(value, Mapping):
        return {k: _cut(v, f"{key}.{k}".strip("."), tell) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_cut(item, key, tell) for item in value]
    if not isinstance(value, str) or _ADDRESS.match(value):
        return value
    match = _LOCAL.fullmatch(value)
    if match is None:
        return value
    tell(key)
    parts = [part for part in re.split(r"[/\\]", match["path"]) if part.strip(".~")]
    return (match["scheme"] or "") + (parts[-1] if parts else "folder")
