"""Three levels with a fixed threshold: −1, 0 and 1 times a scale for each row.

Source: Li et al. 2016, arXiv:1605.04711 (ternary weight networks), section 2, eq. 5 and 6.
"""

from __future__ import annotations

import torch
from torch import Tensor

from zoopress_plugins.quantization.packing_weights import Form
from zoopress_plugins.quantization.trained.quantizer import WeightQuantizer
from zoopress_plugins.quantization.trained.straight_through import as_stored, passing

THRESHOLD = 0.7
"""Of the mean magnitude: eq. 6, the best for normal and uniform weights."""


def three_levels(matrix: Tensor, threshold: Tensor) -> Tensor:
    """Return −1, 0 or 1 of [out, in]: 0 up to a threshold that broadcasts to it."""
    return matrix.sign() * (matrix.abs() > threshold)


def ternary_form(levels: Tensor, scale: Tensor, negative: Tensor | None = None) -> Form:
    """Return levels −1, 0, 1 of [out, in], times scales, as the packed form `levels`.

    Args:
        levels: [out, in].
        scale: [out, 1] or [1, 1], of all levels, or of those above zero.
        negative: the same, of those below.
    """
    from zoopress_plugins.quantization.level_quantization import packed_levels

    size = 0 if len(scale) == 1 else levels.shape[1]
    below = None if negative is None else negative.bfloat16()
    codes = (levels + 1).to(torch.uint8)
    return packed_levels(codes, scale.bfloat16(), "ternary", 2, size, below)


class Ternary(WeightQuantizer):
    """Rounds to three levels; threshold and scale follow from the shadow in every step."""

    def forward(self) -> Tensor:
        """Return scaled levels; gradients go to the shadow as they are (section 2.3)."""
        matrix = self.matrix()
        levels, scale = self._found(matrix.detach())
        return passing(levels * scale.to(matrix.dtype), matrix)

    def form(self) -> Form:
        """Return levels as codes."""
        return ternary_form(*self._found(self.matrix().detach()))

    def _found(self, matrix: Tensor) -> tuple[Tensor, Tensor]:
        size = matrix.abs()
        kept = (matrix != 0).sum(1, keepdim=True).clamp_min(1)  # pruned weights are no part of it
        levels = three_levels(matrix, THRESHOLD * size.sum(1, keepdim=True) / kept)
        count = levels.abs().sum(1, keepdim=True).clamp_min(1)
        scale = (size * levels.abs()).sum(1, keepdim=True) / count
        return levels, as_stored(scale.float())
