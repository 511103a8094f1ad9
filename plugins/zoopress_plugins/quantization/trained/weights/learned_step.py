"""Learned steps: each row's step is trained with the weights, by the gradient of rounding itself.

Source: Esser et al. 2020, arXiv:1902.08153 (LSQ), sections 2.1 and 2.2; a step for each row in the
place of one a layer.
"""

from __future__ import annotations

import torch
from torch import Tensor

from zoopress.models.weights import Weight
from zoopress_plugins.quantization.packing_weights import Form
from zoopress_plugins.quantization.trained.quantizer import WeightQuantizer, limits
from zoopress_plugins.quantization.trained.straight_through import Factor, as_stored, passing


def stepped(matrix: Tensor, step: Tensor, bits: int) -> Tensor:
    """Round to multiples of steps.

    The derivative of a weight is 1 within the range and 0 outside; that of its step is the error
    of rounding, in steps, and the outermost level outside.

    Args:
        matrix: [out, in], float.
        step: [out, 1], above 0.
        bits: of a code.

    Source: Esser et al. 2020, arXiv:1902.08153, eq. 3 and 5.
    """
    inside = (matrix / step).clamp(*limits(bits, True))
    return passing(inside.detach().round(), inside) * step


def uniform_form(levels: Tensor, scale: Tensor, bits: int) -> Form:
    """Return integers times a scale for each row as the packed form `quantized` has them.

    Args:
        levels: [out, in], whole numbers.
        scale: [out, 1], that bfloat16 holds.
        bits: of a code.
    """
    from zoopress.coding.bits import pack_codes

    codes = (levels.to(torch.int16) & (2**bits - 1)).to(torch.uint8)
    tensors = {"codes": pack_codes(codes.contiguous(), bits), "scale": scale.bfloat16()}
    arguments: dict[str, bool | int | float | str] = {
        "bits": bits,
        "group_size": levels.shape[1],
        "symmetric": True,
    }
    return Form("quantized", arguments, tensors, bits)


class LearnedStep(WeightQuantizer):
    """Rounds to multiples of a step that each row learns."""

    def __init__(self, weight: Weight, bits: int) -> None:
        super().__init__(weight, bits)
        matrix, highest = self.matrix().detach(), limits(bits, True)[1]
        kept = (matrix != 0).sum(1).clamp_min(1)  # pruned weights tell nothing of the others' size
        # Section 2.1: twice the mean magnitude over the root of the highest level.
        self.step = Factor(2 * matrix.abs().sum(1) / kept / highest**0.5)
        # Section 2.2, so that steps and weights move alike: with AdamW it changes nothing.
        self.share = float((matrix.shape[1] * highest) ** -0.5)

    def forward(self) -> Tensor:
        """Return multiples of the steps."""
        matrix = self.matrix()
        return stepped(matrix, self._step(self.share).to(matrix.dtype), self.bits)

    def form(self) -> Form:
        """Return the multiples as codes."""
        with torch.no_grad():
            matrix, step = self.matrix(), self._step(1.0)
            levels = (matrix / step.to(matrix.dtype)).clamp(*limits(self.bits, True)).round()
            return uniform_form(levels, step, self.bits)

    def after_step(self) -> None:
        """Keep steps above zero."""
        self.step.keep_positive()

    def _step(self, share: float) -> Tensor:
        return as_stored(self.step(), share)[:, None]
