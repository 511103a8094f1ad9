"""What a tensor's bytes mean to the coder, so that it sees integers where there are integers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias

if TYPE_CHECKING:
    from torch import Tensor

Scan: TypeAlias = Literal["rows", "columns"]
"""Which way neighbours lie: along the last axis, or across it."""


@dataclass(frozen=True)
class PackedCodes:
    """Rows (last axis) of uint8 hold `per_row` codes each, as `bits.pack_codes` packs them.

    Attributes:
        bits: of a code, 1 to 8.
        per_row: codes in each row.
        signed: whether codes are two's complement.
        width: codes in a line of neighbours, where that is not a row: a mask is packed as one row.
    """

    bits: int
    per_row: int
    signed: bool = False
    width: int | None = None


@dataclass(frozen=True)
class Integers:
    """An int8, int16 or int32 tensor [rows, columns] of integers around zero.

    Attributes:
        scan: along what the integers are coded.
        trellis: whether each line along `scan` is a path of `trellis.py`, starting in state 0.
    """

    scan: Scan = "rows"
    trellis: bool = False


Layout: TypeAlias = PackedCodes | Integers


@dataclass(frozen=True)
class StoredTensor:
    """A tensor to store, of any shape and strides, and what integers its bytes hold, if any."""

    tensor: Tensor
    layout: Layout | None = None
