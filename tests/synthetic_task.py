"""A small labelled task on tensors, and a short way to train on it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoopress.cards import Card
from zoopress.models.model import Model
from zoopress.tasks import Batch, Samples, Split, Task
from zoopress.techniques import Context
from zoopress.training.config import TrainingConfig
from zoopress.training.result import TrainingResult
from zoopress.training.term import Term

SIZES: dict[Split, int] = {"calibration": 8, "training": 96, "validation": 40, "test": 40}
FEATURES, CLASSES = 6, 3


class Rows(Samples):
    """Samples in memory; with a generator, inputs get noise."""

    def __init__(self, inputs: Tensor, targets: Tensor | None, noise: float = 0.0) -> None:
        self._inputs, self._targets, self._noise = inputs, targets, noise

    def __len__(self) -> int:
        return len(self._inputs)

    def batch(self, rows: Sequence[int], generator: torch.Generator | None = None) -> Batch:
        inputs = self._inputs[list(rows)]
        if generator is not None and self._noise:
            inputs = inputs + self._noise * torch.randn(inputs.shape, generator=generator)
        return Batch({"x": inputs}, None if self._targets is None else self._targets[list(rows)])


class Classification(Task):
    """Tells classes of points apart, or predicts `target(inputs)`.

    Args:
        make_inputs: returns so many inputs, drawn from a generator.
        target: returns the labels of inputs; None: there are none.
        sizes: of the splits.
        noise: of augmentation.
        metric: None: only the loss counts.
    """

    name = "synthetic"

    def __init__(
        self,
        make_inputs: Callable[[int, torch.Generator], Tensor] | None = None,
        target: Callable[[Tensor], Tensor] | None = lambda x: x[:, :CLASSES].argmax(1),
        sizes: Mapping[Split, int] = SIZES,
        noise: float = 0.0,
        metric: str | None = "accuracy",
        higher_is_better: bool = True,
    ) -> None:
        data = {"random": {"0": {"shape": [FEATURES]}}, "batch_size": 16}
        super().__init__(Card(name="synthetic", source="path:none", data=data), Path())
        self._make = make_inputs or (lambda n, g: torch.randn(n, FEATURES, generator=g))
        self._target, self._sizes, self._noise = target, {**SIZES, **sizes}, noise
        self.metric = metric  # type: ignore[misc]
        self.higher_is_better = higher_is_better  # type: ignore[misc]
        self.calls = 0

    def make_samples(self, split: Split) -> Samples:
        generator = torch.Generator().manual_seed(list(SIZES).index(split))
        inputs = self._make(self._sizes[split], generator)
        return Rows(inputs, self._target(inputs) if self._target else None, self._noise)

    def forward(self, module: nn.Module, inputs: Any) -> Tensor:
        output: Any = module(inputs["x"])
        result: Tensor = getattr(output, "logits", output)
        return result

    def fingerprint(self) -> str:
        return f"{self._sizes} {self._noise}"

    def loss(self, output: Tensor, targets: Any) -> Tensor:
        self.calls += 1
        return F.cross_entropy(output, targets)

    def statistics(self, output: Tensor, targets: Any) -> dict[str, Tensor]:
        return {"target": targets, "predicted": output.argmax(1)}

    def metrics(self, statistics: Mapping[str, Tensor]) -> dict[str, float]:
        right = statistics["target"] == statistics["predicted"]
        return {"accuracy": float(right.double().mean())} if self.metric else {}


class Weights(Term):
    """The mean square of outputs."""

    def __init__(self, weight: float = 1.0) -> None:
        super().__init__("outputs", weight)

    def forward(self, batch: Batch, output: Tensor) -> Tensor:
        return output.square().mean()


def perceptron(seed: int = 0, dropout: float = 0.0) -> nn.Module:
    """Build a perceptron with batch normalization."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Linear(FEATURES, 16),
            nn.BatchNorm1d(16),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Linear(16, 16),
            nn.ReLU(),
            nn.Linear(16, CLASSES),
        ).eval()


def run(
    model: Model | nn.Module,
    folder: Path,
    task: Task | None = None,
    terms: Sequence[Term] = (),
    task_weight: float = 1.0,
    seed: int = 0,
    progress: Callable[..., None] = lambda item, fraction=None: None,
    **config: Any,
) -> TrainingResult:
    """Train as a technique does."""
    context = Context(
        seed=seed,
        device=torch.device("cpu"),
        batches=lambda: [],
        call=lambda module, batch: batch,
        progress=progress,
        checkpoint=folder,
        task=task or Classification(),
    )
    wanted = TrainingConfig(**{"epochs": 1, "batch_size": 16, "learning_rate": 0.01, **config})
    model = model if isinstance(model, Model) else Model(model)
    return context.train(model, wanted, terms, task_weight)


def same(a: nn.Module, b: nn.Module) -> bool:
    """Return whether two modules have the same tensors, bit for bit."""
    one, other = a.state_dict(), b.state_dict()
    return one.keys() == other.keys() and all(
        torch.equal(tensor, other[name]) for name, tensor in one.items()
    )
