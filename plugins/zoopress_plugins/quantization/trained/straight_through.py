"""Gradients of what has none: values are exactly those that are stored, derivatives are others'.

Whatever is added here to pass a gradient is exactly zero, so no value differs by a rounding from
what an artifact computes.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

TINY = 2.0**-120
"""Smallest scale: below it products of levels and scales would be subnormal."""


def passing(value: Tensor, like: Tensor) -> Tensor:
    """Return `value` with the derivative of `like`.

    Args:
        value: of any shape; its own derivative counts, too.
        like: finite, of the same shape.

    Source: Bengio et al. 2013, arXiv:1308.3432.
    """
    return value + (like - like.detach())


def as_stored(scale: Tensor, share: float = 1.0) -> Tensor:
    """Return scales as bfloat16 holds them, in float32; derivatives pass, times `share`."""
    held = scale.detach().bfloat16().float().clamp_min(TINY)
    return held + share * (scale - scale.detach())


class Factor(nn.Module):
    """A learned scale: where it started, times a factor of 1 at first.

    So learning rates are relative, whatever the size of what is learned, as those of tuned scales.

    Args:
        start: [n], above 0.
    """

    start: Tensor

    def __init__(self, start: Tensor) -> None:
        super().__init__()
        self.register_buffer("start", start.detach().float().clamp_min(TINY).clone())
        self.factor = nn.Parameter(torch.ones_like(self.start))

    def forward(self) -> Tensor:
        """Return the scale, [n]."""
        return self.start * self.factor

    def keep_positive(self) -> None:
        """Take back a step that would have turned the scale's sign."""
        with torch.no_grad():
            self.factor.clamp_(min=1e-3)
