"""What observers are told of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from zoopress.results import Report

State = Literal["done", "failed", "stopped"]
"""How a cell ended; "stopped" if the run was interrupted before the cell was done."""


@dataclass(frozen=True)
class RunNews:
    """One command's work: one cell, or a whole zoo's.

    Attributes:
        id: of this run alone, 32 hexadecimal digits.
        cells: names of card and recipe of each cell.
        folder: where results go: of a single cell its own, of a zoo run the one above them all.
    """

    id: str
    cells: tuple[tuple[str, str], ...]
    folder: str


@dataclass(frozen=True)
class CellNews:
    """A card's model on its way through a recipe.

    Attributes:
        run: that it is part of.
        card: the card as its file says; of one that could not be read only the `name`.
        recipe: the recipe, defaults included; of one that could not be read only the `name`.
        keys: under which the store keeps each stage's result; empty if it could not be opened.
        report_key: under which it keeps the report; empty likewise.
        folder: where `artifact/` and `report.json` go.
    """

    run: RunNews
    card: Mapping[str, Any]
    recipe: Mapping[str, Any]
    keys: tuple[str, ...]
    report_key: str
    folder: str

    @property
    def name(self) -> str:
        return f"{self.card['name']} × {self.recipe['name']}"

    def stage(self, position: int) -> StageNews:
        """Return what is known of a stage, 1 for the first, before it begins."""
        stages = self.recipe["stages"]
        spelled = stages[position - 1]
        return StageNews(
            position=position,
            count=len(stages),
            technique=spelled["technique"],
            config={k: v for k, v in spelled.items() if k not in ("technique", "targets", "gates")},
            key=self.keys[position - 1],
        )


@dataclass(frozen=True)
class StageNews:
    """One stage of a cell.

    Attributes:
        position: 1 for the first.
        count: how many stages the recipe has.
        technique: its name.
        config: its config with defaults, and `recovery` if it has one.
        key: under which the store keeps its result.
    """

    position: int
    count: int
    technique: str
    config: Mapping[str, Any]
    key: str


@dataclass(frozen=True)
class CellEnd:
    """How a cell ended.

    Attributes:
        cell: which one.
        state: how.
        report: what was measured; None unless it is done.
        error: why it is not done; None if it is.
        seconds: wall time since it started.
    """

    cell: CellNews
    state: State
    report: Report | None
    error: str | None
    seconds: float
