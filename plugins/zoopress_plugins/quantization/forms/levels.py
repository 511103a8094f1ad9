"""A weight of levels that a scheme fixes, times scales: NF4, small floats, powers of two, signs."""

from __future__ import annotations

import torch
from torch import Tensor

from zoopress.coding.bits import packed_size, unpack_codes
from zoopress.kernels.products import CodedRows
from zoopress.models.export_form import ExportForm
from zoopress.models.packing import AnyLayout, CodeLayout, OwnCodes, PackedWeight
from zoopress_plugins.quantization.forms.digits import digit_bytes, pack_digits, unpack_digits
from zoopress_plugins.quantization.forms.packed_rows import dense_from_rows, matrix_size
from zoopress_plugins.quantization.grids.named import named_grid


class LevelsWeight(PackedWeight):
    """A weight whose value is levels[code] · scale of its group.

    Buffers:
        codes: [rows, bytes], uint8: `bits` bits each, or of three levels five digits a byte.
        scale: [rows, groups], bfloat16; [1, 1] if one serves all.
        negative_scale: the same, for levels below zero; only with `two_scales`.

    Args:
        shape: of the weight.
        dtype: of the weight.
        output_axis: what the rows are of the weight's axes.
        grid: name of the levels, see `grids.named`.
        bits: of a code.
        group_size: columns of a row that share a scale; 0 if one serves all of the weight.
        two_scales: whether negative levels have a scale of their own.
    """

    codes: Tensor
    scale: Tensor
    negative_scale: Tensor | None

    def __init__(
        self,
        shape: torch.Size,
        dtype: torch.dtype,
        output_axis: int,
        grid: str,
        bits: int,
        group_size: int,
        two_scales: bool,
    ) -> None:
        super().__init__(shape, dtype, output_axis)
        self.grid = named_grid(grid, bits)
        self.bits = bits
        self.rows, self.columns = matrix_size(shape, output_axis)
        if type(group_size) is not int or not 0 <= group_size <= self.columns:
            raise ValueError(f"group_size must be 0 to {self.columns}, not {group_size!r}")
        if type(two_scales) is not bool:
            raise ValueError(f"two_scales must be true or false, not {two_scales!r}")
        self.group_size = group_size
        self.in_digits = self.grid.count == 3
        size = digit_bytes(self.columns) if self.in_digits else packed_size(self.columns, bits)
        self.register_buffer("codes", torch.empty(self.rows, size, dtype=torch.uint8))
        scales = (self.rows, -(-self.columns // group_size)) if group_size else (1, 1)
        self.register_buffer("scale", torch.empty(scales, dtype=torch.bfloat16))
        other = torch.empty(scales, dtype=torch.bfloat16) if two_scales else None
        self.register_buffer("negative_scale", other)
        self._levels: Tensor | None = None  # on the device of the codes

    def dense(self) -> Tensor:
        """Return the weight in its own shape and type."""
        return dense_from_rows(self, self.columns)

    def dense_rows(self, some: slice | Tensor) -> Tensor:
        """Return some rows of the matrix [n, columns]."""
        codes, kind = self.codes[some], torch.promote_types(self.dtype, torch.float32)
        if self.in_digits:
            indices = unpack_digits(codes, self.columns)
        else:
            indices = unpack_codes(codes, self.bits, self.columns)
        table = self._table(kind)
        levels = table.index_select(0, indices.reshape(-1).int()).view(-1, self.columns)
        scale = self._spread(self.scale, some, kind)
        if self.negative_scale is not None:
            scale = torch.where(levels < 0, self._spread(self.negative_scale, some, kind), scale)
        return (levels * scale).to(self.dtype)

    def coded_rows(self) -> CodedRows | None:
        """Return the codes as products decode them, where each has one value and one scale."""
        if self.in_digits or self.negative_scale is not None:
            return None
        groups = self.scale.shape[1] > 1
        return CodedRows(
            self.codes,
            self.columns,
            self.bits,
            signed=False,
            scale=self.scale if groups else self.scale.flatten(),
            group_size=self.group_size if groups else None,
            table=self._table(torch.float32),
        )

    def code_layouts(self) -> dict[str, AnyLayout]:
        """Return that `codes` holds codes, and which of them is zero's, if any."""
        fill = self.grid.zero
        if self.in_digits:
            columns = self.columns
            layout: AnyLayout = OwnCodes(
                self.rows, columns, 3, lambda b: unpack_digits(b, columns), pack_digits, fill
            )
        else:
            layout = CodeLayout(self.bits, self.columns, fill, 1, self.grid.signed)
        return {"codes": layout}

    def export_form(self) -> ExportForm | None:
        """Return levels as integers, where all are multiples of one number and have one scale."""
        integers = self.grid.integers()
        if integers is None or self.negative_scale is not None:
            return None
        assert self.grid.unit is not None
        codes = self._codes()
        values = integers.to(codes.device).index_select(0, codes.reshape(-1).int())
        largest = int(integers.max())
        scale = self.scale * self.grid.unit  # a power of two, so this is exact
        of_all, whole = not self.group_size, self.group_size == self.columns
        return ExportForm(
            codes=values.view(codes.shape),
            bits=largest.bit_length() + 1,
            scale=scale.flatten() if of_all else scale,
            axis=None if of_all else 0,
            group_size=None if of_all or whole else self.group_size,
        )

    def tunable(self) -> tuple[str, ...]:
        """Name the scales."""
        return ("scale",) if self.negative_scale is None else ("scale", "negative_scale")

    def changed(self) -> None:
        """Forget the levels, which may be elsewhere now."""
        self._levels = None

    def _codes(self) -> Tensor:
        if self.in_digits:
            return unpack_digits(self.codes, self.columns)
        return unpack_codes(self.codes, self.bits, self.columns)

    def _table(self, kind: torch.dtype) -> Tensor:
        """Return the levels by code; a code that stands for nothing is taken for zero."""
        if self._levels is None or self._levels.device != self.codes.device:
            self._levels = self.grid.levels.nan_to_num(0.0).to(self.codes.device)
        return self._levels.to(kind)

    def _spread(self, scale: Tensor, some: slice | Tensor, kind: torch.dtype) -> Tensor:
        """Return what broadcasts to some rows of the matrix."""
        if not self.group_size:
            return scale.to(kind)
        mine = scale[some].to(kind)
        if mine.shape[1] == 1:
            return mine
        return mine.repeat_interleave(self.group_size, 1)[:, : self.columns]
