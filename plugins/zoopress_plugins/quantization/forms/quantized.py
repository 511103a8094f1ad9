"""A quantized weight at inference: packed codes, scales and zero points.

A few rows of input are multiplied by torch's low-bit kernels, which read the codes themselves; that
is where memory bandwidth is the limit. More rows are multiplied by the dense weight, made for the
moment: there arithmetic is the limit and the dense product is faster.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from zoopress.coding.bits import packed_size, unpack_codes
from zoopress.models.export_form import ExportForm
from zoopress.models.packing import CodeLayout, PackedWeight, Product
from zoopress.models.weights import as_matrix, from_matrix

# Unpacked at once: what is made on the way for a whole tensor would take as much as the tensor.
_BLOCK_WEIGHTS = 1 << 18
INT8_KERNEL_ROWS = 64
INT4_KERNEL_ROWS = 128
INT4_KERNEL_GROUPS = (32, 64, 128, 256)


class QuantizedWeight(PackedWeight):
    """A weight on uniform grids.

    Buffers:
        codes: [out, bytes], uint8, `bits` bits each; two's complement if symmetric.
        scale: [out, groups], bfloat16.
        zero_point: [out, groups], uint8; only if not symmetric.
    """

    codes: Tensor
    scale: Tensor
    zero_point: Tensor | None

    def __init__(
        self,
        shape: torch.Size,
        dtype: torch.dtype,
        output_axis: int,
        bits: int,
        group_size: int,
        symmetric: bool,
    ) -> None:
        super().__init__(shape, dtype, output_axis)
        if type(bits) is not int or not 2 <= bits <= 8:
            raise ValueError(f"bits must be 2 to 8, not {bits!r}")
        if type(symmetric) is not bool:
            raise ValueError(f"symmetric must be true or false, not {symmetric!r}")
        if not shape.numel():
            raise ValueError(f"a weight of shape {tuple(shape)} has nothing to quantize")
        rows = shape[output_axis]
        columns = shape.numel() // rows
        if type(group_size) is not int or not 1 <= group_size <= columns:
            raise ValueError(f"group_size must be 1 to {columns}, not {group_size!r}")
        self.bits = bits
        self.group_size = group_size
        self.symmetric = symmetric
        self.rows, self.columns = rows, columns
        groups = -(-columns // group_size)
        self.register_buffer(
            "codes", torch.empty(rows, packed_size(columns, bits), dtype=torch.uint8)
        )
        self.register_buffer("scale", torch.empty(rows, groups, dtype=torch.bfloat16))
        zero_point = None if symmetric else torch.empty(rows, groups, dtype=torch.uint8)
        self.register_buffer("zero_point", zero_point)
        self._kernel_weight: Tensor | None = None
        self._kernel_scale: Tensor | None = None

    def dense(self) -> Tensor:
        """Return the weight in its own shape and type."""
        matrix = torch.empty(self.rows, self.columns, dtype=self.dtype, device=self.codes.device)
        # Codes of 8 bits are used as they are; of many blocks a gradient would take long.
        whole = self.bits == 8 or (torch.is_grad_enabled() and self.scale.requires_grad)
        step = self.rows if whole else max(1, _BLOCK_WEIGHTS // self.columns)
        for first in range(0, self.rows, step):
            some = slice(first, first + step)
            zero_point = None if self.zero_point is None else self.zero_point[some]
            self._dequantize(self.codes[some], self.scale[some], zero_point, matrix[some])
        if self.output_axis == 0:
            return matrix.view(self.shape)
        return from_matrix(matrix, self.shape, self.output_axis)

    def code_layouts(self) -> dict[str, CodeLayout]:
        """Return that `codes` holds codes, and which code is zero."""
        fill = 0 if self.symmetric else "zero_point"
        layout = CodeLayout(self.bits, self.columns, fill, self.group_size, signed=self.symmetric)
        return {"codes": layout}

    def export_form(self) -> ExportForm:
        """Return the codes, a byte each."""
        codes = unpack_codes(self.codes, self.bits, self.columns)
        if self.symmetric:
            codes = codes.view(torch.int8)
            if self.bits < 8:  # extend the sign
                half = 1 << (self.bits - 1)
                codes = (codes ^ half) - half
        whole = self.group_size == self.columns
        group_size = None if whole else self.group_size
        return ExportForm(codes, self.bits, self.scale, self.zero_point, 0, group_size)

    def tunable(self) -> tuple[str, ...]:
        """Name the scales."""
        return ("scale",)

    def changed(self) -> None:
        """Forget the form in which the int4 kernel reads codes and scales."""
        self._kernel_weight = self._kernel_scale = None

    def kernel(self, product: Product) -> str | None:
        """Name what computes a product here without the dense weight, None if nothing does."""
        if product == "embedding":
            return "only the rows looked up are dequantized"
        if self._has_int8_kernel():
            return f"torch int8 kernel up to {INT8_KERNEL_ROWS} rows, dequantized for more"
        if self._has_int4_kernel():
            return f"torch int4 kernel up to {INT4_KERNEL_ROWS} rows, dequantized for more"
        return None

    def linear(self, input: Tensor, bias: Tensor | None) -> Tensor:
        """Compute input [..., in] times the weight [out, in] transposed, plus bias [out]."""
        rows = input.numel() // max(1, input.shape[-1])
        if input.dtype in (torch.float32, torch.bfloat16) and rows > 0:
            if rows <= INT8_KERNEL_ROWS and self._has_int8_kernel():
                return self._int8_linear(input, bias)
            if rows <= INT4_KERNEL_ROWS and self._has_int4_kernel():
                return self._int4_linear(input, bias)
        return F.linear(input, self.dense().to(input.dtype), bias)

    def embedding(self, indices: Tensor) -> Tensor:
        """Return the rows at `indices`; only those are dequantized."""
        flat = indices.reshape(-1)
        zero_point = None if self.zero_point is None else self.zero_point[flat]
        rows = torch.empty(len(flat), self.columns, dtype=self.dtype, device=self.codes.device)
        self._dequantize(self.codes[flat], self.scale[flat], zero_point, rows)
        return rows.view(*indices.shape, self.columns)

    def _dequantize(
        self, codes: Tensor, scale: Tensor, zero_point: Tensor | None, out: Tensor
    ) -> None:
        """Write rows into `out` [n, columns], of the weight's type."""
        levels = unpack_codes(codes, self.bits, self.columns)
        if zero_point is None:
            levels = levels.view(torch.int8)
            if self.bits < 8:  # extend the sign
                half = 1 << (self.bits - 1)
                levels = (levels ^ half).sub_(half)
        out.copy_(levels)
        if scale.shape[1] == 1:
            _scale(out, scale, zero_point)
            return
        full = self.columns // self.group_size  # a last group may have fewer columns
        end = full * self.group_size
        for values, groups in (
            (out[:, :end].view(len(out), full, self.group_size), slice(full)),
            (out[:, None, end:], slice(full, None)),
        ):
            if values.numel():
                offset = None if zero_point is None else zero_point[:, groups, None]
                _scale(values, scale[:, groups, None], offset)

    def _has_int8_kernel(self) -> bool:
        return (
            self.bits == 8 and self.symmetric and self.scale.shape[1] == 1 and self._fits_kernels()
        )

    def _has_int4_kernel(self) -> bool:
        return (
            self.bits == 4
            and self.group_size in INT4_KERNEL_GROUPS
            and self.columns % self.group_size == 0
            and self.rows % 16 == 0
            and self._fits_kernels()
        )

    def _fits_kernels(self) -> bool:
        return fits_kernels(self, self.columns)

    def _int8_linear(self, input: Tensor, bias: Tensor | None) -> Tensor:
        self.codes = aligned(self.codes)
        return int8_linear(input, self.codes.view(torch.int8), self.scale.view(-1), bias)

    def _int4_linear(self, input: Tensor, bias: Tensor | None) -> Tensor:
        flat = input.reshape(-1, self.columns).bfloat16()
        if self._kernel_weight is None or self._kernel_scale is None:
            levels = unpack_codes(self.codes, 4, self.columns).to(torch.int32)
            scale = self.scale.float()
            if self.zero_point is None:
                levels = levels ^ 8  # the kernel counts from 0 and takes 8 as zero
                zero = torch.zeros_like(scale)
            else:
                zero = (8 - self.zero_point.float()) * scale
            self._kernel_weight = torch._convert_weight_to_int4pack_for_cpu(levels, 1)
            self._kernel_scale = (
                torch.stack([scale, zero], -1).transpose(0, 1).bfloat16().contiguous()
            )
        product = torch._weight_int4pack_mm_for_cpu(
            flat, self._kernel_weight, self.group_size, self._kernel_scale
        )
        result = product.to(input.dtype)
        if bias is not None:
            result = result + bias
        return result.view(*input.shape[:-1], self.rows)


def fits_kernels(weight: PackedWeight, columns: int) -> bool:
    """Tell whether torch's low-bit kernels take a packed weight, whatever its bits."""
    # Without vector instructions torch's kernels are slower than dequantizing.
    return (
        len(weight.shape) == 2
        and weight.output_axis == 0
        and columns % 32 == 0
        and next(weight.buffers()).device.type == "cpu"
        and torch.backends.cpu.get_cpu_capability() != "DEFAULT"
    )


def aligned(codes: Tensor) -> Tensor:
    """Return codes where torch's kernels, which crash on unaligned memory, can read them."""
    return codes.clone() if codes.data_ptr() % 64 else codes


def int8_linear(input: Tensor, codes: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor:
    """Compute input [..., in] times (codes [out, in] · scale) transposed, plus bias [out].

    The kernel rounds inputs to bfloat16.

    Args:
        input: float32 or bfloat16.
        codes: int8, `aligned`.
        scale: [out], or [1] for all.
        bias: [out].
    """
    rows, columns = codes.shape
    # Ones: in bfloat16 the scales would lose nothing, but the sums would be rounded twice.
    ones = torch.ones(rows, dtype=torch.bfloat16)
    product = torch._weight_int8pack_mm(input.reshape(-1, columns).bfloat16(), codes, ones)
    result = product.to(input.dtype) * scale.to(input.dtype)
    if bias is not None:
        result = result + bias
    return result.view(*input.shape[:-1], rows)


def _scale(values: Tensor, scale: Tensor, zero_point: Tensor | None) -> None:
    """Turn codes into weights, in place."""
    if zero_point is not None:
        values -= zero_point.to(values.dtype)
    values *= scale.to(values.dtype)


def dequantized(weight: QuantizedWeight) -> Tensor:
    """Return a quantized weight as [out, in], for tests and exporters."""
    return as_matrix(weight.dense(), weight.output_axis)
