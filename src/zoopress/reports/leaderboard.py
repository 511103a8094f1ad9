"""The leaderboard of a zoo run: how every cell ended, and which are on the Pareto front.

A cell is on the front if no other is at least as good in compression ratio, in speed-up for one
sample and in cosine, and better in one of them. These are measures relative to each cell's own
original, so that cells of large and of small models can be compared; among the cells of one card
they rank as size, latency and fidelity themselves do.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

from zoopress.errors import InputError
from zoopress.reports.pareto import pareto_front
from zoopress.reports.standing import CellOutcome, Figures, Standing, standing

__all__ = ["CellOutcome", "Leaderboard", "Standing"]

SCHEMA = 1


class Leaderboard:
    """Every cell of a zoo run, best first within each card; what is not done comes last.

    Args:
        cells: how each ended.
    """

    def __init__(self, cells: Iterable[CellOutcome | Standing]) -> None:
        given = [standing(cell) if isinstance(cell, CellOutcome) else cell for cell in cells]
        self.cells: tuple[Standing, ...] = tuple(sorted(_with_fronts(given), key=_place))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Leaderboard) and self.cells == other.cells

    @cached_property
    def done(self) -> tuple[tuple[Standing, Figures], ...]:
        """The cells that are done, with their figures."""
        return tuple((cell, cell.figures) for cell in self.cells if cell.figures is not None)

    @cached_property
    def unfinished(self) -> tuple[Standing, ...]:
        """The cells that failed or were stopped."""
        return tuple(cell for cell in self.cells if cell.figures is None)

    @cached_property
    def front(self) -> tuple[Standing, ...]:
        """The Pareto front of the whole zoo, the smallest model for its original first."""
        ranked = sorted(self.done, key=lambda pair: -pair[1].compression_ratio)
        return tuple(cell for cell, _ in ranked if cell.on_front)

    @property
    def summary(self) -> str:
        """One line: how many cells ended how."""
        states = [cell.state for cell in self.cells]
        cells = "1 cell" if len(states) == 1 else f"{len(states)} cells"
        counts = [f"{cells}: {states.count('done')} done"]
        counts += [f"{states.count(s)} {s}" for s in ("failed", "stopped") if s in states]
        return ", ".join(counts) + (f", {len(self.front)} on the Pareto front" if self.done else "")

    def as_dict(self) -> dict[str, Any]:
        """Return plain JSON data."""
        return {
            "schema": SCHEMA,
            "counts": {
                state: sum(cell.state == state for cell in self.cells)
                for state in ("done", "failed", "stopped")
            },
            "front": [[cell.card, cell.recipe] for cell in self.front],
            "cells": [cell.as_dict() for cell in self.cells],
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Leaderboard:
        """Rebuild from `as_dict`.

        Raises:
            InputError: if the data are of another version.
        """
        if data.get("schema") != SCHEMA:
            raise InputError(
                f"This leaderboard is of schema {data.get('schema')!r}, and this zoopress reads "
                f"{SCHEMA}. Make it again with `zoopress zoo run`: what is in the store is not "
                "computed again."
            )
        return cls(Standing.from_dict(cell) for cell in data["cells"])


def _place(cell: Standing) -> tuple[Any, ...]:
    """Return what cells are sorted by."""
    ratio = cell.figures.compression_ratio if cell.figures else 0.0
    behind = (not cell.on_front, not cell.on_card_front)
    return (cell.figures is None, cell.card, *behind, -ratio, cell.recipe)


def _with_fronts(cells: Sequence[Standing]) -> list[Standing]:
    """Return cells with what is to be said of their being on a front."""
    done = [(place, cell.figures) for place, cell in enumerate(cells) if cell.figures is not None]

    def front(of: Iterable[tuple[int, Figures]]) -> set[int]:
        chosen = list(of)
        flags = pareto_front([figures.measures for _, figures in chosen])
        return {place for (place, _), flag in zip(chosen, flags, strict=True) if flag}

    by_card: dict[str, list[tuple[int, Figures]]] = {}
    for place, figures in done:
        by_card.setdefault(cells[place].card, []).append((place, figures))
    zoo, of_cards = front(done), set().union(*map(front, by_card.values()))
    return [
        replace(cell, on_front=place in zoo, on_card_front=place in of_cards)
        for place, cell in enumerate(cells)
    ]
