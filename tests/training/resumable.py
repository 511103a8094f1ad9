"""Trainings that are killed: `python resumable.py CONFIG FOLDER:BATCH:WRITE…`.

Each FOLDER:BATCH:WRITE is a process of its own, one after the other, that trains and writes a
checkpoint after every step. It kills itself with SIGKILL when it reads batch BATCH, in the middle
of a step, or when it has written half of checkpoint WRITE; with 0 it does not. Prints how each
ended, as `os.waitpid` says it.
"""

from __future__ import annotations

import itertools
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
import torch._dynamo  # which optimizers import: once here, and not in every process
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parent.parent))

from safetensors.torch import save_file

from synthetic_task import CLASSES, FEATURES, Classification, Rows, run
from zoopress.models.model import Model
from zoopress.plugins import load_plugins
from zoopress.tasks import Batch, Samples, Split
from zoopress.techniques import Context
from zoopress.training import checkpoint
from zoopress.training.term import Term
from zoopress_plugins.quantization.weight_quantization import (
    WeightQuantization,
    WeightQuantizationConfig,
)

CONFIGS = {
    "sgd": {"optimizer": "sgd", "momentum": 0.9, "schedule": "one_cycle", "accumulate": 2},
    "adamw": {"optimizer": "adamw", "batch_norm": "recalibrate", "patience": 6},
    "lora": {"lora": {"rank": 2, "dropout": 0.1}, "learning_rates": {"1.*": 0.5}},
    "tuned": {"packed": "tune", "learning_rate": 0.003, "learning_rates": {"*.scale": 3}},
}


_batches = itertools.count(1)
_deadly_batch = 0


class Dying(Rows):
    def batch(self, rows: Sequence[int], generator: torch.Generator | None = None) -> Batch:
        if next(_batches) == _deadly_batch:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().batch(rows, generator)


class Task(Classification):
    def make_samples(self, split: Split) -> Samples:
        samples = super().make_samples(split)
        assert isinstance(samples, Rows)
        samples.__class__ = Dying
        return samples


class Adapter(Term):
    """A term with parameters, a buffer and randomness of its own."""

    def __init__(self) -> None:
        super().__init__("adapter", 0.3)
        self.layer = nn.Linear(CLASSES, 2)
        self.drop = nn.Dropout(0.2)
        self.register_buffer("mean", torch.zeros(2))

    def forward(self, batch: Batch, output: Tensor) -> Tensor:
        found = self.layer(self.drop(output))
        if self.training:
            self.mean.mul_(0.9).add_(found.detach().mean(0), alpha=0.1)
        return (found - self.mean - batch.inputs["x"][:, :2]).square().mean()


def build(packed: bool) -> Model:
    torch.manual_seed(5)
    model = Model(
        nn.Sequential(
            nn.Linear(FEATURES, 16),
            nn.BatchNorm1d(16),
            nn.ReLU(),
            nn.Dropout(0.3),
            nn.Linear(16, 16),
            nn.ReLU(),
            nn.Linear(16, CLASSES),
        ).eval(),
        load_plugins().layers if packed else {},
    )
    weight = next(model.weights())
    model.mask(weight, torch.rand(weight.parameter.shape) > 0.3)
    if packed:
        context = Context(0, torch.device("cpu"), list, lambda m, b: m(b), lambda *_: None, Path())
        WeightQuantization(WeightQuantizationConfig(bits=3)).apply(model, context)
    return model


def train(config: str, folder: Path, deadly_batch: int, deadly_write: int) -> None:
    global _deadly_batch
    _deadly_batch = deadly_batch
    checkpoint.SECONDS, checkpoint.SHARE = 0.0, 1e9
    plain, writes = checkpoint.save_file, itertools.count(1)

    def dying(tensors: dict[str, Tensor], file: Path, metadata: dict[str, str]) -> None:
        plain(tensors, file, metadata)
        if next(writes) == deadly_write:
            with open(file, "r+b") as stream:
                stream.truncate(file.stat().st_size // 2)
            os.kill(os.getpid(), signal.SIGKILL)

    checkpoint.save_file = dying  # type: ignore[assignment]
    torch.manual_seed(6)
    model = build(config == "tuned")
    result = run(
        model, folder, Task(noise=0.2), [Adapter()], epochs=3, evaluations=7, **CONFIGS[config]
    )
    save_file(
        {name: tensor.clone() for name, tensor in model.module.state_dict().items()},
        folder / "done.safetensors",
        {"result": repr((result.losses, result.evaluations, result.best_step, result.steps))},
    )


def main() -> None:
    for job in sys.argv[2:]:
        folder, batch, write = job.rsplit(":", 2)
        # Forked before anything is computed, so nothing is shared but what was imported.
        process = os.fork()
        if process == 0:
            train(sys.argv[1], Path(folder), int(batch), int(write))
            os._exit(0)
        print(os.waitpid(process, 0)[1], flush=True)


if __name__ == "__main__":
    main()
