"""The interface of quantizers that train: what is rounded how, and what is stored of it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from zoopress.models.weights import Weight, as_matrix
from zoopress_plugins.quantization.packing_weights import Form
from zoopress_plugins.quantization.trained.straight_through import passing


class WeightQuantizer(nn.Module, ABC):
    """Holds a float shadow of a weight, and gives the values that are stored in its place.

    Its parameters are trained and checkpointed with the model's; its buffers never change.

    Args:
        weight: what is quantized.
        bits: of a code.

    Attributes:
        shadow: of the weight's shape, float32 (float64 for such a weight).
    """

    def __init__(self, weight: Weight, bits: int) -> None:
        super().__init__()
        values = weight.parameter.detach()
        values = values.to(torch.promote_types(values.dtype, torch.float32))
        self.shadow = nn.Parameter(values.clone())
        self.bits = bits
        self.output_axis = weight.output_axis

    def matrix(self) -> Tensor:
        """Return the shadow as [out, in], with gradients."""
        return as_matrix(self.shadow, self.output_axis)

    @abstractmethod
    def forward(self) -> Tensor:
        """Return the weight [out, in] that is computed with: exactly what `form` stores."""

    @abstractmethod
    def form(self) -> Form:
        """Return the packed form of what `forward` gives in evaluation mode."""

    def expected_bytes(self) -> int:
        """Return how many bytes the packed form is to take after training."""
        return self.form().nbytes

    def after_step(self) -> None:
        """Change what a step of the optimizer has made, such as shadows beyond a range."""


@dataclass(frozen=True)
class SeenInput:
    """What calibration shows of a layer's input.

    Attributes:
        low: its smallest number.
        high: its largest.
        mean_size: mean of its magnitudes.
        mean_square: of its numbers.
    """

    low: float
    high: float
    mean_size: float
    mean_square: float


class InputQuantizer(nn.Module, ABC):
    """Rounds a layer's input to the integers of an `InputGrid` while the model trains.

    Where an input is never negative, codes are 0 to 2^bits − 1; else they have a sign.

    Args:
        seen: of the input.
        bits: of a code.
    """

    def __init__(self, seen: SeenInput, bits: int) -> None:
        super().__init__()
        self.bits = bits
        self.finer: int | None = None  # bits of a teacher's pass, over the same range
        self.signed = seen.low < 0

    @staticmethod
    def refusal(seen: SeenInput) -> str | None:
        """Say why an input cannot be rounded so, None if it can."""
        return None

    @property
    def limits(self) -> tuple[int, int]:
        """The lowest and the highest code."""
        return limits(self.bits, self.signed)

    @abstractmethod
    def scale(self) -> Tensor:
        """Return what codes are multiplied by, 0-d float32, with gradients if it is learned."""

    def levels(self, values: Tensor, scale: Tensor, ends: tuple[int, int]) -> Tensor:
        """Return the codes of values as new floats, NaN among them."""
        return (values / scale).round_().clamp_(*ends)

    @abstractmethod
    def like(self, x: Tensor, scale: Tensor) -> Tensor:
        """Return what has the derivatives that rounding shall have, of the shape of x."""

    def forward(self, x: Tensor) -> Tensor:
        """Return x on the grid, of its type and shape; NaN stays NaN."""
        if not x.is_floating_point() or not x.numel():
            return x
        values = x.to(torch.promote_types(x.dtype, torch.float32))
        scale = self.scale()
        with torch.no_grad():
            held, ends = scale.detach().to(values.dtype), self.limits
            if self.finer is not None:
                ends = limits(self.finer, self.signed)
                held = held * (self.limits[1] / ends[1])
            rounded = self.levels(values, held, ends).mul_(held)
        if not torch.is_grad_enabled():
            return rounded.to(x.dtype)
        like = self.like(values, scale)
        return passing(rounded, torch.where(like.isfinite(), like, 0.0)).to(x.dtype)

    def after_step(self) -> None:
        """Change what a step of the optimizer has made."""

    def grid(self) -> tuple[dict[str, bool | int | str], dict[str, Tensor]]:
        """Return arguments and tensors of the `InputGrid` of the same values."""
        arguments: dict[str, bool | int | str] = {
            "bits": self.bits,
            "symmetric": self.signed,
            "per": "tensor",
            "dynamic": False,
        }
        zero = torch.zeros((), dtype=torch.int8 if self.signed else torch.uint8)
        return arguments, {"scale": self.scale().detach().float().cpu(), "zero_point": zero}


def limits(bits: int, signed: bool) -> tuple[int, int]:
    """Return the lowest and the highest code."""
    half = 1 << (bits - 1)
    return (-half, half - 1) if signed else (0, 2 * half - 1)
