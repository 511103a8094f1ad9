"""What a `.zpz` file says of its tensors, in words."""

from __future__ import annotations

import math
from dataclasses import dataclass

from zoopress.coding.layout import Integers, PackedCodes
from zoopress.coding.zpz.bands import BytePlanes, Coding, Octets
from zoopress.coding.zpz.reader import ZpzReader


@dataclass(frozen=True)
class Row:
    """A tensor.

    Attributes:
        name: its name.
        dtype: its type.
        shape: its sizes.
        coding: what its chunks hold.
        chunks: how many there are.
        bytes: of the tensor.
        stored_bytes: of its chunks.
        bits: stored for each number: code, integer or element; None if there is none.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    coding: str
    chunks: int
    bytes: int
    stored_bytes: int
    bits: float | None


def describe(reader: ZpzReader) -> list[Row]:
    """Return a row for each tensor, in the order of the file."""
    rows: list[Row] = []
    for name in reader.names():
        entry = reader.entry(name)
        count = math.prod(entry.shape)
        if isinstance(entry.coding, PackedCodes):
            count = math.prod(entry.shape[:-1]) * entry.coding.per_row
        bits = 8 * entry.stored_bytes / count if count else None
        sizes = (len(entry.sizes), entry.decoded_bytes, entry.stored_bytes)
        rows.append(Row(name, entry.dtype, entry.shape, _words(entry.coding), *sizes, bits))
    return rows


def _words(coding: Coding) -> str:
    if isinstance(coding, Octets):
        return "bytes"
    if isinstance(coding, BytePlanes):
        return "planes of bytes" + (", exponents apart" if coding.rotated else "")
    if isinstance(coding, Integers):
        return f"integers, {coding.scan}" + (", trellis" if coding.trellis else "")
    signed = "signed " if coding.signed else ""
    return f"{signed}codes of {coding.bits} bit{'s' if coding.bits > 1 else ''}"
