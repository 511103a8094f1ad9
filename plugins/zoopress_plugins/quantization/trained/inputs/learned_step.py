"""A learned step of a layer's input.

Source: Esser et al. 2020, arXiv:1902.08153 (LSQ), sections 2.1 and 2.2.
"""

from __future__ import annotations

import torch
from torch import Tensor

from zoopress_plugins.quantization.trained.quantizer import InputQuantizer, SeenInput
from zoopress_plugins.quantization.trained.straight_through import Factor


class LearnedInputStep(InputQuantizer):
    """Rounds to multiples of a step that is trained."""

    def __init__(self, seen: SeenInput, bits: int) -> None:
        super().__init__(seen, bits)
        self.step = Factor(torch.tensor([2 * seen.mean_size / self.limits[1] ** 0.5]))

    def scale(self) -> Tensor:
        """Return the step."""
        step: Tensor = self.step()
        return step.squeeze(0)

    def like(self, x: Tensor, scale: Tensor) -> Tensor:
        """Return what has LSQ's derivatives: of the step, the error of rounding."""
        low, high = self.limits
        # Section 2.2: as many numbers share the step as there are in a sample's input.
        share = (max(1, x[:1].numel()) * high) ** -0.5
        scale = (scale.detach() + share * (scale - scale.detach())).to(x.dtype)
        inside = (x / scale).clamp(low, high)
        return (inside + (inside.round() - inside).detach()) * scale

    def after_step(self) -> None:
        """Keep the step above zero."""
        self.step.keep_positive()
