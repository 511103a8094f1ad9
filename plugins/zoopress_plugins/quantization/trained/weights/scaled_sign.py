"""Signs times the mean magnitude of their row.

Source: Rastegari et al. 2016, arXiv:1603.05279 (XNOR-Net), sections 3.1 and 3.1.1.
"""

from __future__ import annotations

import torch
from torch import Tensor

from zoopress_plugins.quantization.packing_weights import Form
from zoopress_plugins.quantization.trained.quantizer import WeightQuantizer
from zoopress_plugins.quantization.trained.straight_through import as_stored, passing


def signs(matrix: Tensor) -> Tensor:
    """Return −1 and 1 for [out, in]; derivatives pass where magnitudes are at most 1.

    Source: section 3.1.1; Courbariaux et al. 2016, arXiv:1602.02830, section 1.3.
    """
    return passing(torch.where(matrix.detach() >= 0, 1.0, -1.0).to(matrix), matrix.clamp(-1, 1))


def signs_form(matrix: Tensor, scale: Tensor) -> Form:
    """Return signs of [out, in] times scales [out, 1] or [1, 1] as the packed form `levels`."""
    from zoopress_plugins.quantization.level_quantization import packed_levels

    size = 0 if len(scale) == 1 else matrix.shape[1]
    return packed_levels((matrix >= 0).to(torch.uint8), scale.bfloat16(), "binary", 1, size)


class ScaledSign(WeightQuantizer):
    """Rounds to signs times the mean magnitude, which follows from the shadow in every step."""

    def forward(self) -> Tensor:
        """Return scaled signs, both with derivatives: eq. after 12 of the paper."""
        matrix = self.matrix()
        return signs(matrix) * self._scale().to(matrix.dtype)

    def form(self) -> Form:
        """Return signs as codes."""
        with torch.no_grad():
            return signs_form(self.matrix(), self._scale())

    def _scale(self) -> Tensor:
        return as_stored(self.matrix().abs().mean(1, keepdim=True).float())
