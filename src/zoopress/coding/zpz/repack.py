"""Compiled loops between a tensor's bytes and the planes that are coded.

Each takes C-contiguous uint8 arrays and fills the last one.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from zoopress.coding.compiled import compiled

Bytes = NDArray[np.uint8]


@compiled
def split_bytes(elements: Bytes, rotated: bool, planes: Bytes) -> None:
    """Move byte j of element i of [n, k] to place i of plane j of [k, n].

    With `rotated` each element, little-endian, is first rotated left by one bit, so that the sign
    of a float comes last and its exponent first.
    """
    count, size = elements.shape
    for j in range(size):
        below = (j + size - 1) % size
        if rotated:
            for i in range(count):
                planes[j, i] = elements[i, j] << 1 | elements[i, below] >> 7
        else:
            for i in range(count):
                planes[j, i] = elements[i, j]


@compiled
def merge_bytes(planes: Bytes, rotated: bool, elements: Bytes) -> None:
    """Undo `split_bytes`."""
    count, size = elements.shape
    for j in range(size):
        above = (j + 1) % size
        if rotated:
            for i in range(count):
                elements[i, j] = planes[j, i] >> 1 | planes[above, i] << 7
        else:
            for i in range(count):
                elements[i, j] = planes[j, i]


@compiled
def unpack_rows(packed: Bytes, bits: int, signed: bool, codes: Bytes) -> None:
    """Unpack rows [m, bytes] into codes [m, n]; signed ones fill their byte with their sign."""
    rows, count = codes.shape
    mask = (1 << bits) - 1
    half = 1 << (bits - 1) if signed else 0
    for row in range(rows):
        held = 0
        size = 0
        place = 0
        for i in range(count):
            if size < bits:
                held |= np.int64(packed[row, place]) << size
                place += 1
                size += 8
            codes[row, i] = np.uint8((((held & mask) ^ half) - half) & 255)
            held >>= bits
            size -= bits


@compiled
def pack_rows(codes: Bytes, bits: int, signed: bool, packed: Bytes) -> bool:
    """Undo `unpack_rows`; False if a code is none of `bits` bits."""
    rows, count = codes.shape
    mask = (1 << bits) - 1
    half = 1 << (bits - 1) if signed else 0
    excess = 0
    for row in range(rows):
        held = 0
        size = 0
        place = 0
        for i in range(count):
            code = np.int64(codes[row, i])
            value = code & mask
            excess |= code ^ ((value ^ half) - half) & 255
            held |= value << size
            size += bits
            if size >= 8:
                packed[row, place] = np.uint8(held & 255)
                place += 1
                held >>= 8
                size -= 8
        if size:
            packed[row, place] = np.uint8(held & 255)
    return excess == 0
