"""A quantized weight at inference: packed codes, scales and zero points."""

from __future__ import annotations

import torch
from torch import Tensor

from zoopress.coding.bits import packed_size, unpack_codes
from zoopress.models.export_form import ExportForm
from zoopress.models.packed_call import linear_in_blocks
from zoopress.models.packing import CodeLayout, PackedWeight, Product
from zoopress.models.weights import as_matrix
from zoopress_plugins.quantization.forms.packed_rows import (
    IN_BLOCKS,
    blocks_serve,
    dense_from_rows,
    scales_outputs,
)

INT4_KERNEL_ROWS = 32
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
        return dense_from_rows(self, self.columns)

    def dense_rows(self, some: slice | Tensor) -> Tensor:
        """Return some rows of the matrix [n, columns]."""
        codes, scale = self.codes[some], self.scale[some]
        zero_point = None if self.zero_point is None else self.zero_point[some]
        levels = unpack_codes(codes, self.bits, self.columns)
        if zero_point is None:
            levels = levels.view(torch.int8)
            if self.bits < 8:  # extend the sign
                half = 1 << (self.bits - 1)
                levels = (levels ^ half).sub_(half)
        out = levels.to(self.dtype)
        if scale.shape[1] == 1:
            _scale(out, scale, zero_point)
            return out
        full = self.columns // self.group_size  # a last group may have fewer columns
        end = full * self.group_size
        for values, groups in (
            (out[:, :end].view(len(out), full, self.group_size), slice(full)),
            (out[:, None, end:], slice(full, None)),
        ):
            if values.numel():
                offset = None if zero_point is None else zero_point[:, groups, None]
                _scale(values, scale[:, groups, None], offset)
        return out

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
        if self._has_int4_kernel():
            return f"torch int4 kernel up to {INT4_KERNEL_ROWS} rows, {IN_BLOCKS} for more"
        # Elsewhere, making the weight takes several times as long as the product.
        return blocks_serve(self.shape) if self._scales_outputs() else None

    def linear(self, input: Tensor, bias: Tensor | None) -> Tensor:
        """Compute input [rows, in] times the weight [out, in] transposed, plus bias [out]."""
        if self._scales_outputs() and input.dtype != torch.bfloat16:
            codes = self.codes.view(torch.int8)
            return linear_in_blocks(self, input, bias, codes.__getitem__, self.scale.view(-1))
        # The kernel rounds what it returns to bfloat16, so a bias would be added to rounded sums.
        fits = input.dtype == torch.bfloat16 and bias is None and len(input) <= INT4_KERNEL_ROWS
        return (
            self._int4(input) if fits and self._has_int4_kernel() else super().linear(input, bias)
        )

    def _scales_outputs(self) -> bool:
        return (
            scales_outputs(self) and self.bits == 8 and self.symmetric and self.scale.shape[1] == 1
        )

    def _has_int4_kernel(self) -> bool:
        return (
            self.bits == 4
            and self.computes_in == torch.bfloat16  # for other types it is slower than the product
            and self.symmetric  # it would round zero points times scales to bfloat16
            and self.group_size in INT4_KERNEL_GROUPS
            and self.columns % self.group_size == 0
            and self.rows % 16 == 0
            and len(self.shape) == 2
            and self.output_axis == 0
            and self.device.type == "cpu"
            # Without vector instructions it is slower than dequantizing.
            and torch.backends.cpu.get_cpu_capability() != "DEFAULT"
        )

    def _int4(self, input: Tensor) -> Tensor:
        if self._kernel_weight is None or self._kernel_scale is None:
            # The kernel counts from 0 and takes 8 as zero.
            levels = unpack_codes(self.codes, 4, self.columns).to(torch.int32) ^ 8
            self._kernel_weight = torch._convert_weight_to_int4pack_for_cpu(levels, 1)
            pairs = torch.stack([self.scale, torch.zeros_like(self.scale)], -1)
            self._kernel_scale = pairs.transpose(0, 1).contiguous()
        return torch._weight_int4pack_mm_for_cpu(
            input, self._kernel_weight, self.group_size, self._kernel_scale
        )


def _scale(values: Tensor, scale: Tensor, zero_point: Tensor | None) -> None:
    """Turn codes into weights, in place."""
    if zero_point is not None:
        values -= zero_point.to(values.dtype)
    values *= scale.to(values.dtype)


def dequantized(weight: QuantizedWeight) -> Tensor:
    """Return a quantized weight as [out, in], for tests and exporters."""
    return as_matrix(weight.dense(), weight.output_axis)
