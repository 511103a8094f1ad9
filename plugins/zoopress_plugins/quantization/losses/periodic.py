"""A periodic penalty: weights are pulled to the levels that they will be rounded to.

Sources: Elthakeb et al. 2019, arXiv:1905.01416, section 3 (SinReQ, sin²); Naumov et al. 2018,
arXiv:1811.09862 (periodic functions as regularizers).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from zoopress.training.loss import Loss, Seen
from zoopress_plugins.transfer.losses.selected import SelectedParameters

if TYPE_CHECKING:
    from torch import Tensor, nn


class PeriodicConfig(SelectedParameters):
    """Which parameters, and how many levels."""

    bits: int = Field(default=4, ge=2, le=8, description="bits of the codes to come")


def periodic_penalty(matrix: Tensor, step: Tensor) -> Tensor:
    """Return the mean of sin²(π w ÷ step): 0 on multiples of the step, 1 halfway between.

    Args:
        matrix: [rows, columns], with gradients.
        step: [rows, 1] or less, above 0; it has none.
    """
    import math

    return (matrix * (math.pi / step.detach())).sin().square().mean()


class Periodic(Loss[PeriodicConfig]):
    """The mean of sin² of the selected weights, for grids that span each row's weights.

    Those are what `weight_quantization` takes without clipping; `periodic` of
    `quantization_aware_training` pulls to the steps that are trained there.
    """

    name = "periodic"
    config_type = PeriodicConfig

    def prepare(self, seen: Seen) -> nn.Module | None:
        """Check that there are such weights."""
        self.config.select(seen.parameters)
        return None

    def value(self, seen: Seen, learned: nn.Module | None) -> Tensor:
        """Return the mean over the weights of each tensor, summed over tensors."""
        import torch

        highest = 2 ** (self.config.bits - 1) - 1
        parts = []
        for weight in self.config.select(seen.parameters).values():
            matrix = weight.float().flatten(1)
            step = matrix.detach().abs().amax(1, keepdim=True) / highest
            parts.append(periodic_penalty(matrix, step.clamp_min(2.0**-120)))
        return torch.stack(parts).sum()
