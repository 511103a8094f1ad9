"""Fixed point: after every step weights are rounded up or down at random, right in the mean.

Source: Gupta et al. 2015, arXiv:1502.02551 (limited numerical precision), sections 3.1 and 3.2.
"""

from __future__ import annotations

import torch
from torch import Tensor

from zoopress.models.weights import Weight
from zoopress_plugins.quantization.packing_weights import Form
from zoopress_plugins.quantization.trained.quantizer import WeightQuantizer, limits
from zoopress_plugins.quantization.trained.straight_through import passing
from zoopress_plugins.quantization.trained.weights.learned_step import uniform_form


def stochastically_rounded(values: Tensor) -> Tensor:
    """Round to a neighbouring whole number, with a mean that is the value itself.

    Source: section 3.1, "stochastic rounding".
    """
    return (values + torch.rand_like(values)).floor()


class StochasticRounding(WeightQuantizer):
    """Keeps the weights themselves in fixed point: no finer shadow outlives a step.

    The step is a power of two, the least at which no weight lies outside as training begins.
    """

    step: Tensor

    def __init__(self, weight: Weight, bits: int) -> None:
        super().__init__(weight, bits)
        largest = self.shadow.detach().abs().amax().float() / limits(bits, True)[1]
        power = largest.clamp_min(2.0**-100).log2().ceil()
        self.register_buffer("step", power.exp2().view(1, 1))
        with torch.no_grad():
            step = float(self.step)
            levels = (self.shadow / step).round_().clamp_(*limits(bits, True))
            self.shadow.copy_(levels * step)

    def forward(self) -> Tensor:
        """Return the weights, which are on the grid; gradients pass within its range."""
        matrix = self.matrix()
        low, high = (end * float(self.step) for end in limits(self.bits, True))
        values = self._levels() * self.step.to(matrix.dtype)
        return passing(values, matrix.clamp(low, high))

    def form(self) -> Form:
        """Return fixed-point numbers as codes."""
        step = self.step.expand(len(self.matrix()), 1)
        return uniform_form(self._levels(), step.contiguous(), self.bits)

    def after_step(self) -> None:
        """Round what the optimizer made to the grid, at random."""
        step = float(self.step)
        low, high = limits(self.bits, True)
        with torch.no_grad():
            levels = stochastically_rounded(self.shadow / step).clamp_(low, high)
            self.shadow.copy_(levels * step)

    def _levels(self) -> Tensor:
        return (self.matrix().detach() / self.step).round().clamp(*limits(self.bits, True))
