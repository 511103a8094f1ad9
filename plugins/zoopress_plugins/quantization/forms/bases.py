"""A weight of several signs: the sum of scales, each with a sign of its own for each weight."""

from __future__ import annotations

import torch
from torch import Tensor

from zoopress.coding.bits import packed_size, unpack_codes
from zoopress.models.packing import CodeLayout, PackedWeight, Product
from zoopress_plugins.quantization.forms.packed_rows import dense_from_rows, matrix_size

MOST_BASES = 4


class BasesWeight(PackedWeight):
    """A weight whose value is the sum over i of scale[i] if bit i of its code is set, else of −it.

    Buffers:
        codes: [rows, bytes], uint8, `bases` bits each.
        scale: [rows, groups · bases], bfloat16; those of a group one after the other.

    Args:
        shape: of the weight.
        dtype: of the weight.
        output_axis: what the rows are of the weight's axes.
        bases: signs of a weight.
        group_size: columns of a row that share scales.
    """

    codes: Tensor
    scale: Tensor

    def __init__(
        self, shape: torch.Size, dtype: torch.dtype, output_axis: int, bases: int, group_size: int
    ) -> None:
        super().__init__(shape, dtype, output_axis)
        if type(bases) is not int or not 1 <= bases <= MOST_BASES:
            raise ValueError(f"bases must be 1 to {MOST_BASES}, not {bases!r}")
        rows, self.columns = matrix_size(shape, output_axis)
        if type(group_size) is not int or not 1 <= group_size <= self.columns:
            raise ValueError(f"group_size must be 1 to {self.columns}, not {group_size!r}")
        self.bases, self.group_size = bases, group_size
        codes = torch.empty(rows, packed_size(self.columns, bases), dtype=torch.uint8)
        self.register_buffer("codes", codes)
        groups = -(-self.columns // group_size)
        self.register_buffer("scale", torch.empty(rows, groups * bases, dtype=torch.bfloat16))

    def dense(self) -> Tensor:
        """Return the weight in its own shape and type."""
        return dense_from_rows(self, self.columns)

    def dense_rows(self, some: slice | Tensor) -> Tensor:
        """Return some rows of the matrix [n, columns]."""
        kind = torch.promote_types(self.dtype, torch.float32)
        codes = unpack_codes(self.codes[some], self.bases, self.columns)
        groups = self.scale.shape[1] // self.bases
        scale = self.scale[some].to(kind).view(len(codes), groups, self.bases)
        total: Tensor | None = None
        for place in range(self.bases):
            signs = (codes >> place & 1).to(kind).mul_(2).sub_(1)
            mine = scale[:, :, place]
            if groups > 1:
                mine = mine.repeat_interleave(self.group_size, 1)[:, : self.columns]
            part = signs * mine
            total = part if total is None else total + part
        assert total is not None
        return total.to(self.dtype)

    def kernel(self, product: Product) -> str | None:
        """Name what computes a look-up without the dense weight."""
        return "only the rows looked up are made" if product == "embedding" else None

    def code_layouts(self) -> dict[str, CodeLayout]:
        """Return that `codes` holds codes, none of which is zero's."""
        return {"codes": CodeLayout(self.bases, self.columns, fill=None, group=1)}

    def tunable(self) -> tuple[str, ...]:
        """Name the scales."""
        return ("scale",)
