"""What training lowers, on the training split, and what it looks at, on the validation split."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from zoopress.errors import CardError, StageError
from zoopress.tasks import Batch, Task
from zoopress.training.batch_norm import batch_norms
from zoopress.training.config import TrainingConfig
from zoopress.training.result import Evaluation
from zoopress.training.term import Term
from zoopress.training.workplace import precision, to_device

Score = tuple[float, float]
"""Of an evaluation; the larger, the better."""


@dataclass(frozen=True)
class Objective:
    """A task's loss and the terms that a technique adds to it.

    Attributes:
        task: knows the data, and how to judge.
        task_weight: what its loss is multiplied by; with 0 it is never asked for it.
        terms: what is added.
        config: of the training.
        device: where the module is.
    """

    task: Task
    task_weight: float
    terms: Sequence[Term]
    config: TrainingConfig
    device: torch.device

    def check(self) -> None:
        """Check that there is something to learn, and to learn from.

        Raises:
            StageError: if there is no loss.
            CardError: if a split is empty, or labels are missing.
        """
        if not self.task_weight and not self.terms:
            raise StageError("There is nothing to learn: 'task_weight' is 0, and there is no term.")
        name, training = self.task.card.name, self.task.samples("training")
        if not len(training):
            raise CardError(
                f"Card {name!r}: no samples are left to train on. Give its 'data' more samples, or "
                "lower 'evaluation_samples', 'calibration_samples' and 'validation_samples'."
            )
        if self.task_weight and training.batch([0]).targets is None:
            raise CardError(
                f"Card {name!r}: the task {self.task.name!r} has no labels to learn from. Distil "
                "from a teacher alone, which needs none (technique 'distillation'), or give the "
                "card a task with labels and a 'data: {dataset: …}'."
            )
        if self.config.evaluations and not len(self.task.samples("validation")):
            raise CardError(
                f"Card {name!r}: no samples are left for validation. Set 'data: "
                "{validation_samples: …}' and give it more samples, or train with 'evaluations: 0' "
                "and keep the last weights."
            )

    def prepare(self, module: nn.Module) -> None:
        """Put a module and the terms into training mode."""
        module.train()
        for term in self.terms:
            term.train()
        if self.config.batch_norm != "train":
            for layer in batch_norms(module):
                layer.eval()

    def loss(self, module: nn.Module, batch: Batch) -> Tensor:
        """Return the loss of a batch that is on the device, a scalar with gradients."""
        with precision(self.config, self.device):
            try:
                output = self.task.forward(module, batch.inputs).float()
            except CardError as error:
                raise StageError(f"In training mode: {error}") from error
            if not output.ndim:
                raise StageError(
                    "In training mode the model returns a single number first, such as its own "
                    "loss, and not what it returns in evaluation mode. Let it return its outputs "
                    "first in both."
                )
            return self._of_output(batch, output)

    def evaluate(self, module: nn.Module, step: int) -> Evaluation:
        """Look at the validation split, in float32.

        Args:
            module: left in evaluation mode.
            step: how many steps were taken.
        """
        module.eval()
        for term in self.terms:
            term.eval()
        samples, loss = 0, 0.0
        rows: list[dict[str, Tensor]] = []
        with torch.no_grad():
            for example in self.task.examples("validation"):
                batch = self.on_device(example)
                output = self.task.call(module, batch.inputs).float()
                samples += len(output)
                loss += len(output) * float(self._of_output(batch, output))
                if example.targets is not None:
                    rows.append(self.task.statistics(output.cpu(), example.targets))
        statistics = self.task.collect(rows)
        metrics = self.task.metrics(statistics) if statistics else {}
        return Evaluation(step, loss / samples, dict(metrics))

    def score(self, evaluation: Evaluation) -> Score:
        """Return how good an evaluation is: by the task's metric, and if equal by the loss.

        By the loss alone if there is no metric, or labels are no part of what is learned. What is
        NaN is worse than anything.
        """
        better = metric = -evaluation.loss
        if self.task_weight and self.task.metric in evaluation.metrics:
            metric = evaluation.metrics[self.task.metric]
            metric = metric if self.task.higher_is_better else -metric
        return tuple(-torch.inf if x != x else x for x in (metric, better))  # type: ignore[return-value]

    def on_device(self, batch: Batch) -> Batch:
        """Return a batch where the module is."""
        return Batch(to_device(batch.inputs, self.device), to_device(batch.targets, self.device))

    def _of_output(self, batch: Batch, output: Tensor) -> Tensor:
        parts = [term.weight * term(batch, output) for term in self.terms]
        if self.task_weight:
            parts.append(self.task_weight * self.task.loss(output, batch.targets))
        return torch.stack([part.float() for part in parts]).sum()
