"""Batches of inputs: a tensor, or tensors in a dict, tuple or list."""

from __future__ import annotations

from typing import Any

from torch import Tensor


def first_samples(batch: Any, count: int) -> Any:
    """Return the first samples of a batch: a tensor, or tensors in a dict, tuple or list."""
    if isinstance(batch, Tensor):
        return batch[:count]
    if isinstance(batch, dict):
        return {key: first_samples(value, count) for key, value in batch.items()}
    if isinstance(batch, (tuple, list)):
        return type(batch)(first_samples(value, count) for value in batch)
    return batch


def batch_length(batch: Any) -> int:
    """Return how many samples a batch has."""
    if isinstance(batch, Tensor):
        return int(batch.shape[0])
    values = batch.values() if isinstance(batch, dict) else batch
    return next(batch_length(value) for value in values)
