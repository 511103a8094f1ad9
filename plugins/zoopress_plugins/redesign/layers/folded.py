"""What takes the places of a batch normalization that was folded, and of the layer before it."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd


class FoldedNorm(nn.Module):
    """What a batch normalization did besides: nothing, or timm's dropout and activation.

    Its statistics, scale and shift are those of a normalization that changes nothing.
    """

    def __init__(self, children: Mapping[str, nn.Module], channels: int, eps: float) -> None:
        super().__init__()
        for name, child in children.items():
            self.add_module(name, child)
        self.channels = channels
        self.eps = eps

    @classmethod
    def from_module(cls, module: nn.Module) -> FoldedNorm:
        """Build in the place of a batch normalization.

        Raises:
            ValueError: if the module is another.
        """
        if not isinstance(module, _BatchNorm):
            raise ValueError(f"{type(module).__name__} is no batch normalization")
        return cls(dict(module.named_children()), module.num_features, module.eps)

    def forward(self, input: Tensor) -> Tensor:
        """Return what the children make of the input, one after the other."""
        for child in self._modules.values():
            assert child is not None
            input = child(input)
        return input

    @property
    def weight(self) -> Tensor:
        return torch.ones(self.channels)

    @property
    def bias(self) -> Tensor:
        return torch.zeros(self.channels)

    @property
    def running_mean(self) -> Tensor:
        return torch.zeros(self.channels)

    @property
    def running_var(self) -> Tensor:
        return torch.ones(self.channels) - self.eps

    @property
    def num_batches_tracked(self) -> Tensor:
        return torch.zeros((), dtype=torch.int64)


class FoldedLayer(nn.Module):
    """A linear layer or a convolution with a bias, into which a normalization was folded."""

    keeps_module = True

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
