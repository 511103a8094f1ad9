"""Three levels that are drawn while training, by how near the weight is to each.

Source: Lin et al. 2016, arXiv:1510.03009 (neural networks with few multiplications), section 3.2;
its backward pass of shifts is not done here, since floats multiply as fast.
"""

from __future__ import annotations

import torch
from torch import Tensor

from zoopress.models.weights import Weight
from zoopress_plugins.quantization.packing_weights import Form
from zoopress_plugins.quantization.trained.quantizer import WeightQuantizer
from zoopress_plugins.quantization.trained.straight_through import TINY, passing
from zoopress_plugins.quantization.trained.weights.ternary import ternary_form


class TernaryConnect(WeightQuantizer):
    """Draws −1, 0 or 1 times a constant in training, takes the nearest in evaluation.

    The constant is twice the weight's mean magnitude as training began, where the paper takes 1:
    so what was trained before starts near itself.
    """

    size: Tensor

    def __init__(self, weight: Weight, bits: int) -> None:
        super().__init__(weight, bits)
        values = self.shadow.detach()
        kept = values.count_nonzero().clamp_min(1)
        size = (2 * values.abs().sum() / kept).bfloat16().float().clamp_min(TINY)
        self.register_buffer("size", size.view(1, 1))

    def forward(self) -> Tensor:
        """Return levels; gradients go to the shadow as they are."""
        matrix = self.matrix()
        given = matrix.detach()
        if self.training:
            share = (given / self.size).abs()
            levels = given.sign() * (torch.rand_like(share) < share)
        else:
            levels = self._nearest(given)
        return passing(levels * self.size.to(matrix.dtype), matrix)

    def form(self) -> Form:
        """Return the nearest levels as codes."""
        return ternary_form(self._nearest(self.matrix().detach()), self.size)

    def after_step(self) -> None:
        """Clip shadows to what is between the outer levels."""
        size = float(self.size)
        with torch.no_grad():
            self.shadow.clamp_(-size, size)

    def _nearest(self, matrix: Tensor) -> Tensor:
        return (matrix / self.size).clamp(-1, 1).round()
