"""What a run was given, in words: data, settings, recipe."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from zoopress.reports.markdown import one_line
from zoopress.results import Report


def evaluation_data(report: Report) -> tuple[str, str]:
    """Return what the model was evaluated on: a word for it, and what to call it."""
    data = report.card.get("data") or {}
    if data.get("dataset"):
        scheme, _, place = one_line(data["dataset"]).partition(":")
        return scheme, f"the test split of {place if scheme == 'hub' else f'{scheme}:{place}'}"
    if data.get("text") == "python-docstrings":
        return "python-docstrings", "sentences from the docstrings of Python's standard library"
    if data.get("text"):
        return "text", f"lines of {one_line(data['text'])}"
    if data.get("file"):
        return "file", f"inputs in {one_line(data['file'])}"
    if data.get("inputs"):
        return "function", f"inputs from {one_line(data['inputs'])}"
    if data.get("random"):
        return "random", "random inputs"
    return "own", "inputs of the card's own"


def settings_text(config: Mapping[str, Any]) -> str:
    """Return what sets a stage apart; the recipe has all of it."""
    said = {k: v for k, v in config.items() if v is not None and v != [] and v != ["*"]}
    return ", ".join(
        f"{key.replace('_', ' ')} {'/'.join(map(str, v)) if isinstance(v, list) else _plain(v)}"
        for key, v in said.items()
    )


def _plain(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def shown_recipe(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """Return a recipe without what is empty; everything else, defaults too, stays as it ran."""
    stages = [{k: v for k, v in s.items() if k != "targets" or v} for s in recipe["stages"]]
    return {k: v for k, v in {**recipe, "stages": stages}.items() if v or v == 0}
