"""Depthwise-separable convolution: filter each channel by itself, then mix the channels.

Sources: Howard et al. 2017, MobileNets, arXiv:1704.04861, section 3.1 (the block); Guo et al. 2018,
arXiv:1809.04439, section 3 (a convolution is a sum of such, by the SVD of each input channel).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pydantic import Field

from zoopress.config import Config
from zoopress.plugins import hookimpl
from zoopress.techniques import Block, Cost

if TYPE_CHECKING:
    from torch import Tensor, nn


class DepthwiseSeparableConfig(Config):
    """How close to the convolution."""

    multiplier: int = Field(
        default=1,
        ge=1,
        description="kernels for each input channel; 1 is what mobile networks have, more is "
        "closer to the convolution, and as many as a kernel has numbers is the same",
    )


def separate(weight: Tensor, multiplier: int) -> tuple[Tensor, Tensor]:
    """Return the depthwise-separable kernels closest to a convolution's, in the Frobenius norm.

    The kernels of one input channel are a matrix [out, height · width]; what a depthwise-separable
    convolution can have in its place is one of rank `multiplier`, the closest of which is its
    truncated SVD.

    Args:
        weight: [out, in, height, width].
        multiplier: kernels for each input channel, at most min(out, height · width).

    Returns:
        depthwise [in · multiplier, 1, height, width] and pointwise [out, in · multiplier, 1, 1];
        both carry the root of the singular values.

    Source: Eckart & Young 1936, for each input channel.
    """
    import torch

    out, channels, height, width = weight.shape
    kernels = weight.float().movedim(1, 0).reshape(channels, out, height * width)
    u, s, vh = torch.linalg.svd(kernels, full_matrices=False)
    root = s[:, :multiplier].sqrt()
    mix = u[:, :, :multiplier] * root[:, None, :]
    filters = vh[:, :multiplier] * root[:, :, None]
    depthwise = filters.reshape(channels * multiplier, 1, height, width)
    pointwise = mix.movedim(0, 1).reshape(out, channels * multiplier, 1, 1)
    return depthwise.to(weight.dtype), pointwise.to(weight.dtype)


class DepthwiseSeparable(Block[DepthwiseSeparableConfig]):
    """A depthwise-separable convolution in the place of a plain one."""

    name = "depthwise_separable"
    config_type = DepthwiseSeparableConfig
    layer = "depthwise_separable_conv"

    def refusal(self, module: nn.Module) -> str | None:
        """Take plain two-dimensional convolutions without groups."""
        from zoopress_plugins.redesign.layers.depthwise_separable import unfit

        reason = unfit(module)
        if reason:
            return reason
        conv: Any = module
        most = min(conv.out_channels, conv.kernel_size[0] * conv.kernel_size[1])
        if self.config.multiplier > most:
            return f"a multiplier of {most} is all of it, {self.config.multiplier} has no more"
        return None

    def arguments(self, module: nn.Module) -> Mapping[str, bool | int | float | str]:
        """Return the multiplier."""
        return {"multiplier": self.config.multiplier}

    def tensors(self, module: nn.Module) -> Mapping[str, Tensor]:
        """Return the closest kernels, and the bias as it is."""
        conv: Any = module
        depthwise, pointwise = separate(conv.weight.detach(), self.config.multiplier)
        tensors = {"depthwise.weight": depthwise, "pointwise.weight": pointwise}
        if conv.bias is not None:
            tensors["pointwise.bias"] = conv.bias.detach()
        return tensors

    def cost(self, module: nn.Module) -> Cost:
        """Return what both convolutions take."""
        conv: Any = module
        height, width = conv.kernel_size
        middle = conv.in_channels * self.config.multiplier
        macs = middle * height * width + middle * conv.out_channels
        return Cost(macs + (0 if conv.bias is None else conv.out_channels), macs)


@hookimpl
def zoopress_blocks() -> dict[str, str]:
    """Register the block."""
    return {"depthwise_separable": f"{__name__}:DepthwiseSeparable"}


@hookimpl
def zoopress_layers() -> dict[str, str]:
    """Register what artifacts call the layer."""
    where = "zoopress_plugins.redesign.layers.depthwise_separable"
    return {"depthwise_separable_conv": f"{where}:DepthwiseSeparableConv2d"}
