"""What takes the places of a batch normalization that was folded, and of the layer before it."""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd


class FoldedNorm(nn.Sequential):
    """What a batch normalization did besides: nothing, or timm's dropout and activation."""

    @classmethod
    def from_module(cls, module: nn.Module) -> FoldedNorm:
        """Build in the place of a batch normalization.

        Raises:
            ValueError: if the module is another.
        """
        if not isinstance(module, _BatchNorm):
            raise ValueError(f"{type(module).__name__} is no batch normalization")
        return cls(OrderedDict(module.named_children()))


class FoldedLayer(nn.Module):
    """A linear layer or a convolution with a bias, into which a normalization was folded."""

    @classmethod
    def from_module(cls, module: nn.Module) -> nn.Module:
        """Return the layer itself, with a bias if it had none.

        Raises:
            ValueError: if the module is another.
        """
        if not isinstance(module, (nn.Linear, _ConvNd)) or "bias" not in module._parameters:
            raise ValueError(f"{type(module).__name__} is no linear layer and no convolution")
        if module.bias is None:
            channels = module.out_features if isinstance(module, nn.Linear) else module.out_channels
            module.bias = nn.Parameter(torch.empty(channels, dtype=module.weight.dtype))
        module.__dict__["is_folded"] = True  # its weights are not comparable with those before
        return module
