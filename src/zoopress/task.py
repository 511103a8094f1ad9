"""A task: how a model is run, and how two models' outputs on the same inputs compare."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from zoopress.errors import CardError

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor, nn

    from zoopress.card import Card

Split = Literal["calibration", "evaluation"]


class Task(ABC):
    """Runs a card's model and compares outputs.

    Args:
        card: what to run.
        folder: the model's files, tokenizer and the like.
    """

    name: ClassVar[str]

    def __init__(self, card: Card, folder: Path) -> None:
        if card.data is None:
            raise CardError(
                f"Card {card.name!r} has no 'data': give it inputs to compare the models on, for "
                "example 'data: {random: {input: {shape: [3, 224, 224]}}}', or better a file."
            )
        self.card = card
        self.data = card.data
        self.folder = folder

        self._batches: dict[Split, Sequence[Any]] = {}

    def batches(self, split: Split) -> Sequence[Any]:
        """Return batches of a split, made once."""
        if split not in self._batches:
            self._batches[split] = self.make_batches(split)
        return self._batches[split]

    @abstractmethod
    def make_batches(self, split: Split) -> Sequence[Any]:
        """Return batches of a split; the splits share no sample.

        Raises:
            CardError: if there are too few samples.
        """

    @abstractmethod
    def call(self, module: nn.Module, batch: Any) -> Tensor:
        """Run a module on one batch, without gradients; the samples are the first axis."""

    @abstractmethod
    def fingerprint(self) -> str:
        """Return a digest of all inputs, without importing anything heavy."""

    def similarity(self, outputs: Sequence[Tensor]) -> Tensor | None:
        """Return scores [samples, classes] whose largest is a sample's label.

        None if the outputs of this task carry no label. The default takes the last axis of 2-axis
        outputs as class scores, and axis 1 of those with more axes, as segmentation does.
        """
        import torch

        scores = []
        for output in outputs:
            if output.ndim < 2 or output.shape[-1 if output.ndim <= 3 else 1] < 2:
                return None
            moved = output if output.ndim <= 3 else output.movedim(1, -1)
            scores.append(moved.reshape(-1, moved.shape[-1]))
        return torch.cat(scores) if len({s.shape[1] for s in scores}) == 1 else None
