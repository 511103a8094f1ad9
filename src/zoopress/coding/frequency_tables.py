"""Static tables of frequencies: chosen, rounded, written as bits and read back.

Bits are counted from the least significant of byte 0. Compiled functions get and give positions in
bits; a negative position says that the bits are no table. Plain numbers are wrapped for them, or
each would be compiled anew.

Source: Giesen 2014, arXiv:1402.3392 (look-up by slot).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from zoopress.coding.compiled import compiled

PRECISION = 12  # frequencies of a table sum to 2**12: a look-up table takes 16 KB of cache
SLOTS = 1 << PRECISION
_MAX_GAMMA = 8

Words = NDArray[np.uint32]
Counts = NDArray[np.int64]
Bits = NDArray[np.uint8]


@compiled
def put_bits(bits: Bits, position: int, value: int, size: int) -> int:
    """Set bits of a zeroed buffer, least significant first; return the position after them."""
    for i in range(size):
        if value >> i & 1:
            bits[(position + i) >> 3] |= np.uint8(1 << ((position + i) & 7))
    return position + size


@compiled
def put_gamma(bits: Bits, position: int, value: int) -> int:
    """Write value ≥ 1: as many zeros as bits follow its leading one, a one, those bits."""
    size = 0
    while value >> size > 1:
        size += 1
    position = put_bits(bits, position, 1 << size, size + 1)
    return put_bits(bits, position, value - (1 << size), size)


@compiled
def get_bits(bits: Bits, position: int, size: int) -> int:
    """Read bits, which the caller knows to be there."""
    value = 0
    for i in range(size):
        value |= np.int64(bits[(position + i) >> 3] >> ((position + i) & 7) & 1) << i
    return value


@compiled
def get_gamma(bits: Bits, position: int) -> tuple[int, int]:
    """Read what `put_gamma` wrote; return it, or 0, and the position after it."""
    end = 8 * bits.size
    size = 0
    while position < end and get_bits(bits, position, np.int64(1)) == 0:
        size += 1
        position += 1
    position += 1
    if size > _MAX_GAMMA or position + size > end:
        return 0, position
    return (1 << size) + get_bits(bits, position, size), position + size


@compiled
def round_frequencies(counts: Counts, order: Counts, mantissa: int, frequencies: Counts) -> None:
    """Share out the slots in proportion, with few significant bits.

    A frequency other than the most frequent symbol's, which takes the rest, has a leading one and
    `mantissa` more bits that may be set. A rounding error is passed on to the next larger symbol,
    where it weighs less. Every symbol that occurs gets at least one slot.

    Args:
        counts: [symbols], at least one above 0.
        order: [symbols], by rising count.
        mantissa: 1 or more.
        frequencies: [symbols], filled.
    """
    left = np.int64(0)
    for count in counts:
        left += count
    # Rare symbols take a slot each, which is more than their share; the others share what is left.
    slots = np.int64(SLOTS)
    for symbol in order:
        if counts[symbol] and counts[symbol] * slots < left:
            slots -= 1
            left -= counts[symbol]
    spent = error = np.int64(0)
    for symbol in order[:-1]:
        frequencies[symbol] = 0
        if counts[symbol] == 0:
            continue
        share = max(counts[symbol] * slots * 256 // left, np.int64(256))
        value = max((share + error + 128) >> 8, np.int64(1))
        dropped = np.int64(0)
        while value >> dropped >= 2 << mantissa:
            dropped += 1
        value = (value + (1 << dropped >> 1)) >> dropped << dropped
        error += share - 256 * value
        spent += value
        frequencies[symbol] = value
    if spent >= SLOTS:  # only if the rest is about as small as what was rounded up
        spent = np.int64(0)
        for symbol in order[:-1]:
            frequencies[symbol] = min(counts[symbol], np.int64(1))
            spent += frequencies[symbol]
    frequencies[order[-1]] = SLOTS - spent


@compiled
def put_table(frequencies: Counts, rest: int, mantissa: int, bits: Bits, position: int) -> int:
    """Write a table; return the position after it."""
    position = put_bits(bits, position, rest, np.int64(8))
    position = put_bits(bits, position, mantissa, np.int64(4))
    length = symbol = 0
    while symbol < frequencies.size:
        if symbol == rest:
            symbol += 1
            continue
        value = frequencies[symbol]
        new_length = 0
        while value >> new_length:
            new_length += 1
        step = new_length - length
        position = put_gamma(bits, position, 1 + (2 * step if step >= 0 else -2 * step - 1))
        length = new_length
        if value:
            kept = min(length - 1, mantissa)
            top = value >> (length - 1 - kept)
            position = put_bits(bits, position, top & ((1 << kept) - 1), kept)
            symbol += 1
            continue
        run = 0
        while symbol < frequencies.size and (symbol == rest or frequencies[symbol] == 0):
            run += symbol != rest
            symbol += 1
        position = put_gamma(bits, position, run)
    return position


@compiled
def get_table(bits: Bits, position: int, frequencies: Counts) -> int:
    """Read what `put_table` wrote; return the position after it, or -1 if it is no table."""
    size, end = frequencies.size, 8 * bits.size
    if position + 12 > end:
        return -1
    rest = get_bits(bits, position, np.int64(8))
    mantissa = get_bits(bits, position + 8, np.int64(4))
    position += 12
    if rest >= size:
        return -1
    frequencies[:] = 0
    length = symbol = spent = 0
    while symbol < size:
        if symbol == rest:
            symbol += 1
            continue
        step, position = get_gamma(bits, position)
        if step == 0:
            return -1
        length += (step - 1) >> 1 if step & 1 else -(step >> 1)
        if length < 0 or length > PRECISION:
            return -1
        if length == 0:
            run, position = get_gamma(bits, position)
            if run == 0:
                return -1
            while run:
                if symbol >= size:
                    return -1
                run -= symbol != rest
                symbol += 1
            continue
        kept = min(length - 1, mantissa)
        if position + kept > end:
            return -1
        value = ((1 << kept) + get_bits(bits, position, kept)) << (length - 1 - kept)
        position += kept
        frequencies[symbol] = value
        spent += value
        symbol += 1
    if spent >= SLOTS:
        return -1
    frequencies[rest] = SLOTS - spent
    return position


@compiled
def get_tables(bits: Bits, count: int, size: int, entries: Words) -> int:
    """Read tables into look-ups by slot; return how many bytes they take, or -1.

    Args:
        bits: where the tables start.
        count: how many tables.
        size: symbols in each.
        entries: [count * 4096], filled with symbol + 2**8 · (frequency - 1) + 2**20 · offset,
            where the offset is the slot's place among its symbol's.
    """
    frequencies = np.zeros(size, np.int64)
    position = slot = np.int64(0)
    for _ in range(count):
        position = get_table(bits, position, frequencies)
        if position < 0:
            return -1
        for symbol in range(size):
            head = np.int64(symbol) + ((frequencies[symbol] - 1) << 8)
            for offset in range(frequencies[symbol]):
                entries[slot] = np.uint32(head + (np.int64(offset) << 20))
                slot += 1
    while position & 7:
        if get_bits(bits, position, np.int64(1)):
            return -1
        position += 1
    return int(position >> 3)
