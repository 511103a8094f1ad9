"""Signs of a layer's input: with signs of weights, products are of bits.

Sources: Courbariaux et al. 2016, arXiv:1602.02830 (binarized neural networks), section 1; Rastegari
et al. 2016, arXiv:1603.05279 (XNOR-Net), section 3.2; Bulat & Tzimiropoulos 2019, arXiv:1909.13863
(a learned scale in the place of K, which XNOR-Net computes of each window).
"""

from __future__ import annotations

import torch
from torch import Tensor

from zoopress_plugins.quantization.trained.quantizer import InputQuantizer, SeenInput
from zoopress_plugins.quantization.trained.straight_through import TINY, Factor


class Sign(InputQuantizer):
    """Rounds to −1 and 1 times a learned scale, which starts at the mean magnitude."""

    reach: Tensor

    def __init__(self, seen: SeenInput, bits: int) -> None:
        super().__init__(seen, bits)
        self.magnitude = Factor(torch.tensor([seen.mean_size]))
        self.register_buffer("reach", torch.tensor(seen.mean_square**0.5).clamp_min(TINY))

    @staticmethod
    def refusal(seen: SeenInput) -> str | None:
        """Say that an input without a sign has none to keep."""
        return "its input is never negative, so all signs are one" if seen.low >= 0 else None

    @property
    def limits(self) -> tuple[int, int]:
        """The codes."""
        return -1, 1

    def scale(self) -> Tensor:
        """Return the magnitude."""
        magnitude: Tensor = self.magnitude()
        return magnitude.squeeze(0)

    def levels(self, values: Tensor, scale: Tensor, ends: tuple[int, int]) -> Tensor:
        """Return signs; NaN stays NaN."""
        signs = torch.where(values >= 0, 1.0, -1.0).to(values.dtype)
        return torch.where(values.isnan(), values, signs)

    def like(self, x: Tensor, scale: Tensor) -> Tensor:
        """Return what passes where |x| is at most its root mean square as training began.

        Behind batch normalization that is the 1 of the papers.
        """
        reach = float(self.reach)
        signs = torch.where(x.detach() >= 0, 1.0, -1.0).to(x.dtype)
        return signs * scale.to(x.dtype) + x.clamp(-reach, reach)

    def after_step(self) -> None:
        """Keep the magnitude above zero."""
        self.magnitude.keep_positive()
