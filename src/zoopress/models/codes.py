"""The integers that packed weights hold: how buffers hold them, and what code is zero's.

Whatever packs a weight, masks, the entropy coder and whoever counts see integers [rows, columns]
and the code of the value zero. Three descriptions of a buffer lead there:

    CodeLayout    bit-packed codes, a row of the matrix a row
    Integers      the buffer is the integers, 0 the code of zero (`zoopress.coding.layout`)
    OwnCodes      a packing of its own, as two functions: five ternary digits a byte, say
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from zoopress.coding.bits import BLOCK_CODES, pack_codes, unpack_codes
from zoopress.coding.layout import Integers


@dataclass(frozen=True)
class CodeLayout:
    """How a uint8 buffer [rows, bytes] holds `per_row` integer codes of `bits` bits a row.

    `fill` is the code of the value zero: a number, or the name of the sibling buffer
    [rows, groups] that holds it for each group of `group` codes of a row, or None if no code
    stands for zero; `signed` tells whether codes are two's complement.
    """

    bits: int
    per_row: int
    fill: int | str | None
    group: int
    signed: bool = False


@dataclass(frozen=True)
class OwnCodes:
    """How a buffer of any shape and type holds `rows` times `per_row` codes from 0 to `levels` − 1.

    Codes are uint8, or int32 if there are more than 256 levels. Both functions are pure, take all
    of the buffer, and are inverse to each other: storing may keep the codes instead of the buffer.

    Attributes:
        rows: of the codes; those of the weight's matrix, or masks have no place here.
        per_row: codes in a row.
        levels: how many codes there are.
        unpack: returns the codes [rows, per_row] of a buffer.
        pack: returns the buffer of codes.
        fill: as that of `CodeLayout`.
        group: as that of `CodeLayout`.
    """

    rows: int
    per_row: int
    levels: int
    unpack: Callable[[Tensor], Tensor]
    pack: Callable[[Tensor], Tensor]
    fill: int | str | None = None
    group: int = 1

    @property
    def bits(self) -> int:
        """How many bits tell one code from the others."""
        return max(1, (self.levels - 1).bit_length())

    @property
    def dtype(self) -> torch.dtype:
        """The type of the codes."""
        return torch.uint8 if self.levels <= 256 else torch.int32

    def codes_of(self, buffer: Tensor) -> Tensor:
        """Return the codes [rows, per_row] of a buffer.

        Raises:
            ValueError: if it holds none, or others than the description allows.
        """
        codes = self.unpack(buffer)
        self._check(codes)
        return codes

    def buffer_of(self, codes: Tensor) -> Tensor:
        """Return the buffer of codes.

        Raises:
            ValueError: if they are others than the description allows.
        """
        self._check(codes)
        return self.pack(codes)

    def _check(self, codes: Tensor) -> None:
        shape = (self.rows, self.per_row)
        if codes.dtype != self.dtype or tuple(codes.shape) != shape:
            raise ValueError(
                f"codes must be {self.dtype} of shape {shape}, not {codes.dtype} of shape "
                f"{tuple(codes.shape)}"
            )
        if codes.is_meta or not codes.numel():
            return
        low, high = int(codes.min()), int(codes.max())
        if low < 0 or high >= self.levels:
            wrong = low if low < 0 else high
            raise ValueError(f"codes must be 0 to {self.levels - 1}, but one is {wrong}")


AnyLayout: TypeAlias = CodeLayout | OwnCodes | Integers


@dataclass(frozen=True)
class Codes:
    """The integers of a buffer of a packed weight.

    Attributes:
        values: [rows, columns], uint8, or int8, int16 or int32 where codes have a sign.
        zero: the code of the value zero: a number, one for each group [rows, groups], or None.
        group: how many columns share one of `zero`.
        levels: how many codes there may be; None if only the type of `values` tells.
    """

    values: Tensor
    zero: int | Tensor | None
    group: int = 1
    levels: int | None = None

    def zeros(self) -> Tensor:
        """Return where the value is zero by its code: [rows, columns], bool."""
        if self.zero is None:
            return torch.zeros_like(self.values, dtype=torch.bool)
        if isinstance(self.zero, int):
            return self.values == self.zero
        return self.values == spread(self.zero, self.group, self.values.shape[1])

    def used(self) -> int:
        """Return how many different codes there are."""
        return len(self.values.unique())


def spread(fill: Tensor, group: int, columns: int) -> Tensor:
    """Return what holds for each group [rows, groups] at each of the columns."""
    wide = fill.repeat_interleave(group, 1)[:, :columns]
    return wide.expand(len(fill), columns)


def read_codes(buffer: Tensor, layout: AnyLayout, fill: Tensor | None = None) -> Codes:
    """Return the integers of a buffer.

    Args:
        buffer: as `layout` describes it.
        layout: how it holds codes.
        fill: the sibling buffer, where the layout names one.

    Raises:
        ValueError: if the buffer does not hold what the layout says.
    """
    if isinstance(layout, Integers):
        return Codes(buffer, 0)
    zero = fill if isinstance(layout.fill, str) else layout.fill
    if isinstance(layout, OwnCodes):
        return Codes(layout.codes_of(buffer), zero, layout.group, layout.levels)
    values = unpack_codes(buffer, layout.bits, layout.per_row)
    if layout.signed:
        half = 1 << (layout.bits - 1)
        values = (
            (values.view(torch.int8) ^ half) - half if layout.bits < 8 else values.view(torch.int8)
        )
    return Codes(values, zero, layout.group, 1 << layout.bits)


def write_codes(values: Tensor, layout: AnyLayout) -> Tensor:
    """Return the buffer that holds integers [rows, columns]; inverse of `read_codes`.

    Raises:
        ValueError: if one does not fit.
    """
    if isinstance(layout, Integers):
        return values
    if isinstance(layout, OwnCodes):
        return layout.buffer_of(values)
    if values.ndim != 2 or values.shape[1] != layout.per_row:
        raise ValueError(
            f"codes must be [rows, {layout.per_row}], not of shape {tuple(values.shape)}"
        )
    if not layout.signed:
        return pack_codes(values, layout.bits)
    half = 1 << (layout.bits - 1)
    fits = values.dtype == torch.int8 and not bool((values.short() + half >> layout.bits).any())
    if not fits:
        raise ValueError(f"codes must be int8 from {-half} to {half - 1}")
    return pack_codes(values.view(torch.uint8) & ((1 << layout.bits) - 1), layout.bits)


def nonzero_codes(buffer: Tensor, layout: AnyLayout) -> Tensor | None:
    """Return where a buffer of codes holds another code than that of zero.

    Args:
        buffer: as `layout` describes it.
        layout: how it holds codes.

    Returns:
        [rows, codes in a row], bool; None if the code of zero is not the same everywhere.
    """
    if isinstance(layout, Integers):
        return buffer != 0
    if not isinstance(layout.fill, int):
        return None
    if isinstance(layout, OwnCodes):
        return layout.codes_of(buffer) != layout.fill
    nonzero = torch.empty(len(buffer), layout.per_row, dtype=torch.bool)
    step = max(1, BLOCK_CODES // max(1, layout.per_row))
    for some in (slice(first, first + step) for first in range(0, len(buffer), step)):
        nonzero[some] = unpack_codes(buffer[some], layout.bits, layout.per_row) != layout.fill
    return nonzero
