"""Evenly spaced levels of squashed weights.

Source: Zhou et al. 2016, arXiv:1606.06160 (DoReFa-Net), section 2.3, eq. 9 (for one bit eq. 8).
"""

from __future__ import annotations

import torch
from torch import Tensor

from zoopress.models.weights import Weight
from zoopress_plugins.quantization.packing_weights import Form
from zoopress_plugins.quantization.trained.quantizer import WeightQuantizer
from zoopress_plugins.quantization.trained.straight_through import TINY, as_stored, passing
from zoopress_plugins.quantization.trained.weights.scaled_sign import signs_form


class DoReFaWeights(WeightQuantizer):
    """Rounds tanh(w) ÷ max |tanh(w)| to 2^bits levels from −1 to 1, none of which is zero.

    They are multiplied by what that maximum was as training began, so that what was trained before
    starts as itself; the paper leaves the factor, a constant of the layer, to what follows.
    """

    size: Tensor

    def __init__(self, weight: Weight, bits: int) -> None:
        super().__init__(weight, bits)
        last = 2**bits - 1
        size = self.shadow.detach().tanh().abs().amax() / last
        self.register_buffer("size", size.bfloat16().float().clamp_min(TINY).view(1, 1))

    def forward(self) -> Tensor:
        """Return levels; derivatives are those of what is rounded."""
        matrix = self.matrix()
        if self.bits == 1:
            scale = self._mean(matrix)
            values = torch.where(matrix.detach() >= 0, 1.0, -1.0) * scale
            return passing(values.to(matrix.dtype), matrix)
        last = 2**self.bits - 1
        squashed = self._squashed(matrix)
        return passing((2 * (squashed.detach() * last).round() - last), 2 * last * squashed) * (
            self.size.to(matrix.dtype)
        )

    def form(self) -> Form:
        """Return levels as codes."""
        from zoopress_plugins.quantization.level_quantization import packed_levels

        with torch.no_grad():
            matrix = self.matrix()
            if self.bits == 1:
                return signs_form(matrix, self._mean(matrix))
            codes = (self._squashed(matrix) * (2**self.bits - 1)).round().to(torch.uint8)
            return packed_levels(codes, self.size.bfloat16(), "odd", self.bits, 0)

    def _mean(self, matrix: Tensor) -> Tensor:
        return as_stored(matrix.detach().abs().mean().float()).view(1, 1)

    def _squashed(self, matrix: Tensor) -> Tensor:
        squashed = matrix.tanh()
        return squashed / (2 * squashed.abs().amax().clamp_min(TINY)) + 0.5
