"""Calls of models that draw random numbers: each sees the same ones."""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def seeded(seed: int = 0) -> Iterator[None]:
    """Seed every global generator of random numbers, and put them back as they were.

    So a model with noise in it is compared on the same noise, and whoever calls it, such as a
    technique, goes on with random numbers of its own.
    """
    numpy = sys.modules.get("numpy")
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []
    pythons = random.getstate()
    numpys = None if numpy is None else numpy.random.get_state()
    with torch.random.fork_rng(devices):
        _seed_torch(seed)
        random.seed(seed)
        if numpy is not None:
            numpy.random.seed(seed)
        try:
            yield
        finally:
            random.setstate(pythons)
            if numpy is not None:
                numpy.random.set_state(numpys)


def _seed_torch(seed: int) -> None:
    """Seed torch's generators in use.

    `torch.manual_seed` also notes the seed, with a stack trace, for each kind of device that has
    not begun yet: with every call, for good, and in more time than a small model needs.
    """
    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(seed)
    if torch.backends.mps.is_available():
        torch.mps.manual_seed(seed)
