"""Let gradients flow to a model's weights, whatever state it is in, and leave no trace."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from zoopress.tasks.batches import map_tensors


@contextmanager
def gradients_of(module: nn.Module, parameters: Sequence[nn.Parameter]) -> Iterator[None]:
    """Let gradients flow to some parameters alone, in evaluation mode."""
    flags = [(parameter, parameter.requires_grad) for parameter in module.parameters()]
    modes = [(owner, owner.training) for owner in module.modules()]
    module.eval()
    module.requires_grad_(False)
    for parameter in parameters:
        parameter.requires_grad_(True)
    try:
        with torch.enable_grad():
            yield
    finally:
        for parameter, flag in flags:
            parameter.requires_grad_(flag)
        for owner, mode in modes:
            owner.training = mode


@contextmanager
def without_inference_tensors(module: nn.Module) -> Iterator[None]:
    """Put copies in the place of tensors that were made in inference mode.

    Autograd keeps no such tensor, be it a weight or a running mean, and none may need gradients.
    """
    copies: dict[int, Tensor] = {}
    before: list[tuple[nn.Module, str, Tensor]] = []

    def copy(tensor: Tensor) -> Tensor:
        if id(tensor) not in copies:
            made = tensor.detach().clone()
            parameter = isinstance(tensor, nn.Parameter)
            copies[id(tensor)] = nn.Parameter(made, requires_grad=False) if parameter else made
        return copies[id(tensor)]

    for owner in module.modules():
        for name, tensor in (*owner._parameters.items(), *owner._buffers.items()):
            if tensor is not None and tensor.is_inference():
                before.append((owner, name, tensor))
    try:
        for owner, name, tensor in before:
            setattr(owner, name, copy(tensor))
        yield
    finally:
        for owner, name, tensor in before:
            setattr(owner, name, tensor)


def without_inference(batch: object) -> object:
    """Return a batch whose tensors autograd may keep."""
    return map_tensors(batch, lambda _, t: t.clone() if t.is_inference() else t)
