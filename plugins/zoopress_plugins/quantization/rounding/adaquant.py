"""AdaQuant: weights, scales and zero points of a layer are tuned together before rounding.

The weights are not bound to the two points beside them, as AdaRound's are: gradients pass through
the rounding, and V, which is added to the weights, scales and zero points all move so that the
layer's outputs err least.

Source: Hubara et al. 2020, arXiv:2006.10518, eq. 2. The gradient of a scale is LSQ's: Esser et al.
2019, arXiv:1902.08153.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from zoopress.config import Config
from zoopress.techniques.rounder import Matrix, Rounded, Rounder, level_limits, spread

if TYPE_CHECKING:
    from torch import Tensor


class AdaQuantOptions(Config):
    """How to learn."""

    iterations: int = Field(default=300, ge=1, description="steps of Adam")
    learning_rate: float = Field(default=0.05, gt=0, description="of weights, in steps of the grid")
    scale_learning_rate: float = Field(
        default=2e-3, ge=0, description="of scales, relative to themselves; 0 leaves them"
    )
    zero_learning_rate: float = Field(
        default=0.02, ge=0, description="of zero points, in steps; 0 leaves them"
    )


class AdaQuant(Rounder[AdaQuantOptions]):
    """Tune weights, scales and zero points so that outputs err least."""

    name = "adaquant"
    config_type = AdaQuantOptions
    needs_inputs = True

    def round(self, matrix: Matrix) -> Rounded:
        """Return of each row the best of all steps, nearest points included."""
        import torch

        from zoopress_plugins.quantization.rounding.learned import (
            Task,
            descended,
            rounded_straight,
        )
        from zoopress_plugins.quantization.rounding.uniform_grid import storable

        config, task = self.config, Task(matrix)
        start = task.start
        low, high = level_limits(matrix.bits, matrix.symmetric)
        first = start.scale.float()
        zero_first = torch.zeros_like(first) if start.zero_point is None else start.zero_point
        v = torch.zeros_like(matrix.values).requires_grad_()
        growth = torch.zeros_like(first).requires_grad_()
        shift = torch.zeros_like(first).requires_grad_()
        groups = [(v, config.learning_rate)]
        if config.scale_learning_rate:
            groups.append((growth, config.scale_learning_rate))
        if config.zero_learning_rate and not matrix.symmetric:
            groups.append((shift, config.zero_learning_rate))
        best, least = start, torch.ones(len(first))

        def loss(done: float) -> Tensor:
            nonlocal best, least
            free = first * growth.exp()
            scale = free + (storable(free) - free).detach()
            zero = rounded_straight((zero_first.float() + shift).clamp(0, max(high, 0)))
            if matrix.symmetric:
                zero = torch.zeros_like(first)
            each, zeros = spread(scale, matrix), spread(zero, matrix)
            steps = rounded_straight(matrix.values / each + v)
            levels = (steps + zeros).clamp(low, high)
            if matrix.keep is not None:
                levels = torch.where(matrix.keep, levels, zeros)
            cost = task.cost((levels - zeros) * each)
            better = (cost.detach() < least)[:, None]
            if bool(better.any()):
                least = torch.minimum(least, cost.detach())
                point = None
                if best.zero_point is not None:
                    point = torch.where(better, zero.detach(), best.zero_point.float())
                best = Rounded(
                    torch.where(better, levels.detach(), best.levels.float()),
                    torch.where(better, scale.detach().bfloat16(), best.scale),
                    point,
                )
            return cost.mean()

        descended(groups, config.iterations, loss)
        return best
