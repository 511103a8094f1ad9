"""A compressed model beside its original."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from torch import nn

from zoopress.evaluation.fidelity import Run
from zoopress.tasks import Task

if TYPE_CHECKING:
    from zoopress.models.model import Model
    from zoopress.plugins import Plugins


@dataclass(frozen=True)
class Comparison:
    """Two models on one task; a measure looks at it and returns plain data.

    Attributes:
        task: feeds, runs and judges both.
        original: the model as it came.
        model: what was made of it, with its masks; `compressed` is its module.
        original_run: the original on the test split.
        compressed_run: the compressed model on the test split.
        artifact: the compressed model's folder.
        plugins: what is registered.
        seed: random choices follow from it.
    """

    task: Task
    original: nn.Module
    model: Model
    original_run: Run
    compressed_run: Run
    artifact: Path
    plugins: Plugins
    seed: int = 0

    @property
    def compressed(self) -> nn.Module:
        """The compressed network, as users get it."""
        return self.model.module
