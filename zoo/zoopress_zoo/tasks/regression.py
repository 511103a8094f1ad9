"""Regression: numbers from the columns of a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from zoopress.errors import CardError
from zoopress.tasks import DatasetTask, Preprocessing, Samples, Split, feed
from zoopress_zoo.tasks.table import (
    FeaturePreprocessing,
    MatrixSamples,
    Scale,
    TableTask,
    no_scale,
)

if TYPE_CHECKING:
    from torch import Tensor, nn


class NumberPreprocessing(Preprocessing):
    """What all tasks have in common whose outputs are numbers."""

    loss: Literal["mse", "huber"] = Field(
        default="mse", description="squared error, or Huber's, which outliers pull less"
    )
    huber_delta: float = Field(
        default=1.0, gt=0, description="errors above it count linearly, with the loss `huber`"
    )


class NumberTask(DatasetTask):
    """Learns numbers by their squared error, judged by the mean absolute one.

    A subclass gives batches whose `targets` are floats [samples, numbers].
    """

    metric = "mean_absolute_error"
    higher_is_better = False
    target_roles: ClassVar[tuple[str, ...]] = ("target",)
    synonyms: ClassVar[Mapping[str, tuple[str, ...]]] = {"target": ("y", "value", "label")}
    preprocessing_type: ClassVar[type[Preprocessing]] = NumberPreprocessing
    preprocessing: NumberPreprocessing

    def forward(self, module: nn.Module, inputs: Any) -> Tensor:
        """Return numbers [samples, numbers]; a model's outputs [samples] are one number each."""
        output = feed(module, inputs)
        return output[:, None] if output.ndim == 1 else output

    def loss(self, output: Tensor, targets: Any) -> Tensor:
        """Return the mean loss of numbers [samples, numbers].

        Raises:
            CardError: if the model gives other ones.
        """
        from torch.nn.functional import huber_loss, mse_loss

        self._check_output(output, targets)
        if self.preprocessing.loss == "huber":
            return huber_loss(output, targets, delta=self.preprocessing.huber_delta)
        return mse_loss(output, targets)

    def statistics(self, output: Tensor, targets: Any) -> dict[str, Tensor]:
        """Return of each sample what it is and what the model says, [samples, numbers].

        Raises:
            CardError: if the model gives other ones.
        """
        self._check_output(output, targets)
        return {"value": self.in_units(targets), "prediction": self.in_units(output)}

    def metrics(self, statistics: Mapping[str, Tensor]) -> dict[str, float]:
        """Return errors, and R² and Spearman's correlation unless a target is constant."""
        from zoopress.evaluation import metrics

        prediction, value = statistics["prediction"], statistics["value"]
        found = {
            "mean_absolute_error": metrics.mean_absolute_error(prediction, value),
            "root_mean_squared_error": metrics.root_mean_squared_error(prediction, value),
        }
        if bool((value != value[:1]).any(0).all()):  # no column is constant
            found["r_squared"] = metrics.r_squared(prediction, value)
            found["spearman"] = metrics.spearman(prediction, value)
        return found

    def similarity(self, outputs: Sequence[Tensor]) -> Tensor | None:
        """Return None: numbers carry no label."""
        return None

    def in_units(self, numbers: Tensor) -> Tensor:
        """Return numbers in the dataset's units; by default they are."""
        return numbers

    def _check_output(self, output: Tensor, targets: Tensor) -> None:
        if output.shape != targets.shape:
            raise CardError(
                f"Card {self.card.name!r}: the task {self.name!r} expects outputs "
                f"{list(targets.shape)} of the model, one number for each of the targets "
                f"{', '.join(self.columns['target'])}, and got {list(output.shape)}. Name other "
                "targets in 'data.columns', or use a model for these."
            )


class TablePreprocessing(FeaturePreprocessing, NumberPreprocessing):
    """How a table's rows become inputs and targets."""

    standardize_target: bool = Field(
        default=False,
        description="the model's outputs are in deviations from the mean target of the training "
        "split; metrics are in the dataset's units nevertheless",
    )


class Regression(NumberTask, TableTask):
    """Feeds features [samples, features] and takes numbers [samples, targets]."""

    name = "regression"
    input_roles: ClassVar[tuple[str, ...]] = ("features",)
    many: ClassVar[frozenset[str]] = frozenset({"features", "target"})
    preprocessing_type: ClassVar[type[Preprocessing]] = TablePreprocessing
    preprocessing: TablePreprocessing

    def make_samples(self, split: Split) -> Samples:
        """Return the rows of a split.

        Raises:
            CardError: if there are too few, or a value is no number.
        """
        return MatrixSamples(self.features(split), self.targets(split))

    def targets(self, split: Split) -> Tensor:
        """Return a split's targets [rows, targets] as the model gives them, float32."""
        mean, std = self._target_scale
        return ((self.matrix(split, "target") - mean) / std).float()

    def in_units(self, numbers: Tensor) -> Tensor:
        """Return targets or outputs in the dataset's units."""
        mean, std = self._target_scale
        return numbers.double() * std + mean

    @cached_property
    def _target_scale(self) -> Scale:
        return (
            self.measured_scale("target") if self.preprocessing.standardize_target else (no_scale())
        )
