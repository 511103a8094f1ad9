"""Layers that are the product of two thin ones, built in the place of the layer they replace."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from zoopress.models.stand_in import obstacle

_CONV = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


def unfit(module: nn.Module, attribute: str) -> str | None:
    """Say why a module cannot be replaced by a factored one, or None."""
    if attribute != "weight":
        return f"{type(module).__name__}.{attribute} is not a layer of its own"
    reason = obstacle(module)
    if reason:
        return reason
    if isinstance(module, _CONV):
        kind = _kind_of_conv(module)
        own = (type(module).forward, type(module)._conv_forward)
        if own != (kind.forward, kind._conv_forward):
            return f"{type(module).__name__} may compute something else than its base class"
        return "it has groups" if module.groups > 1 else None
    if _is_conv1d_of_gpt2(module):
        return None
    if isinstance(module, nn.Linear):
        if type(module).forward is not nn.Linear.forward:
            return f"{type(module).__name__} computes something else than nn.Linear"
        if isinstance(module, nn.modules.linear.NonDynamicallyQuantizableLinear):
            return "nn.MultiheadAttention uses its weight directly"
        return None
    return f"{type(module).__name__} has no factored form"


def _kind_of_conv(module: nn.Module) -> Any:
    return next(kind for kind in _CONV if isinstance(module, kind))


def _is_conv1d_of_gpt2(module: nn.Module) -> bool:
    return type(module).__name__ == "Conv1D" and hasattr(module, "nf") and hasattr(module, "nx")


def _check_rank(rank: Any, most: int) -> None:
    if type(rank) is not int or not 1 <= rank <= most:
        raise ValueError(f"rank must be 1 to {most}, not {rank!r}")


class FactoredLinear(nn.Module):
    """y = up(down(x)), in the place of a linear layer of the same sizes."""

    is_factored = True

    def __init__(self, down: nn.Linear, up: nn.Linear, stores_in_out: bool = False) -> None:
        super().__init__()
        self.down = down
        self.up = up
        self.stores_in_out = stores_in_out

    @classmethod
    def from_module(cls, module: nn.Module, rank: int) -> FactoredLinear:
        """Build in the place of an nn.Linear, or of GPT-2's Conv1D.

        Raises:
            ValueError: if the module is another, or the rank is out of range.
        """
        problem = unfit(module, "weight")
        if problem or isinstance(module, _CONV):
            raise ValueError(problem or "a convolution takes a factored_conv")
        if isinstance(module, nn.Linear):
            inputs, outputs, bias = module.in_features, module.out_features, module.bias is not None
        else:
            sizes: Any = module
            inputs, outputs, bias = sizes.nx, sizes.nf, True
        _check_rank(rank, min(inputs, outputs))
        weight: Any = module.weight
        return cls(
            nn.Linear(inputs, rank, bias=False, dtype=weight.dtype),
            nn.Linear(rank, outputs, bias=bias, dtype=weight.dtype),
            stores_in_out=not isinstance(module, nn.Linear),
        )

    def forward(self, input: Tensor) -> Tensor:
        """Compute [..., in] → [..., out]."""
        result: Tensor = self.up(self.down(input))
        return result

    @property
    def in_features(self) -> int:
        return self.down.in_features

    @property
    def out_features(self) -> int:
        return self.up.out_features

    @property
    def weight(self) -> Tensor:
        """The weight that the two layers stand for, [out, in], of GPT-2's layer [in, out]."""
        matrix = product(self)
        return matrix.T if self.stores_in_out else matrix

    @property
    def bias(self) -> Tensor | None:
        return self.up.bias

    # GPT-2's names of the two sizes
    nx, nf = in_features, out_features


class FactoredConv(nn.Module):
    """A convolution with few outputs, then a 1×1 convolution, in the place of one with many."""

    is_factored = True

    def __init__(self, down: Any, up: Any) -> None:
        super().__init__()
        self.down = down
        self.up = up

    @classmethod
    def from_module(cls, module: nn.Module, rank: int) -> FactoredConv:
        """Build in the place of an nn.Conv1d, 2d or 3d without groups.

        Raises:
            ValueError: if the module is another, or the rank is out of range.
        """
        if not isinstance(module, _CONV) or unfit(module, "weight"):
            raise ValueError(unfit(module, "weight") or "a linear layer takes a factored_linear")
        columns = module.weight.numel() // module.out_channels
        _check_rank(rank, min(module.out_channels, columns))
        kind = _kind_of_conv(module)
        dtype = module.weight.dtype
        down = kind(
            module.in_channels,
            rank,
            module.kernel_size,
            module.stride,
            module.padding,
            module.dilation,
            bias=False,
            padding_mode=module.padding_mode,
            dtype=dtype,
        )
        up = kind(rank, module.out_channels, 1, bias=module.bias is not None, dtype=dtype)
        return cls(down, up)

    def forward(self, input: Tensor) -> Tensor:
        """Compute [batch, in, …] → [batch, out, …]."""
        result: Tensor = self.up(self.down(input))
        return result

    @property
    def weight(self) -> Tensor:
        """The product [out, in, …], the kernel that the two layers stand for."""
        return product(self).view(-1, *self.down.weight.shape[1:])

    @property
    def bias(self) -> Tensor | None:
        bias: Tensor | None = self.up.bias
        return bias

    @property
    def in_channels(self) -> int:
        return int(self.down.in_channels)

    @property
    def out_channels(self) -> int:
        return int(self.up.out_channels)


def product(layer: FactoredLinear | FactoredConv) -> Tensor:
    """Return the weight [out, in] that a factored layer stands for."""
    up, down = layer.up.weight, layer.down.weight
    assert isinstance(up, torch.Tensor)
    assert isinstance(down, torch.Tensor)
    return up.flatten(1) @ down.flatten(1)
