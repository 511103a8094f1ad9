"""What a run over cards and recipes would do and take, in figures; `zoo_planner.py` makes it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any, Literal, TypeVar

NumberT = TypeVar("NumberT", int, float)
StageState = Literal["stored", "compute", "shared"]


@dataclass(frozen=True)
class PlannedStage:
    """What becomes of one stage.

    Attributes:
        technique: its name.
        config: what the recipe sets.
        state: whether its result is in the store, is computed, or is computed by a cell above.
        seconds: what computing takes; None if that is not known.
        store_bytes: what the store grows by, at most.
    """

    technique: str
    config: dict[str, Any]
    state: StageState
    seconds: float | None
    store_bytes: int


@dataclass(frozen=True)
class PlannedPublication:
    """Where a result would be published.

    Attributes:
        repo_id: on the Hub.
        state: "unchanged" if the run's published.json says that this very artifact is there.
        url: of the page, if it was published there before.
    """

    repo_id: str
    state: Literal["publish", "unchanged"]
    url: str | None


@dataclass(frozen=True)
class PlannedCell:
    """What becomes of one cell.

    Attributes:
        card: the card's name.
        recipe: the recipe's name.
        problem: why it cannot run; then nothing else is known.
        stages: in order.
        report_stored: whether the final comparison is in the store.
        start_seconds: to start and load the original.
        reference_seconds: to run the original.
        finish_seconds: to compare the result with the original.
        seconds: all that is to compute, in a process of its own; None if a part is not known.
        memory_bytes: the most that it takes, 0 if nothing is to compute.
        store_bytes: what the store grows by, at most.
        result_bytes: of the artifact, at most.
        fetch_bytes: of files that are not here; None if their sizes are not known.
        publication: where it would be published.
        advice: which order of the stages would be better, and why.
    """

    card: str
    recipe: str
    problem: str | None = None
    stages: tuple[PlannedStage, ...] = ()
    report_stored: bool = False
    start_seconds: float | None = 0.0
    reference_seconds: float | None = 0.0
    finish_seconds: float | None = 0.0
    seconds: float | None = 0.0
    memory_bytes: int = 0
    store_bytes: int = 0
    result_bytes: int = 0
    fetch_bytes: int | None = 0
    publication: PlannedPublication | None = None
    advice: tuple[str, ...] = ()

    @property
    def title(self) -> str:
        return f"{self.card} × {self.recipe}"


@dataclass(frozen=True)
class ZooPlan:
    """What a run would do.

    Attributes:
        cells: in the order of the selection.
        measured_seconds: how long this machine was measured for it just now.
        notes: what could not be measured, or will not fit.
    """

    cells: tuple[PlannedCell, ...]
    measured_seconds: float = 0.0
    notes: tuple[str, ...] = ()

    @property
    def problems(self) -> int:
        """How many cells cannot run."""
        return sum(cell.problem is not None for cell in self.cells)

    def total(self) -> dict[str, Any]:
        """Return the figures of all cells, computed one after the other."""
        sound = [cell for cell in self.cells if cell.problem is None]
        first = {cell.card: cell for cell in reversed(sound) if cell.seconds != 0.0}
        # One process runs all cells of a card; it loads and runs the original once.
        again = (
            add_up((cell.start_seconds, cell.reference_seconds))
            for cell in sound
            if cell.seconds != 0.0 and cell is not first[cell.card]
        )
        seconds, repeated = add_up(cell.seconds for cell in sound), add_up(again)
        fetched = {cell.card: cell.fetch_bytes for cell in sound}
        states = [stage.state for cell in sound for stage in cell.stages]
        return {
            "cells": len(self.cells),
            "problems": self.problems,
            "stages_stored": states.count("stored"),
            "stages_to_compute": states.count("compute"),
            "stages_shared": states.count("shared"),
            "seconds": None if seconds is None or repeated is None else seconds - repeated,
            "memory_bytes": max((cell.memory_bytes for cell in sound), default=0),
            "store_bytes": sum(cell.store_bytes for cell in sound),
            "result_bytes": sum(cell.result_bytes for cell in sound),
            "fetch_bytes": add_up(fetched.values()),
            "to_publish": sum(
                cell.publication is not None and cell.publication.state == "publish"
                for cell in sound
            ),
        }

    def as_dict(self) -> dict[str, Any]:
        """Return plain data."""
        return {
            "cells": [asdict(cell) for cell in self.cells],
            "total": self.total(),
            "measured_seconds": round(self.measured_seconds, 3),
            "notes": list(self.notes),
        }


def add_up(parts: Iterable[NumberT | None]) -> NumberT | None:
    """Return the sum, None if a part is not known."""
    total: NumberT = 0
    for part in parts:
        if part is None:
            return None
        total += part
    return total
