"""Where torch's low-bit kernels may compute: as exactly as the dense product, and faster.

They read codes, and sum in float32, but are fast for bfloat16 inputs alone and round what they
return, so a bias is not added to it. More rows than a few are faster in blocks. See decision 42.
"""

from __future__ import annotations

import torch
from torch import Tensor

from zoopress.models.packing import PackedWeight

INT8_KERNEL_ROWS = 16
INT4_KERNEL_ROWS = 32
INT4_KERNEL_GROUPS = (32, 64, 128, 256)
IN_BLOCKS = "dequantized block by block"


def has_kernels(weight: PackedWeight, columns: int) -> bool:
    """Tell whether torch's kernels take a packed weight, whatever its bits."""
    # Without vector instructions torch's kernels are slower than dequantizing.
    return (
        weight.computes_in == torch.bfloat16
        and len(weight.shape) == 2
        and weight.output_axis == 0
        and columns % 32 == 0
        and weight.device.type == "cpu"
        and torch.backends.cpu.get_cpu_capability() != "DEFAULT"
    )


def fits_kernel(input: Tensor, rows: int) -> bool:
    """Tell whether torch's kernels compute with an input [rows, in] as exactly as others."""
    return input.dtype == torch.bfloat16 and len(input) <= rows


def aligned(codes: Tensor) -> Tensor:
    """Return codes where torch's kernels, which crash on unaligned memory, can read them."""
    return codes.clone() if codes.data_ptr() % 64 else codes
