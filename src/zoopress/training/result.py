"""What a run of the training loop reports."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Evaluation:
    """The validation split, looked at after so many steps.

    Attributes:
        step: how many steps of the optimizer had been taken.
        loss: mean over all samples, the terms that a technique adds included.
        metrics: the task's, by name; empty without labels.
    """

    step: int
    loss: float
    metrics: dict[str, float]


@dataclass(frozen=True)
class TrainingResult:
    """What happened.

    Attributes:
        trained: names of the parameters that were trained.
        steps: steps of the optimizer that were taken.
        best_step: after how many of them the weights that were kept were the model's; 0 if
            training made nothing better and the weights are as they were.
        stopped_early: whether `patience` ended it.
        losses: mean training loss since the one before, by step; some hundred at most.
        evaluations: of the validation split, the first before any step. After recalibration of
            batch normalization, the last is of the weights that were kept.
        seconds: wall time, that of killed runs before not included.
    """

    trained: tuple[str, ...]
    steps: int
    best_step: int
    stopped_early: bool
    losses: tuple[tuple[int, float], ...]
    evaluations: tuple[Evaluation, ...]
    seconds: float

    def notes(self) -> dict[str, Any]:
        """Return plain data for a stage's report."""
        return {
            "steps": self.steps,
            "best_step": self.best_step,
            "stopped_early": self.stopped_early,
            "losses": [list(point) for point in self.losses],
            "evaluations": [
                {"step": one.step, "loss": _finite(one.loss), "metrics": _all_finite(one.metrics)}
                for one in self.evaluations
            ],
        }


def _all_finite(values: Mapping[str, float]) -> dict[str, float | None]:
    return {name: _finite(value) for name, value in values.items()}


def _finite(value: float) -> float | None:
    """Return None for what JSON cannot say."""
    return value if math.isfinite(value) else None
