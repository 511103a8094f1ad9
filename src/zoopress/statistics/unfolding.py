"""The inputs of a convolution as rows that its weight's matrix multiplies."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

BLOCK = 1 << 24
"""About how many numbers are unfolded at a time."""


def unfold(
    data: Tensor,
    kernel: Sequence[int],
    sizes: Sequence[int],
    *,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    transposed: bool,
    groups: int,
) -> Iterator[Tensor]:
    """Yield what each output of a convolution sees, some samples at a time.

    Args:
        data: [samples, channels, …], with 1 to 3 more axes.
        kernel: sizes of the kernel.
        sizes: of the output.
        stride: as the convolution's, along each axis, or one for all; so are the next two.
        padding: zeros at each end.
        dilation: distance of the kernel's taps.
        transposed: whether the convolution is transposed.
        groups: how many groups its channels fall into.

    Yields:
        [groups, rows, channels / groups · kernel]: one row an output position, in the order of the
        samples and positions; columns as those of the weight's matrix.
    """
    axes = len(kernel)
    stride, padding, dilation = (
        tuple(given) * (axes if len(given) == 1 else 1) for given in (stride, padding, dilation)
    )
    per_sample = math.prod(sizes) * data.shape[1] * math.prod(kernel)
    step = max(1, BLOCK // max(1, per_sample))
    for some in data.split(step):
        if transposed:
            some = _spread(some, stride)
        for axis in range(axes):
            reach = dilation[axis] * (kernel[axis] - 1)
            step_size = 1 if transposed else stride[axis]
            low = reach - padding[axis] if transposed else padding[axis]
            # What a transposed convolution adds to its output with `output_padding` is here, too.
            length = (sizes[axis] - 1) * step_size + reach + 1
            high = length - low - some.shape[2 + axis]
            pads = [0] * (2 * (some.ndim - 3 - axis)) + [low, high]
            some = F.pad(some, pads).unfold(2 + axis, reach + 1, step_size)
            some = some[..., :: dilation[axis]]
            if transposed:
                some = some.flip(-1)
        # [samples, channels, outputs…, kernel…]
        some = some.unflatten(1, (groups, -1))
        order = [1, 0, *range(3, 3 + axes), 2, *range(3 + axes, 3 + 2 * axes)]
        moved = some.permute(order)
        rows = moved.shape[1] * math.prod(moved.shape[2 : 2 + axes])
        yield moved.reshape(groups, rows, -1)


def _spread(data: Tensor, stride: Sequence[int]) -> Tensor:
    """Return data with stride − 1 zeros between neighbours."""
    sizes = [
        (size - 1) * step + 1 if size else 0
        for size, step in zip(data.shape[2:], stride, strict=True)
    ]
    result = torch.zeros((*data.shape[:2], *sizes), dtype=data.dtype, device=data.device)
    result[(Ellipsis,) + tuple(slice(None, None, step) for step in stride)] = data  # noqa: RUF005
    return result
