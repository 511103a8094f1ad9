"""A weight on two uniform grids: one step up to a breakpoint, another beyond."""

from __future__ import annotations

import torch
from torch import Tensor

from zoopress.coding.bits import packed_size, unpack_codes
from zoopress.models.packing import CodeLayout, PackedWeight, Product
from zoopress_plugins.quantization.forms.packed_rows import dense_from_rows, matrix_size
from zoopress_plugins.quantization.grids.piecewise import values_of


class PiecewiseWeight(PackedWeight):
    """A weight of magnitude min(|c|, k) · inner + max(|c| − k, 0) · outer, with k = 2^(bits − 2).

    Buffers:
        codes: [rows, bytes], uint8, `bits` bits each, two's complement.
        inner: [rows, groups], bfloat16, the centre's steps.
        outer: [rows, groups], bfloat16, the tails' steps.

    Args:
        shape: of the weight.
        dtype: of the weight.
        output_axis: what the rows are of the weight's axes.
        bits: of a code.
        group_size: columns of a row that share steps.
    """

    codes: Tensor
    inner: Tensor
    outer: Tensor

    def __init__(
        self, shape: torch.Size, dtype: torch.dtype, output_axis: int, bits: int, group_size: int
    ) -> None:
        super().__init__(shape, dtype, output_axis)
        if type(bits) is not int or not 3 <= bits <= 8:
            raise ValueError(f"bits must be 3 to 8, not {bits!r}")
        rows, self.columns = matrix_size(shape, output_axis)
        if type(group_size) is not int or not 1 <= group_size <= self.columns:
            raise ValueError(f"group_size must be 1 to {self.columns}, not {group_size!r}")
        self.bits, self.group_size = bits, group_size
        codes = torch.empty(rows, packed_size(self.columns, bits), dtype=torch.uint8)
        self.register_buffer("codes", codes)
        groups = -(-self.columns // group_size)
        for name in ("inner", "outer"):
            self.register_buffer(name, torch.empty(rows, groups, dtype=torch.bfloat16))

    def dense(self) -> Tensor:
        """Return the weight in its own shape and type."""
        return dense_from_rows(self, self.columns)

    def dense_rows(self, some: slice | Tensor) -> Tensor:
        """Return some rows of the matrix [n, columns]."""
        codes = unpack_codes(self.codes[some], self.bits, self.columns).view(torch.int8)
        if self.bits < 8:  # extend the sign
            half = 1 << (self.bits - 1)
            codes = (codes ^ half) - half
        inner, outer = (self._spread(each[some]) for each in (self.inner, self.outer))
        return values_of(codes, inner, outer, self.bits).to(self.dtype)

    def kernel(self, product: Product) -> str | None:
        """Name what computes a look-up without the dense weight."""
        return "only the rows looked up are made" if product == "embedding" else None

    def code_layouts(self) -> dict[str, CodeLayout]:
        """Return that `codes` holds codes, and that 0 is zero's."""
        return {"codes": CodeLayout(self.bits, self.columns, fill=0, group=1, signed=True)}

    def tunable(self) -> tuple[str, ...]:
        """Name the steps."""
        return ("inner", "outer")

    def _spread(self, steps: Tensor) -> Tensor:
        """Return what broadcasts to rows of the matrix, given [n, groups]."""
        wide = steps.to(torch.promote_types(self.dtype, torch.float32))
        if wide.shape[1] == 1:
            return wide
        return wide.repeat_interleave(self.group_size, 1)[:, : self.columns]
