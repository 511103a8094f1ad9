"""A weight of lattice points, less the dither that was added before they were found."""

from __future__ import annotations

from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor

from zoopress.coding.layout import Integers
from zoopress.models.packing import Codes, PackedWeight
from zoopress_plugins.quantization.forms.dither import Lattice, dither, points_of
from zoopress_plugins.quantization.forms.packed_rows import dense_from_rows, matrix_size

Dithered = Literal["none", "all", "nonzero"]


class LatticeWeight(PackedWeight):
    """A weight whose value is step · (point − dither), in float32.

    Buffers:
        codes: [rows, columns], int8 or int16; see `dither.codes_of`.
        step: [rows] or [1], bfloat16.

    Args:
        shape: of the weight.
        dtype: of the weight.
        output_axis: what the rows are of the weight's axes.
        bits: of a stored code, 8 or 16.
        lattice: what the points are of.
        dithered: which weights have a dither; with "nonzero" those of code 0 are 0, as a pruned
            weight must be.
        seed: of the dither, 0 to 2**63 − 1.
        steps: what has a step of its own, "tensor" or "row".
    """

    codes: Tensor
    step: Tensor

    def __init__(
        self,
        shape: torch.Size,
        dtype: torch.dtype,
        output_axis: int,
        bits: int,
        lattice: Lattice,
        dithered: Dithered,
        seed: int,
        steps: Literal["tensor", "row"],
    ) -> None:
        super().__init__(shape, dtype, output_axis)
        if type(bits) is not int or bits not in (8, 16):
            raise ValueError(f"bits must be 8 or 16, not {bits!r}")
        for name, value, known in (
            ("lattice", lattice, get_args(Lattice)),
            ("dithered", dithered, get_args(Dithered)),
            ("steps", steps, ("tensor", "row")),
        ):
            if value not in known:
                raise ValueError(f"{name} must be one of {list(known)}, not {value!r}")
        if type(seed) is not int or not 0 <= seed < 2**63:
            raise ValueError(f"seed must be 0 to 2**63 − 1, not {seed!r}")
        self.lattice, self.dithered, self.seed = lattice, dithered, seed
        rows, self.columns = matrix_size(shape, output_axis)
        integers = torch.int8 if bits == 8 else torch.int16
        self.register_buffer("codes", torch.empty(rows, self.columns, dtype=integers))
        size = rows if steps == "row" else 1
        self.register_buffer("step", torch.empty(size, dtype=torch.bfloat16))
        self._kept: Tensor | None = None  # the weight in steps, while steps are trained

    def dense(self) -> Tensor:
        """Return the weight in its own shape and type."""
        return dense_from_rows(self, self.columns)

    def dense_rows(self, some: slice | Tensor) -> Tensor:
        """Return some rows of the matrix [n, columns]."""
        step = self.step[:, None] if len(self.step) == 1 else self.step[some, None]
        return (self._in_steps(some) * step.float()).to(self.dtype)

    def code_layouts(self) -> dict[str, Integers]:
        """Return that `codes` holds integers."""
        return {"codes": Integers()}

    def integers(self) -> dict[str, Codes]:
        """Return the integers; with a dither on all, or in blocks, none of them stands for zero."""
        has_zero = self.lattice == "Z" and self.dithered != "all"
        return {"codes": Codes(self.codes, 0 if has_zero else None)}

    def tunable(self) -> tuple[str, ...]:
        """Name the steps."""
        return ("step",)

    def changed(self) -> None:
        """Forget the weight in steps, which is kept only for training."""
        self._kept = None

    def _in_steps(self, rows: Tensor | slice) -> Tensor:
        """Return some rows of the matrix [n, columns] ÷ step, float32."""
        if self._kept is not None:
            return self._kept[rows]
        if self.step.requires_grad and self.dithered != "none":
            # Drawn once: to draw the dither takes longer than a forward pass.
            self._kept = torch.cat(
                [self._draw(some) for some in torch.arange(len(self.codes)).split(1024)]
            )
            return self._kept[rows]
        indices = torch.arange(len(self.codes))[rows] if isinstance(rows, slice) else rows
        drawn: Tensor = self._draw(indices)
        return drawn

    @torch.compiler.disable  # type: ignore[untyped-decorator]  # NumPy computes it
    def _draw(self, rows: Tensor) -> Tensor:
        if self.codes.is_meta:  # recurrent layers ask for their weights before there are any
            return torch.empty(len(rows), self.columns, device="meta")
        codes = self.codes[rows].cpu().numpy()
        points = points_of(codes, self.lattice)
        if self.dithered != "none":
            points -= dither(self.seed, rows.cpu().numpy(), self.columns, self.lattice)
            if self.dithered == "nonzero":
                points[codes == 0] = 0.0
        return torch.from_numpy(points.astype(np.float32)).to(self.codes.device)
