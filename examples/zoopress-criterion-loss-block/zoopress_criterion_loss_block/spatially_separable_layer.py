"""The layer of the block: a tall convolution, then a wide one."""

import torch
from torch import nn


def unfit(module):
    """Say why a module cannot be replaced, or None."""
    if type(module) is not nn.Conv2d:
        return f"{type(module).__name__} is not a plain nn.Conv2d"
    if module.groups > 1 or min(module.kernel_size) < 2 or isinstance(module.padding, str):
        return "it has groups, a kernel of one pixel along an axis, or a padding by name"
    return None if "weight" in module._parameters else "its weight is packed"


class SpatiallySeparable(nn.Module):
    """y = wide(tall(x))."""

    def __init__(self, tall, wide):
        super().__init__()
        self.tall, self.wide = tall, wide

    @classmethod
    def from_module(cls, module, rank):
        """Build in the place of an nn.Conv2d; raise ValueError for anything else."""
        if unfit(module):
            raise ValueError(unfit(module))
        (height, width), dtype = module.kernel_size, module.weight.dtype
        most = min(module.in_channels * height, module.out_channels * width)
        if type(rank) is not int or not 1 <= rank <= most:
            raise ValueError(f"rank must be 1 to {most}, not {rank!r}")

        def conv(inputs, outputs, axis, bias):
            def along(values, other):
                return tuple(value if i == axis else other for i, value in enumerate(values))

            return nn.Conv2d(
                inputs,
                outputs,
                along(module.kernel_size, 1),
                along(module.stride, 1),
                along(module.padding, 0),
                along(module.dilation, 1),
                bias=bias,
                padding_mode=module.padding_mode,
                dtype=dtype,
            )

        bias = module.bias is not None
        return cls(
            conv(module.in_channels, rank, 0, False), conv(rank, module.out_channels, 1, bias)
        )

    def forward(self, input):
        """Compute [batch, in, …] → [batch, out, …]."""
        return self.wide(self.tall(input))

    @property
    def weight(self):
        """Return the kernel [out, in, height, width] that both layers stand for."""
        tall, wide = self.tall.weight.squeeze(3), self.wide.weight.squeeze(2)
        return torch.einsum("rih,orw->oihw", tall, wide)

    @property
    def bias(self):
        """Return [out], or None."""
        return self.wide.bias
