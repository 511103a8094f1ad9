"""What rounders that learn share: a start, steps of Adam, and the best of what was seen.

The error of a layer's outputs over all calibration inputs is tr(E H Eᵀ), whatever their number; so
each step sees all of them at once, and rows do not depend on each other: the best of each is kept.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from zoopress.techniques.rounder import Matrix, Rounded
from zoopress_plugins.quantization.rounding.output_error import (
    better_rows,
    damped,
    output_error,
    start_of,
)
from zoopress_plugins.quantization.rounding.uniform_grid import dequantized

DAMPING = 0.01
"""As in GPTQ: no input is sure to stay silent."""


class Straight(torch.autograd.Function):
    """Round to whole numbers; gradients pass as if nothing was rounded.

    Source: Bengio et al. 2013, arXiv:1308.3432.
    """

    @staticmethod
    def forward(context: object, values: Tensor) -> Tensor:
        """Round."""
        return values.round()

    @staticmethod
    def backward(context: object, *gradients: Tensor) -> Tensor:
        """Pass gradients on."""
        return gradients[0]


def rounded_straight(values: Tensor) -> Tensor:
    """Return whole numbers, with the gradient of the values."""
    result: Tensor = Straight.apply(values)  # type: ignore[no-untyped-call]
    return result


class Task:
    """A matrix, the inputs that errors are weighed by, and the nearest points to start from.

    Attributes:
        matrix: what is rounded.
        inputs: [in, in] or [in], damped.
        start: nearest points.
        unit: [out], what each row's error costs there; positive.
    """

    def __init__(self, matrix: Matrix) -> None:
        assert matrix.inputs is not None, "a rounder that needs inputs has some"
        self.matrix = matrix
        self.inputs = damped(matrix.inputs.float().clone(), DAMPING)
        self.start = start_of(matrix)
        cost = output_error(matrix.values - dequantized(self.start, matrix), self.inputs)
        self.unit = cost.clamp(min=1e-30)

    def cost(self, values: Tensor) -> Tensor:
        """Return what the rows' errors cost, relative to the start's: [out]."""
        return output_error(self.matrix.values - values, self.inputs) / self.unit

    def better(self, first: Rounded, second: Rounded) -> Rounded:
        """Return of each row the better of two."""
        return better_rows(self.matrix, first, second, self.inputs)


def descended(
    groups: Sequence[tuple[Tensor, float]], iterations: int, loss: Callable[[float], Tensor]
) -> None:
    """Lower a loss by Adam, with learning rates that fall to 0 along a cosine.

    Args:
        groups: parameters, with gradients, and their learning rates.
        iterations: how many steps.
        loss: given how much is done, from 0 to 1, returns what to lower.
    """
    with torch.enable_grad(), torch.inference_mode(False):
        optimizer = torch.optim.Adam([{"params": [p], "lr": rate} for p, rate in groups])
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, iterations)
        for step in range(iterations):
            optimizer.zero_grad()
            torch.autograd.backward(loss(step / iterations))
            optimizer.step()
            schedule.step()
