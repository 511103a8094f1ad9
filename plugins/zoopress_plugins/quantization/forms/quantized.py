"""A quantized weight at inference: packed codes, scales and zero points."""

from __future__ import annotations

import torch
from torch import Tensor

from zoopress.coding.bits import packed_size, unpack_codes
from zoopress.kernels.products import CodedRows
from zoopress.models.export_form import ExportForm
from zoopress.models.packing import CodeLayout, PackedWeight
from zoopress.models.weights import as_matrix
from zoopress_plugins.quantization.forms.packed_rows import dense_from_rows


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

    def coded_rows(self) -> CodedRows:
        """Return the codes as products decode them."""
        whole = self.scale.shape[1] == 1
        return CodedRows(
            self.codes,
            self.columns,
            self.bits,
            self.symmetric,
            self.scale.view(-1) if whole else self.scale,
            self.zero_point,
            None if whole else self.group_size,
        )


def _scale(values: Tensor, scale: Tensor, zero_point: Tensor | None) -> None:
    """Turn codes into weights, in place."""
    if zero_point is not None:
        values -= zero_point.to(values.dtype)
    values *= scale.to(values.dtype)


def dequantized(weight: QuantizedWeight) -> Tensor:
    """Return a quantized weight as [out, in], for tests and exporters."""
    return as_matrix(weight.dense(), weight.output_axis)
