"""How a layer computes with its packed weight: whatever the float layer takes, as exactly.

Kernels of packed weights see only inputs for which they are made: a plain matrix [rows, in] in one
piece, outside of autocast, where no derivative is wanted and nothing is traced. All else, of any
shape, layout and kind, is multiplied by the dense weight. So a kernel need not know what users do.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import forward_ad

if TYPE_CHECKING:
    from zoopress.models.packing import PackedWeight

# What is made dense at once on a CPU lies in its cache; elsewhere a step has its price.
_BLOCK_WEIGHTS = {"cpu": 1 << 18}
_BLOCK_WEIGHTS_ELSEWHERE = 1 << 24
_ALIGNMENT = 64


def packed_linear(packed: PackedWeight, input: Tensor, bias: Tensor | None) -> Tensor:
    """Compute input [..., in] times the weight [out, in] transposed, plus bias [out].

    The result has the type that `nn.Linear` gives for this input, under autocast too.
    """
    if not _is_plain(packed, input, bias):
        weight = packed.dense().to(input.dtype) if input.is_floating_point() else packed.value()
        return F.linear(input, weight, bias)
    device = input.device.type
    if torch.is_autocast_enabled(device) and input.dtype != torch.float64:
        input = input.to(torch.get_autocast_dtype(device))
        bias = None if bias is None else bias.to(input.dtype)
    # Of one row, torch takes a matrix with any stride for contiguous, and kernels do not.
    rows = input.reshape(-1, input.shape[-1]).contiguous()
    if rows.data_ptr() % _ALIGNMENT:  # a part of a tensor: torch's kernels crash the process
        rows = rows.clone()
    with torch.autocast(device, enabled=False):
        result = packed.linear(rows, bias)
    return result.view(*input.shape[:-1], result.shape[-1])


def packed_embedding(packed: PackedWeight, indices: Tensor) -> Tensor:
    """Return the rows [..., columns] of the weight [rows, columns] at `indices` [...]."""
    odd = type(indices) is not Tensor or indices.dtype not in (torch.int64, torch.int32)
    # Tensors take negative indices, of which an embedding knows none.
    if odd or (_looks_at_values(indices) and bool((indices < 0).any())):
        return F.embedding(indices, packed.value())
    return packed.embedding(indices).to(packed.computes_in)


def linear_in_blocks(packed: PackedWeight, input: Tensor, bias: Tensor | None) -> Tensor:
    """Compute a product with a block of the weight's rows after the other, each made dense.

    Sums are in float32 at least, and rounded once: so 16-bit inputs lose less than by a dense
    product.

    Args:
        packed: makes rows of its matrix.
        input: [..., in].
        bias: [out].
    """
    out, columns = packed.shape
    kind = torch.promote_types(input.dtype, torch.float32)
    wide = input.to(kind)
    size = _BLOCK_WEIGHTS.get(input.device.type, _BLOCK_WEIGHTS_ELSEWHERE)
    step = max(1, size // columns)
    parts = []
    for first in range(0, out, step):
        some = slice(first, min(first + step, out))
        part = None if bias is None else bias[some].to(kind)
        parts.append(F.linear(wide, packed.dense_rows(some).to(kind), part))
    return (parts[0] if len(parts) == 1 else torch.cat(parts, -1)).to(input.dtype)


def is_traced() -> bool:
    """Tell whether operations are being recorded into a program, for other inputs and shapes."""
    return torch.compiler.is_compiling() or torch._C._is_tracing()


def _is_plain(packed: PackedWeight, input: Tensor, bias: Tensor | None) -> bool:
    """Tell whether an input is one that `PackedWeight.linear` is to know."""
    if packed.is_differentiable or is_traced():
        return False
    return (
        type(input) in (Tensor, nn.Parameter)
        and input.is_floating_point()
        and input.layout == torch.strided
        and input.ndim > 0
        and input.numel() > 0
        and packed.output_axis == 0
        and len(packed.shape) == 2
        and input.shape[-1] == packed.shape[1]
        and input.device == packed.device
        and not _wants_derivative(packed, input)
        # The float layer refuses to mix types, in words of torch's own.
        and (
            bias is None or bias.dtype == input.dtype or torch.is_autocast_enabled(bias.device.type)
        )
    )


def _wants_derivative(packed: PackedWeight, input: Tensor) -> bool:
    if torch._C._functorch.is_functorch_wrapped_tensor(input):
        return True
    if forward_ad.unpack_dual(input).tangent is not None:
        return True
    return torch.is_grad_enabled() and (
        input.requires_grad or any(each.requires_grad for each in packed.parameters())
    )


def _looks_at_values(tensor: Tensor) -> bool:
    """Tell whether a tensor has values to look at, at no great price."""
    return (
        tensor.device.type == "cpu"
        and not is_traced()
        and not torch._C._functorch.is_functorch_wrapped_tensor(tensor)
    )
