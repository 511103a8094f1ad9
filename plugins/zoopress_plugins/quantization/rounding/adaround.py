"""AdaRound: learn of each weight whether it is rounded up or down.

Each weight is floor(w / s) + h(V) steps, where h is a sigmoid stretched and cut off to [0, 1], and
a regularizer drives h to its ends. What is lowered is the error of the layer's outputs.

Source: Nagel et al. 2020, arXiv:2004.10568, eqs. 21 to 24.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from zoopress.config import Config
from zoopress.techniques.rounder import Matrix, Rounded, Rounder, level_limits, spread

if TYPE_CHECKING:
    from torch import Tensor

STRETCH = 1.2
SHIFT = -0.1
"""ζ − γ and γ of the paper: h reaches 0 and 1 at finite V."""


class AdaRoundOptions(Config):
    """How to learn."""

    iterations: int = Field(default=500, ge=1, description="steps of Adam")
    learning_rate: float = Field(default=0.1, gt=0, description="of the roundings, at first")
    strength: float = Field(
        default=1.0, gt=0, description="of the regularizer, beside the error of nearest points"
    )
    warm_up: float = Field(
        default=0.2, ge=0, lt=1, description="share of the steps without the regularizer"
    )
    sharpness: tuple[float, float] = Field(
        default=(20.0, 2.0), description="its exponent β, at first and at the end"
    )


def stretched_sigmoid(v: Tensor) -> Tensor:
    """Return h(V), from 0 to 1."""
    return (v.sigmoid() * STRETCH + SHIFT).clamp(0, 1)


def indecision(h: Tensor, beta: float) -> Tensor:
    """Return the mean of 1 − |2h − 1|^β: 0 where every h is 0 or 1."""
    return (1 - (2 * h - 1).abs().pow(beta)).mean()


class AdaRound(Rounder[AdaRoundOptions]):
    """Learn which weights to round up and which down."""

    name = "adaround"
    config_type = AdaRoundOptions
    needs_inputs = True

    def round(self, matrix: Matrix) -> Rounded:
        """Return the learned rounding; a row that nearest points serve better keeps those."""
        import torch

        from zoopress_plugins.quantization.rounding.learned import Task, descended

        config, task = self.config, Task(matrix)
        start = task.start
        low, high = level_limits(matrix.bits, matrix.symmetric)
        scale = spread(start.scale.float(), matrix)
        zero = torch.zeros_like(scale)
        if start.zero_point is not None:
            zero = spread(start.zero_point.float(), matrix)
        steps = matrix.values.float() / scale
        # Of weights beyond the range no rounding is inside; they stay at its end.
        floor = torch.minimum(torch.maximum(steps.floor(), low - zero), high - zero - 1)
        kept = torch.ones_like(steps) if matrix.keep is None else matrix.keep.float()
        share = ((steps - floor).clamp(0.01, 0.99) - SHIFT) / STRETCH
        v = torch.logit(share).clone().requires_grad_()

        def loss(done: float) -> Tensor:
            h = stretched_sigmoid(v)
            cost = task.cost((floor + h) * kept * scale).mean()
            if done < config.warm_up:
                return cost
            first, last = config.sharpness
            rest = (done - config.warm_up) / (1 - config.warm_up)
            beta = last + (first - last) * (1 - rest)
            return cost + config.strength * indecision(h, beta)

        descended([(v, config.learning_rate)], config.iterations, loss)
        levels = ((floor + (v.detach() >= 0)) * kept + zero).clamp(low, high)
        return task.better(start, Rounded(levels, start.scale, start.zero_point))
