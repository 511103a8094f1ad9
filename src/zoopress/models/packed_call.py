"""How a layer computes with its packed weight: whatever the float layer takes, as exactly.

Kernels of packed weights see only inputs for which they are made: a plain matrix [rows, in] in one
piece, outside of autocast, where no derivative is wanted and nothing is traced. All else, of any
shape, layout and kind, is multiplied by the dense weight. So a kernel need not know what users do.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import forward_ad

from zoopress.errors import DeploymentError

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
    refuse_export()
    if not _is_plain(packed, input, bias):
        weight = packed.dense().to(input.dtype) if input.is_floating_point() else packed.value()
        return F.linear(input, weight, bias)
    device = input.device.type
    cast = torch.is_autocast_enabled(device) and input.dtype != torch.float64
    if cast:
        input = input.to(torch.get_autocast_dtype(device))
        bias = None if bias is None else bias.to(input.dtype)
    # Of one row, torch takes a matrix with any stride for contiguous, and kernels do not.
    rows = input.reshape(-1, input.shape[-1]).contiguous()
    if rows.data_ptr() % _ALIGNMENT:  # a part of a tensor: torch's kernels crash the process
        rows = rows.clone()
    with torch.autocast(device, enabled=False) if cast else nullcontext():
        result = packed.linear(rows, bias)
    return result.view(*input.shape[:-1], result.shape[-1])


def packed_embedding(packed: PackedWeight, indices: Tensor) -> Tensor:
    """Return the rows [..., columns] of the weight [rows, columns] at `indices` [...]."""
    refuse_export()
    odd = type(indices) is not Tensor or indices.dtype not in (torch.int64, torch.int32)
    # Tensors take negative indices, of which an embedding knows none.
    if odd or (_looks_at_values(indices) and bool((indices < 0).any())):
        return F.embedding(indices, packed.value())
    return packed.embedding(indices).to(packed.computes_in)


def linear_in_blocks(
    packed: PackedWeight,
    input: Tensor,
    bias: Tensor | None,
    rows: Callable[[slice], Tensor] | None = None,
    scale: Tensor | None = None,
) -> Tensor:
    """Compute a product with a block of the weight's rows after the other, each made dense.

    Args:
        packed: the weight [out, in].
        input: [..., in], float.
        bias: [out].
        rows: gives some rows of a matrix [n, in]; those of the weight itself by default.
        scale: [out] or [1], what the rows are still to be multiplied by: outputs are instead.
    """
    out, columns = packed.shape
    # Few CPUs multiply float16; and what is multiplied by scales yet must not be rounded before.
    wide = scale is not None or (input.dtype == torch.float16 and input.device.type == "cpu")
    kind = torch.promote_types(input.dtype, torch.float32) if wide else input.dtype
    given, rows = input.to(kind), rows or packed.dense_rows
    added = None if bias is None else bias.to(kind)
    size = _BLOCK_WEIGHTS.get(input.device.type, _BLOCK_WEIGHTS_ELSEWHERE)
    # Before the blocks: what is kept between them would hold the heap open behind each.
    result = given.new_empty(*given.shape[:-1], out)
    for first in range(0, out, step := max(1, size // columns)):
        some = slice(first, first + step)
        part = None if added is None or scale is not None else added[some]
        result[..., some] = F.linear(given, rows(some).to(kind), part)
    if scale is not None:
        factor = scale.to(kind)
        result = result * factor if added is None else torch.addcmul(added, result, factor)
    return result.to(input.dtype)


def is_traced() -> bool:
    """Tell whether operations are being recorded into a program, for other inputs and shapes."""
    return torch.compiler.is_compiling()


def refuse_export() -> None:
    """Refuse to be recorded into a program that is to stand alone.

    Raises:
        DeploymentError: saying what does it.
    """
    # torch.export asks for weights, as modules, within a fake mode before it records anything.
    asked = not torch.compiler.is_compiling() and torch._guards.detect_fake_mode() is not None
    if asked or torch.compiler.is_exporting() or torch._C._is_tracing():
        raise DeploymentError(
            "torch.export and torch.jit.trace cannot record packed weights: they look modules up "
            "by their names, and a packed weight has that of a tensor. Use 'zoopress export --to "
            "torch_export', which keeps integers, or make the weights dense first, by "
            "zoopress.load(..., unpacking='all') or zoopress.models.packing.unpack(model)."
        )


def _is_plain(packed: PackedWeight, input: Tensor, bias: Tensor | None) -> bool:
    """Tell whether an input is one that `PackedWeight.linear` is to know."""
    # Whoever watches torch's operations, to count or to trace them, is to see the product.
    watched = torch._C._len_torch_dispatch_stack() > 0
    if packed.is_differentiable or is_traced() or watched:
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
        and not input.is_meta
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


def flat_weights(module: Any) -> list[Tensor]:
    """Return the weights of a recurrent layer, made anew from the packed ones among them."""
    return [getattr(module, name) for name in module._flat_weights_names]


def keep_flat_weights(module: Any) -> None:
    """Leave a recurrent layer's list of weights as it is: it is made at each reading."""


def ignore_assignment(module: Any, value: list[Tensor]) -> None:
    """Forget the list that a recurrent layer means to keep."""
