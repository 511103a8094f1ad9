"""Integers of any size in as few bytes as they need, and bounds-checked reading of bytes."""

from __future__ import annotations

from typing import TypeAlias

Buffer: TypeAlias = bytes | memoryview


def varint(value: int) -> bytes:
    """Write a non-negative integer in groups of 7 bits, lowest first; bit 7 says more follow."""
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    out.append(value)
    return bytes(out)


def read_varint(stream: Buffer, position: int) -> tuple[int, int]:
    """Read an integer below 2**63 in its shortest form; return it and the position after it.

    Raises:
        ValueError: if it is truncated, too large or longer than it need be.
    """
    value = shift = 0
    while True:
        if position >= len(stream):
            raise ValueError("The data ends within an integer.")
        byte = stream[position]
        position += 1
        value |= (byte & 127) << shift
        if byte < 128:
            break
        shift += 7
        if shift > 56:
            raise ValueError("An integer is longer than 63 bits.")
    if shift and byte == 0:
        raise ValueError("An integer is not in its shortest form.")
    return value, position


def zigzag(value: int) -> int:
    """Number the integers 0, -1, 1, -2, …"""
    return 2 * value if value >= 0 else -2 * value - 1


def unzigzag(number: int) -> int:
    """Undo `zigzag`."""
    return number >> 1 if number % 2 == 0 else -(number + 1 >> 1)
