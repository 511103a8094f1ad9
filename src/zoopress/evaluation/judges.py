"""Judges of outputs on disturbed inputs: by labels, by the original's labels, or by its outputs."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from zoopress.evaluation.likeness import (
    is_number,
    sample_concordances,
    sample_cosines,
    spread_of,
)
from zoopress.tasks import Batch, Task


class Judge(ABC):
    """Scores outputs of batches, and tells attacks where to go.

    Attributes:
        score_name: what the score is called.
        higher_is_better: whether a larger score is a better one.
    """

    score_name: str
    higher_is_better = True

    @abstractmethod
    def loss(self, batch: int, output: Tensor) -> Tensor:
        """Return what an attack on a batch makes large, a scalar with gradients."""

    @abstractmethod
    def score(self, outputs: Sequence[Tensor]) -> float | None:
        """Return how good the outputs of all batches are, None if that is not a number."""


class ByLabels(Judge):
    """Judges by the data's labels: with the task's loss and metric."""

    def __init__(self, task: Task, targets: Sequence[Any]) -> None:
        self.score_name, self.higher_is_better = str(task.metric), task.higher_is_better
        self._task, self._targets = task, targets

    def loss(self, batch: int, output: Tensor) -> Tensor:
        return self._task.loss(output, self._targets[batch])

    def score(self, outputs: Sequence[Tensor]) -> float | None:
        pairs = zip(outputs, self._targets, strict=True)
        rows = [self._task.statistics(output, targets) for output, targets in pairs]
        return _finite(self._task.metrics(self._task.collect(rows))[self.score_name])


class ByOriginal(Judge):
    """Judges by the labels that the original gives to clean inputs."""

    score_name = "label_loyalty"

    def __init__(self, task: Task, reference: Sequence[Tensor]) -> None:
        self._task = task
        self._labels = [class_scores(task, output).argmax(1) for output in reference]

    def loss(self, batch: int, output: Tensor) -> Tensor:
        return nn.functional.cross_entropy(class_scores(self._task, output), self._labels[batch])

    def score(self, outputs: Sequence[Tensor]) -> float | None:
        labels = [class_scores(self._task, output).argmax(1) for output in outputs]
        return float((torch.cat(labels) == torch.cat(self._labels)).double().mean())


class ByOutputs(Judge):
    """Judges by the similarity to what the original gives for clean inputs.

    That is the cosine; of one number a sample, whose cosine is its sign alone, the concordance.
    """

    score_name = "cosine"

    def __init__(self, reference: Sequence[Tensor]) -> None:
        self._reference = reference
        self._numbers = is_number("real", reference[0])
        if self._numbers:
            self.score_name = "concordance"

    def loss(self, batch: int, output: Tensor) -> Tensor:
        if self._numbers:
            return (output - self._reference[batch]).square().mean()
        return -sample_cosines(self._reference[batch], output).mean()

    def score(self, outputs: Sequence[Tensor]) -> float | None:
        pairs = list(zip(self._reference, outputs, strict=True))
        if self._numbers:
            return _finite(float(sample_concordances(pairs, spread_of(self._reference)).mean()))
        return _finite(float(torch.cat([sample_cosines(a, b) for a, b in pairs]).mean()))


def choose_judge(task: Task, batches: Sequence[Batch], reference: Sequence[Tensor]) -> Judge:
    """Return the first that can be had: by labels, by the original's labels, by its outputs.

    Args:
        task: whose.
        batches: the samples.
        reference: what the original makes of them.
    """
    targets = [batch.targets for batch in batches]
    if task.metric is not None and all(target is not None for target in targets):
        return ByLabels(task, targets)
    if labels_are_own(task, reference[0]):
        return ByOriginal(task, reference)
    return ByOutputs(reference)


def labels_are_own(task: Task, output: Tensor) -> bool:
    """Tell whether outputs have labels, and each follows from its own output alone.

    A nearest neighbour does not: it is another sample's.
    """
    scores = task.similarity([output])
    alone = task.similarity([output[:1]])
    if scores is None or alone is None or alone.shape[1] != scores.shape[1]:
        return False
    return torch.equal(scores[: len(alone)], alone)


def class_scores(task: Task, output: Tensor) -> Tensor:
    """Return scores [labels, classes] of outputs that have them."""
    scores = task.similarity([output])
    assert scores is not None, "the task's outputs carry labels"
    return scores


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
