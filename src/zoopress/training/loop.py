"""The training loop."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from zoopress.model import Model
from zoopress.task import Task
from zoopress.training.config import TrainingConfig
from zoopress.training.result import TrainingResult
from zoopress.training.term import Term

if TYPE_CHECKING:
    from zoopress.progress import Progress


def train(
    model: Model,
    task: Task,
    config: TrainingConfig,
    *,
    terms: Sequence[Term],
    task_weight: float,
    seed: int,
    device: torch.device,
    progress: Progress,
    checkpoint: Path,
) -> TrainingResult:
    """See `Context.train`."""
    raise NotImplementedError
