"""Multiply inputs by a weight that stays coded, as exactly as float32 does and no slower."""

from __future__ import annotations

import sys
from array import array
from dataclasses import dataclass

import torch
from torch import Tensor

from zoopress.kernels import machine_code
from zoopress.kernels.task import FIELDS
from zoopress.kernels.threads import run_in_threads

_BLOCK_FLOATS = 1 << 15
"""Decoded at once: it lies in the second cache of a core, beside the inputs that pass it."""
_FEW_ROWS = 256
"""Inputs between which a block is decoded anew, where there are fewer blocks than threads."""


@dataclass(frozen=True)
class CodedRows:
    """A matrix [outputs, columns] as codes, and what they stand for.

    The value of a code c is (c − zero point) · scale, or table[c] · scale.

    Attributes:
        codes: [outputs, bytes], uint8, of codes of `bits` bits packed as `zoopress.coding.bits`
            does; or int8 or int16 [outputs, columns].
        columns: codes in each row.
        bits: of a code, 1 to 8, or 16.
        signed: whether codes are two's complement; of 16 bits they are.
        scale: [outputs] or [1], or [outputs, groups]; float32 or bfloat16. None for 1.
        zero_point: uint8, [outputs, groups] or [outputs].
        group_size: columns of a group, of which the last may have fewer; None if rows are whole.
        table: [2**bits], float32; its codes are not signed.
    """

    codes: Tensor
    columns: int
    bits: int
    signed: bool
    scale: Tensor | None = None
    zero_point: Tensor | None = None
    group_size: int | None = None
    table: Tensor | None = None


def serves(device: torch.device) -> bool:
    """Tell whether products are computed here: on CPUs, of which all that numba knows will do."""
    return device.type == "cpu" and sys.byteorder == "little"


def multiply(input: Tensor, weight: CodedRows, bias: Tensor | None) -> Tensor:
    """Compute input [..., columns] times a weight [outputs, columns] transposed, plus bias.

    All is computed in float32; so it is for narrower inputs, and rounded to their type once.

    Args:
        input: float32 or of 16 bits, on a CPU.
        weight: on a CPU.
        bias: [outputs].
    """
    kernel = machine_code.kernel()
    columns = input.shape[-1]
    rows = input.numel() // columns
    outputs, padded = len(weight.codes), -(-columns // kernel.lanes) * kernel.lanes
    given = input.detach().float().reshape(rows, columns)
    if padded != columns:
        given = torch.nn.functional.pad(given, (0, padded - columns))
    given = given.contiguous()
    # A bias that learns is added by an operation that has a derivative.
    learns = bias is not None and torch.is_grad_enabled() and bias.requires_grad
    added = None if bias is None or learns else bias.detach().float().contiguous()
    result = given.new_empty(rows, outputs)
    codes = weight.codes.contiguous()
    scale = None if weight.scale is None else _readable(weight.scale)
    zero_point = None if weight.zero_point is None else weight.zero_point.contiguous()
    groups = 0 if weight.group_size is None else -(-columns // weight.group_size)
    threads = torch.get_num_threads()
    size = min(max(_BLOCK_FLOATS // padded, 1), 64, -(-outputs // threads))
    size = -(-size // kernel.tile_outputs) * kernel.tile_outputs
    blocks = -(-outputs // size)
    part = rows if blocks >= 4 * threads else max(_FEW_ROWS, -(-rows * blocks // (4 * threads)))
    pieces = blocks * -(-rows // part)
    slot = size * padded + 2 * size + kernel.tile_rows * kernel.tile_outputs
    scratch = given.new_empty(min(threads, pieces) * slot)

    def place(tensor: Tensor | None) -> int:
        return 0 if tensor is None else tensor.data_ptr()

    fields = {
        "next_piece": 0,
        "next_slot": 0,
        "pieces": pieces,
        "output_blocks": blocks,
        "block_outputs": size,
        "block_rows": part,
        "inputs": given.data_ptr(),
        "rows": rows,
        "columns": columns,
        "padded_columns": padded,
        "codes": codes.data_ptr(),
        "row_bytes": codes.stride(0) * codes.itemsize,
        "codes_end": codes.data_ptr() + codes.nbytes,
        "bits": weight.bits,
        "signed": int(weight.signed),
        "outputs": outputs,
        "scale": place(scale),
        "scales": 0 if scale is None else scale.numel(),
        "scale_size": 0 if scale is None else scale.itemsize,
        "bias": place(added),
        "groups": groups,
        "group_size": weight.group_size or 0,
        "zero_point": place(zero_point),
        "table": place(weight.table),
        "result": result.data_ptr(),
        "scratch": scratch.data_ptr(),
        "slot_floats": slot,
    }
    task = array("q", [fields[name] for name in FIELDS])
    run_in_threads(kernel.address, task.buffer_info()[0], pieces)
    if learns:
        assert bias is not None
        result = result + bias.float()
    return result.to(input.dtype).view(*input.shape[:-1], outputs)


def _readable(scale: Tensor) -> Tensor:
    kind = scale.dtype if scale.dtype in (torch.float32, torch.bfloat16) else torch.float32
    return scale.detach().to(kind).contiguous()
