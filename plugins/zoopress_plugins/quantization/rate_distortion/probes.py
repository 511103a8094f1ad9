"""Inputs that are made up, where there are none to learn from."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from zoopress.tasks.batches import map_tensors


def made_up(batch: Any, generator: torch.Generator) -> Any:
    """Return random inputs of a batch's shapes and types.

    Floats are normal with the batch's mean and deviation; integers are drawn evenly from 0 to the
    batch's largest, but those of masks and segments, which are 0 or 1 alone, stay as they are.
    """

    def change(_: str, tensor: Tensor) -> Tensor:
        if tensor.is_floating_point():
            noise = torch.randn(tensor.shape, generator=generator)
            values = tensor.float()
            deviation = float(values.std(correction=0)) if values.numel() else 0.0
            return (float(values.mean()) + deviation * noise).to(tensor) if deviation else tensor
        if tensor.dtype == torch.bool or not tensor.numel() or int(tensor.max()) <= 1:
            return tensor
        top = int(tensor.max()) + 1
        return torch.randint(top, tensor.shape, generator=generator, dtype=tensor.dtype)

    return map_tensors(batch, change)
