"""What tasks share whose inputs are columns of numbers; and classes of a table's rows."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field, model_validator

from zoopress.errors import CardError
from zoopress.tasks import Batch, DatasetTask, Preprocessing, Rows, Samples, Split, feed
from zoopress_zoo.tasks.classification import Classification

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

Scale = tuple["Tensor", "Tensor"]
"""What is subtracted from each column, and what it is divided by then."""


class FeaturePreprocessing(Preprocessing):
    """How a table's columns become inputs."""

    standardize: bool = Field(
        default=False, description="features get mean 0 and deviation 1 over the training split"
    )
    mean: tuple[float, ...] = Field(default=(), description="subtracted from each feature instead")
    std: tuple[float, ...] = Field(default=(), description="what each feature is divided by then")

    @model_validator(mode="after")
    def _check(self) -> FeaturePreprocessing:
        if len(self.mean) != len(self.std):
            raise ValueError(f"'mean' has {len(self.mean)} values and 'std' {len(self.std)}")
        if self.mean and self.standardize:
            raise ValueError("give 'standardize', or 'mean' and 'std', not both")
        if any(value <= 0 for value in self.std):
            raise ValueError("'std' must be above 0")
        return self


class TableTask(DatasetTask):
    """Feeds features [samples, features].

    Without `columns: {features: "a, b"}` they are all columns of numbers that are neither targets
    nor subgroups.
    """

    input_roles: ClassVar[tuple[str, ...]] = ("features",)
    many: ClassVar[frozenset[str]] = frozenset({"features"})
    preprocessing: FeaturePreprocessing

    def default_columns(self, role: str) -> tuple[str, ...]:
        """Return as features all columns of numbers that are nothing else."""
        if role != "features":
            return super().default_columns(role)
        targets = {name for role in self.target_roles for name in self.columns_of(role)}
        return tuple(name for name in self.numeric_columns() if name not in targets)

    def numeric_columns(self) -> tuple[str, ...]:
        """Return the columns whose first value is a number, but those of subgroups."""
        table = next(iter(self.tables.values()))
        first = range(min(1, len(table)))
        return tuple(
            name
            for name in self.common_columns
            if name not in self.data.groups and is_numeric(table.values(name, first))
        )

    def table_rows(self, split: Split) -> Rows:
        """Return the rows that a split is made of."""
        return self.rows(split)

    def matrix(self, split: Split, role: str) -> Tensor:
        """Return a role's columns in a split [rows, numbers], float64.

        Raises:
            CardError: if a value is no finite number.
        """
        return read_matrix(self.table_rows(split), self.columns[role], self.card.name)

    def features(self, split: Split) -> Tensor:
        """Return a split's features [rows, features] as the model takes them, float32.

        Raises:
            CardError: if a value is no finite number, or the card's `mean` and `std` are for
                another number of features.
        """
        numbers, (mean, std) = self.matrix(split, "features"), self._feature_scale
        if len(mean) not in (1, numbers.shape[1]):
            raise CardError(
                f"Card {self.card.name!r}: 'data.preprocessing.mean' has {len(mean)} values, but "
                f"there are {numbers.shape[1]} features: {', '.join(self.columns['features'])}."
            )
        return ((numbers - mean) / std).float()

    def measured_scale(self, role: str) -> Scale:
        """Return the mean and the deviation of a role's columns over the training split.

        Raises:
            CardError: if it has no row.
        """
        learned = self.matrix("training", role)
        if not len(learned):
            raise CardError(
                f"Card {self.card.name!r}: 'standardize' measures the training split, for which no "
                "row is left. Ask for fewer samples of the others, or give 'mean' and 'std'."
            )
        return measure_scale(learned)

    @cached_property
    def _feature_scale(self) -> Scale:
        import torch

        settings = self.preprocessing
        if settings.mean:
            return torch.tensor(settings.mean), torch.tensor(settings.std)
        return self.measured_scale("features") if settings.standardize else no_scale()


class TabularClassification(Classification, TableTask):
    """Feeds features [samples, features] and takes class scores."""

    name = "tabular-classification"
    input_roles: ClassVar[tuple[str, ...]] = ("features",)
    preprocessing_type: ClassVar[type[Preprocessing]] = FeaturePreprocessing

    def make_samples(self, split: Split) -> Samples:
        """Return the rows of a split.

        Raises:
            CardError: if there are too few, or a feature is no number.
        """
        features = self.features(split)
        return MatrixSamples(features, self.labels(split, range(len(features))))

    def forward(self, module: nn.Module, inputs: Any) -> Tensor:
        """Return class scores [samples, classes]."""
        return feed(module, inputs)


class MatrixSamples(Samples):
    """Samples in memory.

    Args:
        features: [samples, features].
        target: [samples, …].
    """

    def __init__(self, features: Tensor, target: Tensor) -> None:
        self._features, self._target = features, target

    def __len__(self) -> int:
        return len(self._features)

    def batch(self, rows: Sequence[int], generator: torch.Generator | None = None) -> Batch:
        chosen = list(rows)
        return Batch(self._features[chosen], self._target[chosen])


def is_numeric(values: Sequence[Any]) -> bool:
    """Tell whether values are numbers, or arrays of numbers of one shape."""
    import numpy as np

    try:
        return len(values) > 0 and np.asarray(values).dtype.kind in "biuf"
    except ValueError:  # lists of different lengths
        return False


def read_matrix(rows: Rows, columns: Sequence[str], card: str) -> Tensor:
    """Return columns of numbers, or of lists of numbers, side by side [rows, numbers], float64.

    Raises:
        CardError: if a value is no finite number, saying where.
    """
    import numpy as np
    import torch

    found = []
    for name in columns:
        values = rows.column(name, range(len(rows)))
        if values and not is_numeric(values):
            row = next((r for r, value in enumerate(values) if not is_numeric([value])), 0)
            raise CardError(
                f"Card {card!r}: column {name!r} must hold numbers, as many in each row, and "
                f"{rows.where(row)} has {values[row]!r} there."
            )
        matrix = np.asarray(values, dtype=np.float64).reshape(len(values), -1 if values else 1)
        bad = np.flatnonzero(~np.isfinite(matrix).all(1))
        if len(bad):
            raise CardError(
                f"Card {card!r}: column {name!r} has no finite number in "
                f"{rows.where(int(bad[0]))}, and in {len(bad) - 1} rows besides. Fill in what is "
                "missing, or leave those rows out."
            )
        found.append(torch.from_numpy(matrix))
    return torch.cat(found, 1)


def no_scale() -> Scale:
    """Return the scale that leaves numbers as they are."""
    import torch

    return torch.zeros(1), torch.ones(1)


def measure_scale(numbers: Tensor) -> Scale:
    """Return the mean and the deviation of each column [rows, columns]; 1 for constant ones."""
    import torch

    mean, std = numbers.mean(0), numbers.std(0, correction=0)
    return mean, torch.where(std > 0, std, torch.ones_like(std))
