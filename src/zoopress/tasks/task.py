"""A task: how a model is fed, run, trained and judged."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import wraps
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from zoopress.errors import CardError

if TYPE_CHECKING:
    from pathlib import Path

    import torch
    from torch import Tensor, nn

    from zoopress.cards import Card
    from zoopress.plugins import Plugins

Split = Literal["calibration", "training", "validation", "test"]
"""What data is for. No two splits share a sample.

calibration: techniques look at its inputs, and of its labels, where there are some, only at the
gradients of the loss, in `context.statistics`. training: the loop learns from it.
validation: stops training early and keeps the best weights. test: every figure that is reported.
"""

_given_away: ContextVar[bool] = ContextVar("_given_away", default=False)
"""Whether modules may write into the inputs of `Task.forward`."""


@contextmanager
def inputs_given_away() -> Iterator[None]:
    """Let modules have the inputs themselves, where the caller made copies, as for a clock."""
    token = _given_away.set(True)
    try:
        yield
    finally:
        _given_away.reset(token)


@dataclass(frozen=True)
class Batch:
    """Some samples, ready for a module.

    Attributes:
        inputs: what the task's `forward` gives the module: a tensor [samples, …], or such tensors
            in a dict, tuple or list.
        targets: what the outputs should be, the first axis the samples; None without labels.
    """

    inputs: Any
    targets: Any = None


class Samples(ABC):
    """The samples of one split, in an order that never changes."""

    @abstractmethod
    def __len__(self) -> int:
        """Return how many there are."""

    @abstractmethod
    def batch(self, rows: Sequence[int], generator: torch.Generator | None = None) -> Batch:
        """Return some samples.

        Args:
            rows: which, each at least 0 and below the number of samples.
            generator: given in training alone: where random augmentation draws from, if the task
                does any. Without it the same rows always give the same batch.
        """


class Task(ABC):
    """Feeds, runs, trains and judges a card's model.

    A subclass says with `samples`, `forward` and `fingerprint` how its model is run; one with
    labels says with `loss`, `statistics` and `metrics` how it is trained and judged.

    Class attributes:
        name: what cards call it.
        metric: the name of the metric that it is judged by, one of those that `metrics` returns;
            None if it has no labels.
        higher_is_better: whether a larger `metric` is a better one.
        every_output: whether all that the module returns is judged; else what `forward` returns is,
            and of the rest only that it keeps its shapes and is finite.

    Attributes:
        plugins: those of the run, which know the card's dataset; everything installed if None. Set
            by `open_task` once the task is made.

    Args:
        card: what to run.
        folder: the model's files, tokenizer and the like.
    """

    plugins: Plugins | None = None

    name: ClassVar[str]
    metric: ClassVar[str | None] = None
    higher_is_better: ClassVar[bool] = True
    every_output: ClassVar[bool] = False

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        own = vars(cls).get("forward")
        if own is not None and not getattr(own, "__isabstractmethod__", False):
            cls.forward = _on_copies(own)  # type: ignore[method-assign]

    def __init__(self, card: Card, folder: Path) -> None:
        if card.data is None:
            raise CardError(
                f"Card {card.name!r} has no 'data': give it inputs to compare the models on, for "
                "example 'data: {random: {input: {shape: [3, 224, 224]}}}', or better a file."
            )
        self.card = card
        self.data = card.data
        self.folder = folder

        self._samples: dict[Split, Samples] = {}
        self._examples: dict[Split, Sequence[Batch]] = {}

    @abstractmethod
    def make_samples(self, split: Split) -> Samples:
        """Return the samples of a split; the splits share none.

        Raises:
            CardError: if there are too few samples, or labels outside the label space.
        """

    @abstractmethod
    def forward(self, module: nn.Module, inputs: Any) -> Tensor:
        """Run a module on a batch's inputs and return its output [samples, …], with gradients.

        The inputs that it sees are copies: a module may write into them.
        """

    @abstractmethod
    def fingerprint(self) -> str:
        """Return a digest of all samples, without importing anything heavy."""

    @property
    def batch_size(self) -> int:
        """How many samples a forward pass has, but in training; fewer where outputs are huge."""
        return self.data.batch_size

    def samples(self, split: Split) -> Samples:
        """Return the samples of a split, made once."""
        if split not in self._samples:
            self._samples[split] = self.make_samples(split)
        return self._samples[split]

    def examples(self, split: Split) -> Sequence[Batch]:
        """Return all samples of a split in order, in batches of the card's size, made once."""
        if split not in self._examples:
            samples, size = self.samples(split), self.batch_size
            self._examples[split] = [
                samples.batch(range(start, min(len(samples), start + size)))
                for start in range(0, len(samples), size)
            ]
        return self._examples[split]

    def batches(self, split: Split) -> Sequence[Any]:
        """Return the inputs of `examples`, without labels."""
        return [example.inputs for example in self.examples(split)]

    def call(self, module: nn.Module, inputs: Any) -> Tensor:
        """Run a module on a batch's inputs, without gradients; the samples are the first axis."""
        from zoopress.tasks.gradients import without_gradients

        output: Tensor = without_gradients(module, lambda: self.forward(module, inputs))
        return output

    def loss(self, output: Tensor, targets: Any) -> Tensor:
        """Return the mean loss, a scalar with gradients, of outputs against a batch's targets.

        Raises:
            CardError: if the task has no labels to learn from.
        """
        raise CardError(
            f"Card {self.card.name!r}: the task {self.name!r} has no labels to learn from. Distil "
            "from a teacher, which needs none (technique 'distillation'), or give the card a task "
            "with labels and a 'data: {dataset: …}'."
        )

    def statistics(self, output: Tensor, targets: Any) -> dict[str, Tensor]:
        """Reduce outputs to what `collect` needs, one row a sample; none without labels.

        Every figure on labelled data follows from these rows: metrics from all of them, confidence
        intervals from resampled ones, a subgroup's metric from the subgroup's. Some names have a
        meaning to the reports: "target" and "predicted" are classes, int64 [samples].
        """
        return {}

    def collect(self, batches: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
        """Join the `statistics` of all batches of a split into rows that stand for themselves.

        A task that judges a sample among the others, as retrieval does, overrides it: it turns
        embeddings into each query's rank here, where all documents are there, so that rows that
        are resampled or selected later keep their ranks.
        """
        import torch

        names = batches[0] if batches else ()
        return {name: torch.cat([batch[name] for batch in batches]) for name in names}

    def metrics(self, statistics: Mapping[str, Tensor]) -> dict[str, float]:
        """Return every metric of the task by name, from rows of `collect`."""
        return {}

    def label_names(self) -> Sequence[str]:
        """Return the names of the classes that "target" and "predicted" count; empty if none."""
        return ()

    def groups(self, split: Split) -> Mapping[str, Sequence[str]]:
        """Return each sample's subgroup by the name of what divides them, such as "language"."""
        return {}

    def rewritten(
        self, split: Split, rows: Sequence[int], change: Callable[[str], str]
    ) -> Batch | None:
        """Return samples with their text changed, the targets as they are, to see what it does.

        None if they have no text, or their targets follow from it.
        """
        return None

    def imagined(
        self, module: nn.Module, samples: int, generator: torch.Generator
    ) -> Sequence[Any] | None:
        """Return inputs that a model makes up by itself, as text it writes; no data is looked at.

        None if it cannot.

        Args:
            module: the model.
            samples: how many.
            generator: on the CPU.

        Returns:
            Batches, as `batches` returns them.
        """
        return None

    def show(self, split: Split, row: int) -> str | None:
        """Return a sample for people: text, or an image as a `data:image/png` address."""
        return None

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


def _on_copies(forward: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Return a `forward` that hands copies to the module: samples are used again and again."""

    @wraps(forward)
    def run(self: Task, module: nn.Module, inputs: Any) -> Tensor:
        if _given_away.get():
            return forward(self, module, inputs)
        from zoopress.tasks.batches import copied

        with inputs_given_away():  # where a subclass calls its base's, one copy is enough
            return forward(self, module, copied(inputs))

    return run


def open_task(card: Card, folder: Path, plugins: Plugins) -> Task:
    """Make a card's task, which sees the plugins of the run.

    Raises:
        CardError: if the card's data does not fit the task.
        PluginError: if no plugin registers it.
    """
    task: Task = plugins.resolve("tasks", card.task)(card, folder)
    task.plugins = plugins
    return task
