"""Which samples a step sees, and what its random numbers are.

Both follow from the seed and the step's number alone. So a run that goes on from a checkpoint needs
no more than that number to draw what it would have drawn, and looking at the validation split in
between changes nothing.
"""

from __future__ import annotations

import hashlib
import math
import random
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache

import numpy as np
import torch

from zoopress.training.config import TrainingConfig


def derived_seed(seed: int, *names: str | int) -> int:
    """Return a seed, 0 to 2⁶³ − 1, for a purpose of its own."""
    text = "/".join(map(str, (seed, *names)))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1


class Sampler:
    """Divides shuffled epochs into steps of the optimizer, and these into forward passes.

    The steps of an epoch differ by one sample at most, as do the passes of a step: a short last one
    would count its few samples more than others, and leave batch normalization without statistics.

    Args:
        samples: how many there are, at least 1.
        config: says how many at a time, and for how long.
        seed: of the shuffling.

    Attributes:
        steps_per_epoch: in how many steps every sample is seen once.
        steps: how many steps there are in all.
    """

    def __init__(self, samples: int, config: TrainingConfig, seed: int) -> None:
        self._samples, self._seed, self._pass = samples, seed, config.batch_size
        self.steps_per_epoch = config.steps_per_epoch(samples)
        self.steps = config.step_count(samples)
        self._shuffled = lru_cache(maxsize=1)(self._shuffle)

    def passes(self, step: int) -> list[list[int]]:
        """Return the samples of each forward pass of a step; the first step is 0."""
        epoch, position = divmod(step, self.steps_per_epoch)
        rows = self._shuffled(epoch)[position]
        return [part.tolist() for part in rows.tensor_split(math.ceil(len(rows) / self._pass))]

    def _shuffle(self, epoch: int) -> tuple[torch.Tensor, ...]:
        generator = torch.Generator().manual_seed(derived_seed(self._seed, "epoch", epoch))
        order = torch.randperm(self._samples, generator=generator)
        return order.tensor_split(self.steps_per_epoch)


def seed_everything(seed: int) -> None:
    """Seed every global source of random numbers, such as dropout draws from."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


@contextmanager
def own_randomness(seed: int, device: torch.device) -> Iterator[None]:
    """Seed the global sources of random numbers, and leave them as they were before."""
    python, numpy = random.getstate(), np.random.get_state()
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices):
        try:
            seed_everything(seed)
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)
