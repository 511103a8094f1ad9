"""The running statistics of batch normalization."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm


def batch_norms(module: nn.Module) -> list[_BatchNorm]:
    """Return the layers that keep running statistics."""
    return [
        layer
        for layer in module.modules()
        if isinstance(layer, _BatchNorm) and layer._buffers.get("running_mean") is not None
    ]


@contextmanager
def statistics_kept(module: nn.Module) -> Iterator[None]:
    """Let passes leave running statistics as they are, in training mode too."""
    layers = batch_norms(module)
    before = [(layer.momentum, layer._buffers.get("num_batches_tracked")) for layer in layers]
    counts = [None if count is None else count.clone() for _, count in before]
    try:
        for layer in layers:
            layer.momentum = 0.0
        yield
    finally:
        for layer, (momentum, count), old in zip(layers, before, counts, strict=True):
            layer.momentum = momentum
            if count is not None and old is not None:
                count.copy_(old)


class _Moments:
    """Gathers the mean and the variance of each channel of a layer's inputs."""

    def __init__(self) -> None:
        self.count = 0
        self.mean = torch.zeros(())
        self.squares = torch.zeros(())  # summed squared distances from the mean

    def add(self, layer: nn.Module, arguments: tuple[Any, ...]) -> None:
        """Add inputs [samples, channels, …]; called before the layer's forward pass."""
        values = arguments[0].detach().transpose(0, 1).flatten(1).double()
        count, mean = values.shape[1], values.mean(1)
        total = self.count + count
        distance = mean - self.mean
        squares = (values - mean[:, None]).square().sum(1)
        self.squares = self.squares + squares + distance.square() * (self.count * count / total)
        self.mean = self.mean + distance * (count / total)
        self.count = total


def recalibrate(module: nn.Module, run: Callable[[], None]) -> None:
    """Measure the running statistics anew: mean and unbiased variance of all that comes by.

    They are those of all values together, not a mean of the batches' variances, which leaves out
    how the batches differ. Every layer normalizes by the batch meanwhile, so each sees what it
    would see in training.

    Args:
        module: in evaluation mode; left so.
        run: passes training batches through it.
    """
    layers = batch_norms(module)
    moments = [_Moments() for _ in layers]
    momenta = [layer.momentum for layer in layers]
    hooks = [
        layer.register_forward_pre_hook(one.add) for layer, one in zip(layers, moments, strict=True)
    ]
    try:
        for layer in layers:
            layer.train()
            layer.momentum = 0.0  # the batch normalizes, the running statistics stay
        with torch.no_grad():
            run()
    finally:
        for hook in hooks:
            hook.remove()
        for layer, momentum in zip(layers, momenta, strict=True):
            layer.momentum = momentum
            layer.eval()
    with torch.no_grad():
        for layer, one in zip(layers, moments, strict=True):
            if one.count > 1 and layer.running_mean is not None and layer.running_var is not None:
                layer.running_mean.copy_(one.mean)
                layer.running_var.copy_(one.squares / (one.count - 1))
