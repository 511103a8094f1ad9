"""Signs times a constant.

Source: Courbariaux et al. 2015, arXiv:1511.00363 (BinaryConnect), section 2 and algorithm 1.
"""

from __future__ import annotations

import torch
from torch import Tensor

from zoopress.models.weights import Weight
from zoopress_plugins.quantization.packing_weights import Form
from zoopress_plugins.quantization.trained.quantizer import WeightQuantizer
from zoopress_plugins.quantization.trained.straight_through import TINY, passing
from zoopress_plugins.quantization.trained.weights.scaled_sign import signs_form


class BinaryConnect(WeightQuantizer):
    """Rounds to signs times a constant; shadows are clipped to what training can still turn.

    The constant is the weight's mean magnitude as training began, where the paper takes 1 or the
    initialization's range: so what was trained before starts as itself.
    """

    size: Tensor

    def __init__(self, weight: Weight, bits: int) -> None:
        super().__init__(weight, bits)
        size = self.shadow.detach().abs().mean().bfloat16().float().clamp_min(TINY)
        self.register_buffer("size", size.view(1, 1))

    def forward(self) -> Tensor:
        """Return signs; gradients go to the shadow as they are (algorithm 1)."""
        matrix = self.matrix()
        values = torch.where(matrix.detach() >= 0, 1.0, -1.0) * self.size
        return passing(values.to(matrix.dtype), matrix)

    def form(self) -> Form:
        """Return signs as codes."""
        return signs_form(self.matrix().detach(), self.size)

    def after_step(self) -> None:
        """Clip shadows (section 2.4)."""
        size = float(self.size)
        with torch.no_grad():
            self.shadow.clamp_(-size, size)
