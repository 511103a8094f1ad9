"""The half of a normal distribution that a ReLU leaves, rounded with the least squared error.

Source: Cai et al. 2017, arXiv:1702.00953 (half-wave Gaussian quantization), sections 3.2 and 4,
with even steps (section 3.2.2) and the clipped derivative (section 4.2.2).
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from zoopress_plugins.quantization.trained.quantizer import InputQuantizer, SeenInput
from zoopress_plugins.quantization.trained.straight_through import TINY


@cache
def half_wave_step(bits: int) -> float:
    """Return the even step from zero that errs least on max(0, z), z normal with variance 1.

    Args:
        bits: of a code: 2^bits − 1 levels above zero.

    Source: eq. 8, solved on a grid of values and steps.
    """
    with torch.device("cpu"):
        z = torch.linspace(0, 8, 8001, dtype=torch.float64)
        density = (-z.square() / 2).exp()
        steps = torch.linspace(0.001, 3.0, 3000, dtype=torch.float64)
        errors = [
            float((density * ((z / step).round().clamp(0, 2**bits - 1) * step - z).square()).sum())
            for step in steps
        ]
        return float(steps[min(range(len(errors)), key=errors.__getitem__)])


class HalfWaveGaussian(InputQuantizer):
    """Rounds with the step that is best for the positive half of a normal distribution.

    Its variance is what calibration shows as training begins: behind batch normalization and ReLU
    it stays what it is, which the paper relies on.
    """

    step: Tensor

    def __init__(self, seen: SeenInput, bits: int) -> None:
        super().__init__(seen, bits)
        # Of max(0, z), the mean square is half of the variance of z.
        deviation = (2 * seen.mean_square) ** 0.5
        self.register_buffer("step", torch.tensor(half_wave_step(bits) * deviation))
        self.step.clamp_min_(TINY)

    @staticmethod
    def refusal(seen: SeenInput) -> str | None:
        """Say that an input below zero is no half wave."""
        return "its input goes below zero, so it is no half wave" if seen.low < 0 else None

    def scale(self) -> Tensor:
        """Return the step."""
        return self.step

    def like(self, x: Tensor, scale: Tensor) -> Tensor:
        """Return x clipped at the largest level (section 4.2.2)."""
        return x.clamp(0, float(scale) * self.limits[1])
