"""What tasks share that tell one class a sample."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

from zoopress.errors import CardError
from zoopress.tasks import DatasetTask, Split
from zoopress_zoo.labels import (
    LabelSpace,
    find_label_space,
    first_places,
    model_label_names,
)

if TYPE_CHECKING:
    from torch import Tensor


class Classification(DatasetTask):
    """Learns by softmax cross-entropy, judged by accuracy.

    A subclass gives batches whose `targets` are `labels(split, rows)`, and outputs that are class
    scores [samples, classes].
    """

    metric = "accuracy"
    target_roles: ClassVar[tuple[str, ...]] = ("label",)
    synonyms: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "label": ("labels", "target", "class", "y", "fine_label"),
    }

    @cached_property
    def label_space(self) -> LabelSpace:
        """The classes, and what the dataset calls them.

        Raises:
            CardError: if a label is outside, naming it and where it stands.
        """
        column = self.columns["label"][0]
        return find_label_space(
            first_places(self.tables, column, self.card.name),
            self.card.name,
            self.data.label_names,
            self.dataset.label_names(column),
            model_label_names(self.folder),
        )

    def label_names(self) -> Sequence[str]:
        """Return the names of the classes."""
        return self.label_space.names if self.labelled else ()

    def labels(self, split: Split, rows: Sequence[int]) -> Tensor:
        """Return the classes [rows], int64, of some samples of a split."""
        import torch

        values = self.rows(split).values("label", rows)
        return torch.tensor(self.label_space.encode(values), dtype=torch.int64)

    def loss(self, output: Tensor, targets: Any) -> Tensor:
        """Return the mean cross-entropy of class scores [samples, classes].

        Raises:
            CardError: if the model has another number of classes.
        """
        from torch.nn.functional import cross_entropy

        self._check_output(output, targets)
        return cross_entropy(output, targets)

    def statistics(self, output: Tensor, targets: Any) -> dict[str, Tensor]:
        """Return of each sample its class, the predicted one, and what metrics need besides.

        "loss" is −ln p(target), "confidence" p(predicted), "rank" how many classes have at least
        the score of the target, 0 if it is the largest alone.

        Raises:
            CardError: if the model has another number of classes.
        """
        self._check_output(output, targets)
        logarithms = output.double().log_softmax(1)
        confidence, predicted = logarithms.exp().max(1)
        right = logarithms.gather(1, targets[:, None])
        # NaN is no better than anything: then the rank is the last.
        rank = (~(output < output.gather(1, targets[:, None]))).sum(1) - 1
        return {
            "target": targets,
            "predicted": predicted,
            "loss": -right[:, 0],
            "confidence": confidence,
            "rank": rank,
        }

    def metrics(self, statistics: Mapping[str, Tensor]) -> dict[str, float]:
        """Return accuracy, macro F1, log loss, calibration error; top-5 of more than 10 classes."""
        from zoopress.evaluation.metrics import (
            accuracy,
            expected_calibration_error,
            log_loss,
            macro_f1,
        )

        predicted, target = statistics["predicted"], statistics["target"]
        classes = len(self.label_space.names)
        found = {
            "accuracy": accuracy(predicted, target),
            "macro_f1": macro_f1(predicted, target, classes),
            "log_loss": log_loss(statistics["loss"]),
            "calibration_error": expected_calibration_error(
                statistics["confidence"], predicted == target
            ),
        }
        if classes > 10:
            found["top_5_accuracy"] = float((statistics["rank"] < 5).double().mean())
        return found

    def _check_output(self, output: Tensor, targets: Tensor) -> None:
        classes = len(self.label_space.names)
        if output.ndim == 2 and output.shape == (len(targets), classes):
            return
        names = ", ".join(self.label_space.names[:10]) + (", …" if classes > 10 else "")
        raise CardError(
            f"Card {self.card.name!r}: the task {self.name!r} expects class scores "
            f"[{len(targets)}, {classes}] of the model, for {len(targets)} samples of {classes} "
            f"classes ({names}), and got {list(output.shape)}. "
            + (
                f"The model tells {output.shape[1]} classes: name all of them in their order in "
                "'data.label_names', or use a model for these."
                if output.ndim == 2 and len(output) == len(targets)
                else "Use a model that ends in a classifier."
            )
        )
