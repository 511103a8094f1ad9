"""Batches of inputs: a tensor, or tensors in a dict, tuple or list."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from torch import Tensor

if TYPE_CHECKING:
    from zoopress.tasks import Task


def typical_batch(task: Task) -> Any:
    """Return inputs of the test split: the batch in the middle, where batches differ in length."""
    batches = task.batches("test")
    return batches[len(batches) // 2]


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


def copied(batch: Any) -> Any:
    """Return a batch whose tensors have memory of their own; gradients flow to the first ones."""
    if isinstance(batch, Tensor):
        return batch.clone()
    if isinstance(batch, Mapping):
        if type(batch) is dict:
            return {key: copied(value) for key, value in batch.items()}
        other: Any = copy.copy(batch)  # the containers that tokenizers return have methods
        for key, value in batch.items():
            other[key] = copied(value)
        return other
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return type(batch)(*map(copied, batch))
    if isinstance(batch, (tuple, list)):
        return type(batch)(map(copied, batch))
    return batch


def map_tensors(batch: Any, change: Callable[[str, Tensor], Any], name: str = "") -> Any:
    """Return a batch with each tensor changed by a function, which is told its dotted name."""
    if isinstance(batch, Tensor):
        return change(name, batch)
    prefix = f"{name}." if name else ""
    if isinstance(batch, dict):
        return {key: map_tensors(value, change, f"{prefix}{key}") for key, value in batch.items()}
    if isinstance(batch, (tuple, list)):
        return type(batch)(
            map_tensors(value, change, f"{prefix}{i}") for i, value in enumerate(batch)
        )
    return batch


def named_tensors(batch: Any) -> dict[str, Tensor]:
    """Return a batch's tensors by their dotted names; that of a tensor alone is empty."""
    found: dict[str, Tensor] = {}
    map_tensors(batch, found.__setitem__)
    return found
