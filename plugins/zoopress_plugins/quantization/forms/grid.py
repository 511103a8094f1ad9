"""A weight of integers times steps: a step for each row, each column, both, or one for all."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

from zoopress.coding.layout import Integers, Scan
from zoopress.kernels.products import CodedRows
from zoopress.models.export_form import ExportForm
from zoopress.models.packing import CodeLayout, PackedWeight
from zoopress_plugins.quantization.forms.packed_rows import dense_from_rows

Steps = Literal["tensor", "row", "column", "both"]


class GridWeight(PackedWeight):
    """A weight whose value in row r and column c is codes[r, c] · row_step[r] · column_step[c].

    Buffers:
        codes: [rows, columns], int8 or int16.
        row_step: [rows], bfloat16; [1] if `steps` is "tensor", none if it is "column".
        column_step: [columns], bfloat16; only if `steps` is "column" or "both".

    Args:
        shape: of the weight.
        dtype: of the weight.
        output_axis: what the rows are of the weight's axes.
        bits: of a stored code, 8 or 16.
        steps: which of them there are.
        scan: along what the codes are entropy coded.
        trellis: whether they are paths of the trellis there, see `zoopress.coding.trellis`.
    """

    codes: Tensor
    row_step: Tensor | None
    column_step: Tensor | None

    def __init__(
        self,
        shape: torch.Size,
        dtype: torch.dtype,
        output_axis: int,
        bits: int,
        steps: Steps,
        scan: Scan,
        trellis: bool,
    ) -> None:
        super().__init__(shape, dtype, output_axis)
        if type(bits) is not int or bits not in (8, 16):
            raise ValueError(f"bits must be 8 or 16, not {bits!r}")
        if steps not in get_args(Steps):
            raise ValueError(f"steps must be one of {list(get_args(Steps))}, not {steps!r}")
        if scan not in get_args(Scan):
            raise ValueError(f"scan must be one of {list(get_args(Scan))}, not {scan!r}")
        if type(trellis) is not bool:
            raise ValueError(f"trellis must be true or false, not {trellis!r}")
        if not shape.numel():
            raise ValueError(f"a weight of shape {tuple(shape)} has nothing to quantize")
        self.rows = shape[output_axis]
        self.columns = shape.numel() // self.rows
        self.scan, self.trellis = scan, trellis
        integers = torch.int8 if bits == 8 else torch.int16
        self.register_buffer("codes", torch.empty(self.rows, self.columns, dtype=integers))
        rows = {"tensor": 1, "column": 0}.get(steps, self.rows)
        columns = self.columns if steps in ("column", "both") else 0
        for name, size in (("row_step", rows), ("column_step", columns)):
            step = torch.empty(size, dtype=torch.bfloat16) if size else None
            self.register_buffer(name, step)

    def dense(self) -> Tensor:
        """Return the weight in its own shape and type, with gradients for the steps."""
        return dense_from_rows(self, self.columns)

    def dense_rows(self, some: slice | Tensor) -> Tensor:
        """Return some rows of the matrix [n, columns]."""
        # The product of two steps is exact in float32, so the order of the factors is no matter.
        values = self.codes[some].to(torch.promote_types(self.dtype, torch.float32))
        if self.row_step is not None:
            one = len(self.row_step) == 1
            row_step = self.row_step if one else self.row_step[some]
            values = values * row_step.to(values.dtype)[:, None]
        if self.column_step is not None:
            values = values * self.column_step.to(values.dtype)
        return values.to(self.dtype)

    def code_layouts(self) -> dict[str, CodeLayout | Integers]:
        """Return that `codes` holds integers, and how they are coded."""
        return {"codes": Integers(self.scan, self.trellis)}

    def export_form(self) -> ExportForm | None:
        """Return the codes, unless rows and columns have steps both, which QDQ has no word for."""
        bits = 8 * self.codes.itemsize
        if self.column_step is None:
            assert self.row_step is not None
            if len(self.row_step) == 1 < self.rows:
                return ExportForm(self.codes, bits, self.row_step, axis=None)
            return ExportForm(self.codes, bits, self.row_step[:, None])
        if self.row_step is None:
            return ExportForm(self.codes, bits, self.column_step, axis=1)
        return None

    def tunable(self) -> tuple[str, ...]:
        """Name the steps."""
        return tuple(n for n in ("row_step", "column_step") if getattr(self, n) is not None)

    def coded_rows(self) -> CodedRows:
        """Return the codes as products decode them; inputs are multiplied by steps of columns."""
        return CodedRows(self.codes, self.columns, 8 * self.codes.itemsize, True, self.row_step)

    def linear(self, input: Tensor, bias: Tensor | None) -> Tensor:
        """Compute input [rows, in] times the weight [out, in] transposed, plus bias [out]."""
        if self.column_step is None or input.dtype == torch.float64:
            return super().linear(input, bias)
        scaled = input.float() * self.column_step.float()
        return super().linear(scaled, None if bias is None else bias.float()).to(input.dtype)
