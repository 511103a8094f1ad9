"""A layer's input within a fixed range, evenly rounded.

Source: Zhou et al. 2016, arXiv:1606.06160 (DoReFa-Net), section 2.4.
"""

from __future__ import annotations

import torch
from torch import Tensor

from zoopress_plugins.quantization.trained.quantizer import InputQuantizer, SeenInput
from zoopress_plugins.quantization.trained.straight_through import TINY


class DoReFaInputs(InputQuantizer):
    """Clips to a range that stays, and rounds evenly in between.

    The paper's range is 0 to 1, by an activation that is bounded so; here it is what calibration
    shows as training begins, so that any model can be trained.
    """

    step: Tensor

    def __init__(self, seen: SeenInput, bits: int) -> None:
        super().__init__(seen, bits)
        largest = max(seen.high, -seen.low) / self.limits[1]
        self.register_buffer("step", torch.tensor(largest).clamp_min(TINY))

    def scale(self) -> Tensor:
        """Return the step."""
        return self.step

    def like(self, x: Tensor, scale: Tensor) -> Tensor:
        """Return x clipped."""
        low, high = (float(scale) * end for end in self.limits)
        return x.clamp(low, high)
