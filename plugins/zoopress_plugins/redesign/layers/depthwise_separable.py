"""A convolution of each channel by itself, then one of 1×1 that mixes them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


def unfit(module: nn.Module) -> str | None:
    """Say why a module cannot be replaced by a depthwise-separable convolution, or None."""
    if type(module) is not nn.Conv2d:
        return f"{type(module).__name__} is not a plain nn.Conv2d"
    if module.groups > 1:
        return "it has groups"
    if module.kernel_size == (1, 1):
        return "its kernel is 1×1, so it only mixes channels already"
    if module._parameters.get("weight") is None:
        return "its weight is packed; put this stage before the one that packs it"
    return None


class DepthwiseSeparableConv2d(nn.Module):
    """y = pointwise(depthwise(x)), in the place of an nn.Conv2d of the same sizes."""

    def __init__(self, depthwise: nn.Conv2d, pointwise: nn.Conv2d) -> None:
        super().__init__()
        self.depthwise = depthwise
        self.pointwise = pointwise

    @classmethod
    def from_module(cls, module: nn.Module, multiplier: int) -> DepthwiseSeparableConv2d:
        """Build in the place of an nn.Conv2d without groups.

        Args:
            module: the convolution.
            multiplier: kernels for each input channel, at most as many as a kernel has numbers.

        Raises:
            ValueError: if the module is another, or the multiplier is out of range.
        """
        problem = unfit(module)
        if problem:
            raise ValueError(problem)
        conv: Any = module
        height, width = conv.kernel_size
        if type(multiplier) is not int or not 1 <= multiplier <= height * width:
            raise ValueError(f"multiplier must be 1 to {height * width}, not {multiplier!r}")
        middle, dtype = conv.in_channels * multiplier, conv.weight.dtype
        depthwise = nn.Conv2d(
            conv.in_channels,
            middle,
            conv.kernel_size,
            conv.stride,
            conv.padding,
            conv.dilation,
            groups=conv.in_channels,
            bias=False,
            padding_mode=conv.padding_mode,
            dtype=dtype,
        )
        bias = conv.bias is not None
        pointwise = nn.Conv2d(middle, conv.out_channels, 1, bias=bias, dtype=dtype)
        return cls(depthwise, pointwise)

    def forward(self, input: Tensor) -> Tensor:
        """Compute [batch, in, …] → [batch, out, …]."""
        result: Tensor = self.pointwise(self.depthwise(input))
        return result

    @property
    def weight(self) -> Tensor:
        """The kernel [out, in, height, width] that the two layers stand for."""
        depthwise, pointwise = self.depthwise.weight, self.pointwise.weight
        channels = self.depthwise.in_channels
        kernels = depthwise.view(channels, -1, *depthwise.shape[2:])
        mix = pointwise.view(pointwise.shape[0], channels, -1)
        return torch.einsum("oim,imhw->oihw", mix, kernels)

    @property
    def bias(self) -> Tensor | None:
        return self.pointwise.bias

    @property
    def in_channels(self) -> int:
        return self.depthwise.in_channels

    @property
    def out_channels(self) -> int:
        return self.pointwise.out_channels
