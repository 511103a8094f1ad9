"""A task on tensors in memory, and comparisons of models on it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from zoopress.cards import Card
from zoopress.evaluation.comparison import Comparison
from zoopress.evaluation.fidelity import run_all
from zoopress.models.model import Model
from zoopress.plugins import Plugins
from zoopress.tasks import Batch, Samples, Split, Task
from zoopress.tasks.batches import batch_length


def _rows(inputs: Any, rows: Sequence[int]) -> Any:
    if isinstance(inputs, dict):
        return {name: _rows(value, rows) for name, value in inputs.items()}
    if isinstance(inputs, tuple):
        return tuple(_rows(value, rows) for value in inputs)
    return inputs[list(rows)]


class _Held(Samples):
    def __init__(self, inputs: Any, targets: Tensor | None) -> None:
        self._inputs, self._targets = inputs, targets

    def __len__(self) -> int:
        return batch_length(self._inputs)

    def batch(self, rows: Sequence[int], generator: torch.Generator | None = None) -> Batch:
        targets = None if self._targets is None else self._targets[list(rows)]
        return Batch(_rows(self._inputs, rows), targets)


class HeldTask(Task):
    """Feeds tensors; with labels it classifies.

    Args:
        inputs: a tensor [samples, …], or such tensors in a dict or tuple.
        targets: int64 [samples].
        batch_size: of the test split.
    """

    name = "held"
    metric = "accuracy"

    def __init__(self, inputs: Any, targets: Tensor | None = None, batch_size: int = 32) -> None:
        data = {"random": {"0": {"shape": [1]}}, "batch_size": batch_size}
        card = Card.model_validate({"name": "held", "source": "path:x", "data": data})
        super().__init__(card, Path())
        self._held = _Held(inputs, targets)

    def make_samples(self, split: Split) -> Samples:
        return self._held

    def forward(self, module: nn.Module, inputs: Any) -> Tensor:
        if isinstance(inputs, dict):
            output = module(**inputs)
        else:
            output = module(*inputs) if isinstance(inputs, tuple) else module(inputs)
        result: Tensor = output[0] if isinstance(output, tuple) else output
        return result

    def fingerprint(self) -> str:
        return ""

    def loss(self, output: Tensor, targets: Any) -> Tensor:
        return nn.functional.cross_entropy(output, targets)

    def statistics(self, output: Tensor, targets: Any) -> dict[str, Tensor]:
        return {"target": targets, "predicted": output.argmax(1)}

    def metrics(self, statistics: Mapping[str, Tensor]) -> dict[str, float]:
        right = statistics["target"] == statistics["predicted"]
        return {"accuracy": float(right.double().mean())}


def compare(
    task: Task,
    original: nn.Module,
    compressed: nn.Module | Model,
    plugins: Plugins,
    artifact: Path = Path(),
) -> Comparison:
    """Run both models on a task's test split."""
    model = compressed if isinstance(compressed, Model) else Model(compressed.eval())
    runs = run_all(task, original.eval(), lambda *_: None), run_all(task, model.module)
    return Comparison(task, original, model, *runs, artifact, plugins)
