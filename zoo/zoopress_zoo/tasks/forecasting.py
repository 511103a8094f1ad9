"""Forecasting: the next values of a time series from the last ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

from pydantic import Field

from zoopress.tasks import Batch, Rows, Samples, Split
from zoopress.tasks.splits import Place, split_series
from zoopress_zoo.tasks.regression import Regression, TablePreprocessing

if TYPE_CHECKING:
    import torch
    from torch import Tensor


class SeriesPreprocessing(TablePreprocessing):
    """How a series becomes windows."""

    window: int = Field(ge=1, description="time steps that the model sees")
    horizon: int = Field(default=1, ge=1, description="time steps after them that it tells")


class Forecasting(Regression):
    """Feeds windows [samples, window, features] and takes what follows.

    That is [samples, horizon] of one target, [samples, horizon, targets] of several. The rows of a
    part are time steps, in order. The features are all columns of numbers by default, the target's
    past included.
    """

    name = "forecasting"
    preprocessing_type = SeriesPreprocessing
    preprocessing: SeriesPreprocessing

    @cached_property
    def places(self) -> Mapping[Split, Sequence[Place]]:
        """The first time step of each window of each split; the splits share no time step."""
        span = self.preprocessing.window + self.preprocessing.horizon
        lengths = {name: len(table) for name, table in self.tables.items()}
        return split_series(lengths, self.parts, self.data, self.card.name, span)

    def make_samples(self, split: Split) -> Samples:
        """Return the windows of a split.

        Raises:
            CardError: if a series is too short, or a value is no number.
        """
        window, horizon = self.preprocessing.window, self.preprocessing.horizon
        count = len(self.places[split])
        return _Windows(self.features(split), self.targets(split), count, window, horizon)

    def table_rows(self, split: Split) -> Rows:
        """Return all time steps of a split, in order."""
        places = self.places[split]
        steps: list[Place] = []
        if places:
            part, first = places[0]
            last = places[-1].row + self.preprocessing.window + self.preprocessing.horizon
            steps = [Place(part, step) for step in range(first, last)]
        return Rows(self.tables, steps, self.columns)

    def default_columns(self, role: str) -> tuple[str, ...]:
        """Return as features all columns of numbers, the target's as well."""
        if role != "features":
            return super().default_columns(role)
        return self.numeric_columns()

    def statistics(self, output: Tensor, targets: Any) -> dict[str, Tensor]:
        """Return of each sample what it is and what the model says, [samples, numbers]."""
        found = super().statistics(output, targets)
        return {name: values.flatten(1) for name, values in found.items()}


class _Windows(Samples):
    """Windows of one series, each one time step after the one before."""

    def __init__(
        self, features: Tensor, target: Tensor, count: int, window: int, horizon: int
    ) -> None:
        self._features, self._target, self._count = features, target, count
        self._window, self._horizon = window, horizon

    def __len__(self) -> int:
        return self._count

    def batch(self, rows: Sequence[int], generator: torch.Generator | None = None) -> Batch:
        import torch

        first = torch.tensor(list(rows))[:, None]
        seen = first + torch.arange(self._window)
        told = first + self._window + torch.arange(self._horizon)
        targets = self._target[told]
        return Batch(self._features[seen], targets[..., 0] if targets.shape[2] == 1 else targets)
