"""A packed weight as other programs know it: integers, scales and zero points."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Axis = Literal[0, 1]
"""Which axis of a weight's matrix [rows, columns] has a scale for each place: rows, or columns."""


@dataclass(frozen=True)
class ExportForm:
    """A weight's matrix as (codes − zero point) · scale: what a pair of QDQ nodes computes.

    Attributes:
        codes: [rows, columns], an integer type.
        bits: that a code needs, at most those of the type.
        scale: float; [1] for all; [rows, groups] on axis 0, each for `group_size` columns of its
            row, the last perhaps for fewer; [columns] on axis 1.
        zero_point: the code of zero, of the shape of `scale` and the type of `codes`; None if it
            is 0 everywhere.
        axis: what has scales of its own; None if all share one.
        group_size: columns that share a scale, on axis 0; None if a whole row does.

    Raises:
        ValueError: if they do not go together.
    """

    codes: Tensor
    bits: int
    scale: Tensor
    zero_point: Tensor | None = None
    axis: Axis | None = 0
    group_size: int | None = None

    def __post_init__(self) -> None:
        codes, scale, zero = self.codes, self.scale, self.zero_point
        if codes.ndim != 2 or codes.dtype.is_floating_point or codes.dtype == torch.bool:
            raise ValueError(
                f"codes must be integers [rows, columns], not {codes.dtype} {list(codes.shape)}"
            )
        if not 1 <= self.bits <= 8 * codes.itemsize:
            raise ValueError(f"codes of {codes.dtype} cannot have {self.bits} bits")
        rows, columns = codes.shape
        groups = -(-columns // (self.group_size or columns))
        wanted = {None: (1,), 0: (rows, groups), 1: (columns,)}[self.axis]
        if self.group_size is not None and (self.axis != 0 or not 0 < self.group_size <= columns):
            raise ValueError(
                f"a group_size of {self.group_size} needs axis 0 and at least as many columns, "
                f"not axis {self.axis} and {columns}"
            )
        if tuple(scale.shape) != wanted or not scale.dtype.is_floating_point:
            raise ValueError(
                f"scale must be float {list(wanted)} for codes {list(codes.shape)} on axis "
                f"{self.axis}, not {scale.dtype} {list(scale.shape)}"
            )
        if zero is not None and (zero.shape != scale.shape or zero.dtype != codes.dtype):
            raise ValueError(
                f"zero_point must be {codes.dtype} {list(scale.shape)} as codes and scale are, "
                f"not {zero.dtype} {list(zero.shape)}"
            )

    def matrix(self) -> Tensor:
        """Return the weight's matrix [rows, columns], at least in float32."""
        dtype = torch.promote_types(self.scale.dtype, torch.float32)
        values = self.codes.to(dtype)
        if self.zero_point is not None:
            values = values - self._spread(self.zero_point).to(dtype)
        return values * self._spread(self.scale).to(dtype)

    def _spread(self, each: Tensor) -> Tensor:
        """Return what broadcasts to the matrix."""
        if self.axis != 0 or each.shape[1] == 1:
            return each
        columns = self.codes.shape[1]
        size = self.group_size or columns
        return each.repeat_interleave(size, 1)[:, :columns]
