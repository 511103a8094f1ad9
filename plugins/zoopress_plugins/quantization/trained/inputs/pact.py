"""A learned clip of a layer's input.

Source: Choi et al. 2018, arXiv:1805.06085 (PACT), section 3, eq. 1 to 3.
"""

from __future__ import annotations

import torch
from torch import Tensor

from zoopress_plugins.quantization.trained.quantizer import InputQuantizer, SeenInput
from zoopress_plugins.quantization.trained.straight_through import Factor


class Pact(InputQuantizer):
    """Clips at α, which is trained, and rounds evenly in between.

    An input with a sign is clipped at the lowest code as well, a step below −α.
    """

    def __init__(self, seen: SeenInput, bits: int) -> None:
        super().__init__(seen, bits)
        self.alpha = Factor(torch.tensor([max(seen.high, -seen.low)]))

    def scale(self) -> Tensor:
        """Return α ÷ the highest code."""
        alpha: Tensor = self.alpha()
        return alpha.squeeze(0) / self.limits[1]

    def like(self, x: Tensor, scale: Tensor) -> Tensor:
        """Return x clipped: the derivative of α is 1 where it clips, 0 elsewhere (eq. 3)."""
        low, high = ((scale * end).to(x.dtype) for end in self.limits)
        clipped = torch.where(x.detach() >= high.detach(), high, x)
        return torch.where(x.detach() <= low.detach(), low, clipped)

    def after_step(self) -> None:
        """Keep α above zero."""
        self.alpha.keep_positive()
