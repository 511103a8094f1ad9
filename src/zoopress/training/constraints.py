"""What training must not change: pruned weights stay zero, packed weights stay as they are."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn

from zoopress.packing import PackedWeight, packed_weights


class PrunedWeights:
    """Keeps the weights that masks prune at zero.

    Gradients are masked before the optimizer sees them, so its moments stay zero there, and so do
    the norm that gradients are scaled to and what momentum carries on. Weights are masked after
    each step all the same: some optimizer may move a weight without a gradient.

    Args:
        names: the names of each parameter that is trained.
        masks: by name of a tensor, True where a weight is kept; those of others are passed over.
    """

    def __init__(
        self, names: Mapping[nn.Parameter, list[str]], masks: Mapping[str, Tensor]
    ) -> None:
        self._pruned: list[tuple[nn.Parameter, Tensor]] = []
        for parameter, group in names.items():
            found = [masks[name] for name in group if name in masks]
            if found:
                pruned = ~torch.stack(found).all(0)
                self._pruned.append((parameter, pruned.to(parameter.device)))

    def mask_gradients(self) -> None:
        """Set gradients of pruned weights to zero, even those that are NaN."""
        for parameter, pruned in self._pruned:
            if parameter.grad is not None:
                parameter.grad.masked_fill_(pruned, 0.0)

    def mask_weights(self) -> None:
        """Set pruned weights to +0.0."""
        with torch.no_grad():
            for parameter, pruned in self._pruned:
                parameter.masked_fill_(pruned, 0.0)


@contextmanager
def differentiable(module: nn.Module) -> Iterator[None]:
    """Let gradients flow through packed weights to what is below them.

    Kernels that read packed weights have no derivative, so products are those of the dense weight,
    made for each forward pass.
    """
    packed = packed_weights(module).values()
    for weight in packed:
        weight.linear = partial(_dense_linear, weight)  # type: ignore[method-assign]
    try:
        yield
    finally:
        for weight in packed:
            del weight.linear


def _dense_linear(weight: PackedWeight, input: Tensor, bias: Tensor | None) -> Tensor:
    return nn.functional.linear(input, weight.dense().to(input.dtype), bias)
