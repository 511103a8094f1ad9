"""What a zoo run is told, and what it knows of each cell."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from zoopress.estimates.budget import PATIENCE_S
from zoopress.observers.watch import NOBODY, CellWatch, StageWatch
from zoopress.orchestration.limits import Limits
from zoopress.reports.leaderboard import CellOutcome


@dataclass(frozen=True)
class ZooOptions:
    """How to run a zoo.

    Attributes:
        out: results go to OUT/CARD/RECIPE.
        store: where stage results are kept; None for the user's own.
        threads: how many each job computes with, where several run at once.
        at_once: how many jobs compute at once; None if that is for those to say who carry them.
        limits: of time, and how often is tried again.
        patience_s: how long a cell that is ready waits for the others.
        logs: folder of the cells' logs.
    """

    out: Path = Path("out")
    store: str | None = None
    threads: int | None = None
    at_once: int | None = None
    limits: Limits = field(default_factory=Limits)
    patience_s: float = PATIENCE_S
    logs: Path | None = None


@dataclass
class CellState:
    """What is known of one cell so far."""

    card: str
    recipe: str
    card_reference: str
    recipe_reference: str
    folder: Path
    memory_bytes: int = 0
    computed: list[str] = field(default_factory=list)
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    ready_at: float = 0.0
    outcome: CellOutcome | None = None
    watch: CellWatch | None = None

    @property
    def title(self) -> str:
        return f"{self.card} × {self.recipe}"

    @property
    def hears(self) -> StageWatch:
        """What tells observers of its stages; nobody before it is open."""
        return self.watch or NOBODY
