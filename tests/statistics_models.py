"""A context around a module, with inputs from a list, for tests of statistics."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from zoopress.models.model import Model
from zoopress.statistics import Shelf, Statistics
from zoopress.tasks import Task
from zoopress.tasks.task import Batch


class InputsTask(Task):
    """Runs a module on given inputs; labels, where there are some, are classes."""

    name = "inputs"
    metric = None

    def __init__(self, batches: list[Any], labels: list[Tensor] | None = None) -> None:
        self._given = [
            Batch(batch, None if labels is None else labels[i]) for i, batch in enumerate(batches)
        ]

    def make_samples(self, split: Any) -> Any:
        raise NotImplementedError

    def examples(self, split: Any) -> list[Batch]:
        return self._given

    def fingerprint(self) -> str:
        return "inputs"

    def forward(self, module: nn.Module, inputs: Any) -> Tensor:
        output: Tensor = module(inputs)
        return output

    def loss(self, output: Tensor, targets: Tensor) -> Tensor:
        return nn.functional.cross_entropy(output, targets)


def service(
    batches: list[Any],
    labels: list[Tensor] | None = None,
    shelf: Shelf | None = None,
    told: list[float] | None = None,
    seed: int = 0,
) -> Statistics:
    task = InputsTask(batches, labels)

    def progress(item: str, /, fraction: float | None = None) -> None:
        if told is not None and fraction is not None:
            told.append(fraction)

    return Statistics(task.call, lambda: task.batches("calibration"), task, progress, seed, shelf)


def seeded_model(module: nn.Module) -> Model:
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return Model(module.eval())


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))
