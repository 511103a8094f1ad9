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
        torch.manual_seed(seed)
        random.seed(seed)
        if numpy is not None:
            numpy.random.seed(seed)
        try:
            yield
        finally:
            random.setstate(pythons)
            if numpy is not None:
                numpy.random.set_state(numpys)
