"""How a tensor's bytes become planes of integers, band by band, and back.

The coder wants integers in lines whose neighbours are alike. A `Cut` finds lines in a tensor's
shape, puts as many whole lines into a band as make a chunk of each plane, and turns the bytes of a
band into those planes. Bands depend on nothing but dtype, shape and coding.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from zoopress.coding.layout import Integers, PackedCodes
from zoopress.coding.zpz.repack import Bytes, merge_bytes, pack_rows, split_bytes, unpack_rows

Plane: TypeAlias = NDArray[Any]

CHUNK_SYMBOLS = 1 << 20
MAX_WIDTH = CHUNK_SYMBOLS // 8

# The place in this tuple is the number in the file: append only.
DTYPES: tuple[tuple[str, int], ...] = (
    ("bool", 1),
    ("uint8", 1),
    ("int8", 1),
    ("int16", 2),
    ("int32", 4),
    ("int64", 8),
    ("float16", 2),
    ("bfloat16", 2),
    ("float32", 4),
    ("float64", 8),
    ("uint16", 2),
    ("uint32", 4),
    ("uint64", 8),
    ("float8_e4m3fn", 1),
    ("float8_e5m2", 1),
    ("complex64", 8),
    ("float8_e4m3fnuz", 1),
    ("float8_e5m2fnuz", 1),
    ("float8_e8m0fnu", 1),
)
ITEMSIZES = dict(DTYPES)
FLOATS = frozenset(name for name, size in DTYPES if "float" in name and size > 1)


@dataclass(frozen=True)
class Octets:
    """One plane: the tensor's bytes as they are."""


@dataclass(frozen=True)
class BytePlanes:
    """A plane for each byte of an element; with `rotated` a float's sign was moved to its end."""

    rotated: bool


Coding: TypeAlias = Octets | BytePlanes | PackedCodes | Integers
"""What the planes of a tensor hold."""


@dataclass(frozen=True)
class Band:
    """Symbols `start` to `start + length` of lines `line` to `line + lines`."""

    line: int
    lines: int
    start: int
    length: int


class Cut:
    """The bands of a tensor.

    Attributes:
        coding: what its planes hold.
        planes: how many there are.
        lines, length: of each plane.
        bytes: of the tensor.

    Raises:
        ValueError: if a tensor of this dtype and shape cannot be coded so.
    """

    def __init__(self, dtype: str, shape: tuple[int, ...], coding: Coding) -> None:
        _check(dtype, shape, coding)
        self.coding = coding
        self.itemsize = ITEMSIZES[dtype]
        self.bytes: int = math.prod(shape) * self.itemsize
        self.planes = 1
        self._row_bytes = shape[-1] if shape else 1
        if isinstance(coding, Integers):
            self.lines, self.length = shape if coding.scan == "rows" else shape[::-1]
        elif isinstance(coding, PackedCodes):
            codes = math.prod(shape[:-1]) * coding.per_row
            self.length = coding.width or coding.per_row
            self.lines = codes // self.length if codes else 0
        else:
            elements = math.prod(shape)
            self.length = _line_length(shape)
            self.lines = elements // self.length if elements else 0
            if isinstance(coding, Octets):
                self.length *= self.itemsize
            else:
                self.planes = self.itemsize
        if not self.lines * self.length:
            self.lines = self.length = 0
        per_band = CHUNK_SYMBOLS // self.length if self.length else 0
        # Eight codes of any number of bits end on a byte, and so does a band.
        self._lines_per_band = per_band - per_band % 8 if per_band > 8 else per_band

    @property
    def band_count(self) -> int:
        """How many bands there are, and chunks of each plane."""
        if self._lines_per_band:
            return -(-self.lines // self._lines_per_band)
        return self.lines * -(-self.length // CHUNK_SYMBOLS)

    def bands(self) -> Iterator[Band]:
        """Yield the bands in the order in which they are stored."""
        if step := self._lines_per_band:
            for line in range(0, self.lines, step):
                yield Band(line, min(step, self.lines - line), 0, self.length)
            return
        for line in range(self.lines):
            for start in range(0, self.length, CHUNK_SYMBOLS):
                yield Band(line, 1, start, min(CHUNK_SYMBOLS, self.length - start))

    @property
    def trellis(self) -> bool:
        """Whether each line is a path of the trellis."""
        return isinstance(self.coding, Integers) and self.coding.trellis

    @property
    def contiguous(self) -> bool:
        """Whether the bytes of the bands, one after the other, are the tensor's."""
        return not (isinstance(self.coding, Integers) and self.coding.scan == "columns")

    def byte_range(self, band: Band) -> tuple[int, int]:
        """Return where the bytes of a band begin and end: those of the tensor if not contiguous."""
        if not self.contiguous:
            return 0, self.bytes
        first = band.line * self.length + band.start
        stop = first + band.lines * band.length
        if not isinstance(self.coding, PackedCodes):
            size = 1 if isinstance(self.coding, Octets) else self.itemsize
            return first * size, stop * size
        bits = self.coding.bits
        if self.coding.width is not None:
            return first * bits // 8, (stop * bits + 7) // 8
        last_row = (band.line + band.lines - 1) * self._row_bytes
        stop = last_row + ((band.start + band.length) * bits + 7) // 8
        return band.line * self._row_bytes + band.start * bits // 8, stop

    def band_bytes(self, band: Band) -> int:
        """Return how many of the tensor's bytes a band holds."""
        if not self.contiguous:
            return band.lines * band.length * self.itemsize
        start, stop = self.byte_range(band)
        return stop - start

    def split(self, data: Bytes, band: Band) -> list[Plane]:
        """Return the planes of a band [lines, length] from the bytes in its range."""
        size = (band.lines, band.length)
        coding = self.coding
        if isinstance(coding, Octets):
            return [data.reshape(size)]
        if isinstance(coding, BytePlanes):
            planes = np.empty((self.planes, *size), np.uint8)
            elements = data.reshape(-1, self.planes)
            split_bytes(elements, coding.rotated, planes.reshape(self.planes, -1))
            return list(planes)
        if isinstance(coding, PackedCodes):
            codes = data
            if coding.bits < 8:
                codes = np.empty(band.lines * band.length, np.uint8)
                rows = self._rows(band)
                packed = data.reshape(rows, -1)
                unpack_rows(packed, coding.bits, coding.signed, codes.reshape(rows, -1))
            return [codes.reshape(size).view(np.int8 if coding.signed else np.uint8)]
        part = self._part(data, band)
        return [np.ascontiguousarray(part, dtype=part.dtype.newbyteorder("="))]

    def merge(self, band: Band, data: Bytes, fill: Callable[[list[Plane]], None]) -> None:
        """Set the bytes of a band from its planes.

        Args:
            band: which.
            data: the bytes in its range.
            fill: decodes planes into the arrays that it is given.

        Raises:
            ValueError: if a code has too many bits; and whatever `fill` raises.
        """
        size = (band.lines, band.length)
        coding = self.coding
        if isinstance(coding, Octets):
            fill([data.reshape(size)])
        elif isinstance(coding, BytePlanes):
            planes = np.empty((self.planes, *size), np.uint8)
            fill(list(planes))
            elements = data.reshape(-1, self.planes)
            merge_bytes(planes.reshape(self.planes, -1), coding.rotated, elements)
        elif isinstance(coding, PackedCodes):
            rows = self._rows(band)
            codes = data if coding.bits == 8 else np.empty(band.lines * band.length, np.uint8)
            fill([codes.reshape(size).view(np.int8 if coding.signed else np.uint8)])
            if coding.bits < 8 and not pack_rows(
                codes.reshape(rows, -1), coding.bits, coding.signed, data.reshape(rows, -1)
            ):
                raise ValueError(f"a code does not fit into {coding.bits} bits")
        else:
            part = self._part(data, band)
            if part.flags.c_contiguous and sys.byteorder == "little":
                fill([part])
            else:
                plane = np.empty(size, part.dtype.newbyteorder("="))
                fill([plane])
                part[...] = plane

    def _rows(self, band: Band) -> int:
        """Return how many rows of packed codes, which begin on a byte, a band has."""
        assert isinstance(self.coding, PackedCodes)
        return band.lines if self.coding.width is None else 1

    def _part(self, data: Bytes, band: Band) -> Plane:
        """View the integers of a band [lines, length] in the bytes of its range."""
        integers = data.view(f"<i{self.itemsize}")
        if self.contiguous:
            return integers.reshape(band.lines, band.length)
        lines: Plane = integers.reshape(self.length, self.lines).T
        lines = lines[band.line : band.line + band.lines]
        return lines[:, band.start : band.start + band.length]


def padding_is_zero(data: Bytes, layout: PackedCodes) -> bool:
    """Tell whether the bits after the last code of each row, of the bytes of a tensor, are zero."""
    used = layout.per_row * layout.bits % 8
    row_bytes = (layout.per_row * layout.bits + 7) // 8
    return not used or not (data.reshape(-1, row_bytes)[:, -1] >> used).any()


def _line_length(shape: tuple[int, ...]) -> int:
    """Return the elements of a line: of as many last axes, but the first, as fit into a chunk."""
    length = shape[-1] if shape else 1
    for size in reversed(shape[1:-1]):
        if length * size > CHUNK_SYMBOLS:
            break
        length *= size
    # A column has no neighbours but those above.
    return math.prod(shape) if length == 1 else length


def _check(dtype: str, shape: tuple[int, ...], coding: Coding) -> None:
    if isinstance(coding, BytePlanes):
        if ITEMSIZES[dtype] == 1 or (coding.rotated and dtype not in FLOATS):
            raise ValueError(f"{dtype} has no such planes of bytes")
    elif isinstance(coding, Integers):
        if dtype not in ("int8", "int16", "int32") or len(shape) != 2:
            raise ValueError(
                "integers are stored in int8, int16 or int32 of two axes, not in "
                f"{dtype} of shape {shape}"
            )
        if coding.trellis and shape[coding.scan == "rows"] > CHUNK_SYMBOLS:
            raise ValueError(f"paths of a trellis must be whole, and {shape} has longer ones")
    elif isinstance(coding, PackedCodes):
        if dtype != "uint8" or not shape:
            raise ValueError(f"codes are stored in rows of uint8, not in {dtype} of shape {shape}")
        bits, per_row, width = coding.bits, coding.per_row, coding.width
        if not 1 <= bits <= 8 or per_row < 0 or (per_row * bits + 7) // 8 != shape[-1]:
            raise ValueError(
                f"{per_row} codes of {bits} bits do not fill rows of {shape[-1]} bytes exactly"
            )
        rows = math.prod(shape[:-1])
        if width is not None and (not 1 <= width <= MAX_WIDTH or per_row % width or rows != 1):
            raise ValueError(
                f"lines of {width} codes need one row of a multiple of that many, and at most "
                f"{MAX_WIDTH}, not {rows} rows of {per_row}"
            )
