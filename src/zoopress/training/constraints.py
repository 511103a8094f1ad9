"""What holds in every step: pruned weights are zero, packed weights hold what can be stored."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Protocol

import torch
from torch import Tensor, nn

from zoopress.models.packing import packed_weights


class Constraint(Protocol):
    """Holds to something around each step of the optimizer."""

    def before_step(self) -> None:
        """Change gradients, before their norm is taken."""

    def after_step(self) -> None:
        """Change what the optimizer changed."""

    def tensors(self) -> dict[str, Tensor]:
        """Return what it keeps from step to step, for checkpoints."""

    def reached(self) -> bool:
        """Return whether it holds in full; weights from before that are never kept as the best."""


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

    def before_step(self) -> None:
        """Set gradients of pruned weights to zero, even those that are NaN."""
        for parameter, pruned in self._pruned:
            if parameter.grad is not None:
                parameter.grad.masked_fill_(pruned, 0.0)

    def after_step(self) -> None:
        """Set pruned weights to +0.0."""
        with torch.no_grad():
            for parameter, pruned in self._pruned:
                parameter.masked_fill_(pruned, 0.0)

    def tensors(self) -> dict[str, Tensor]:
        """Return nothing: masks never change."""
        return {}

    def reached(self) -> bool:
        """Return that it holds from the start."""
        return True


class TunedBuffers:
    """Learns a factor, at first 1, of each value of the buffers of packed weights.

    So a learning rate is a relative one, whatever the size of scales and centroids, and what is
    zero stays zero. The parameters that stand for the buffers always hold what the buffers could,
    so forward passes see what will be stored; the factors are in float32, so small steps add up.

    Args:
        parameters: what `tunable_parameters` gave, on their device.
    """

    def __init__(self, parameters: Mapping[nn.Parameter, torch.dtype]) -> None:
        self.factors = {
            parameter: nn.Parameter(torch.ones(parameter.numel(), device=parameter.device))
            for parameter in parameters
        }
        self._start = {parameter: parameter.detach().clone() for parameter in parameters}
        self._types = parameters

    def before_step(self) -> None:
        """Turn gradients of the values into gradients of the factors."""
        for parameter, factor in self.factors.items():
            if parameter.grad is not None:
                factor.grad = (parameter.grad * self._start[parameter]).flatten()
            parameter.grad = None

    def after_step(self) -> None:
        """Set the values to what the buffers can hold of start times factor."""
        with torch.no_grad():
            for parameter, factor in self.factors.items():
                value = self._start[parameter] * factor.view_as(parameter)
                parameter.copy_(value.to(self._types[parameter]))

    def tensors(self) -> dict[str, Tensor]:
        """Return the factors."""
        return {str(i): factor for i, factor in enumerate(self.factors.values())}

    def reached(self) -> bool:
        """Return that it holds from the start."""
        return True


@contextmanager
def tunable_parameters(
    module: nn.Module, wanted: bool
) -> Iterator[dict[nn.Parameter, torch.dtype]]:
    """Let float32 parameters stand for the tunable buffers of packed weights, under their names.

    When the context is left, the buffers are back, with the parameters' values. Tied buffers have
    one parameter.

    Args:
        module: the model.
        wanted: if not, nothing is done.

    Yields:
        The type of the buffer that each parameter stands for.
    """
    types: dict[nn.Parameter, torch.dtype] = {}
    shared: dict[tuple[int, torch.Size], nn.Parameter] = {}
    packed = list(packed_weights(module).values()) if wanted else []
    before = [dict(weight._buffers) for weight in packed]
    try:
        for weight, buffers in zip(packed, before, strict=True):
            for name in weight.tunable():
                buffer = buffers[name]
                assert buffer is not None, f"{name!r} is named as tunable, but not there"
                if not buffer.numel():
                    continue
                key = (buffer.data_ptr(), buffer.shape)
                if key not in shared:
                    value = buffer.detach().to(torch.promote_types(buffer.dtype, torch.float32))
                    shared[key] = nn.Parameter(value.clone())
                    types[shared[key]] = buffer.dtype
                del weight._buffers[name]
                weight._parameters[name] = shared[key]
        yield types
    finally:
        for weight, buffers in zip(packed, before, strict=True):
            for name, parameter in weight._parameters.items():
                buffer = buffers[name]
                assert buffer is not None
                assert parameter is not None
                with torch.no_grad():
                    buffer.copy_(parameter)
            weight._parameters.clear()
            weight._buffers.clear()  # so that they come back in their order
            weight._buffers.update(buffers)
            weight.changed()
