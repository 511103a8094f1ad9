"""Three levels whose two scales are trained.

Source: Zhu et al. 2016, arXiv:1612.01064 (trained ternary quantization), section 3.1, eq. 6 to 9.
"""

from __future__ import annotations

import torch
from torch import Tensor

from zoopress.models.weights import Weight
from zoopress_plugins.quantization.packing_weights import Form
from zoopress_plugins.quantization.trained.quantizer import WeightQuantizer
from zoopress_plugins.quantization.trained.straight_through import Factor, as_stored, passing
from zoopress_plugins.quantization.trained.weights.ternary import ternary_form, three_levels

THRESHOLD = 0.05
"""Of the largest magnitude: section 4, what the paper trains with."""


class TrainedTernary(WeightQuantizer):
    """Rounds to −n, 0 and p, where the layer learns n and p."""

    def __init__(self, weight: Weight, bits: int) -> None:
        super().__init__(weight, bits)
        matrix = self.matrix().detach()
        levels = self._levels(matrix)
        means = [
            matrix[levels == sign].abs().mean().nan_to_num(0.0).view(1) for sign in (1.0, -1.0)
        ]
        self.positive, self.negative = (Factor(mean) for mean in means)

    def forward(self) -> Tensor:
        """Return levels times scales; gradients of weights are scaled as their levels (eq. 8)."""
        matrix = self.matrix()
        above, below = (scale.to(matrix.dtype) for scale in self._scales())
        levels = self._levels(matrix.detach())
        scaled = torch.where(levels < 0, below, torch.where(levels > 0, above, 1.0)).detach()
        values = levels * torch.where(levels < 0, below, above)
        return passing(values, scaled * matrix)

    def form(self) -> Form:
        """Return levels as codes, with two scales."""
        with torch.no_grad():
            return ternary_form(self._levels(self.matrix()), *self._scales())

    def after_step(self) -> None:
        """Keep both scales above zero."""
        self.positive.keep_positive()
        self.negative.keep_positive()

    def _levels(self, matrix: Tensor) -> Tensor:
        return three_levels(matrix, THRESHOLD * matrix.abs().amax())

    def _scales(self) -> tuple[Tensor, Tensor]:
        return (
            as_stored(self.positive()).view(1, 1),
            as_stored(self.negative()).view(1, 1),
        )
