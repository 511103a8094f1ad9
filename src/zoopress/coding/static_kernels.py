"""The compiled loops of the static coder: contexts of a plane, rANS over lanes, both ways.

A group is as many lines as there are lanes (or what is left of them); its lanes go from column to
column in lockstep, lane l in line l of the group. A lane remembers a decaying mean of its line's
magnitudes, and a column one of the groups above; their weighted sum, the level, predicts the
magnitude that comes, and chooses the table that codes it. All numbers are integers; shifts round
down. A magnitude is that of a token's smallest value, so that look-ups by token suffice.

Every function works on int32 planes, and the decoder on bytes as well, so that each is compiled
once.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from zoopress.coding.alphabet import bits_beside, token_of
from zoopress.coding.compiled import compiled
from zoopress.coding.frequency_tables import PRECISION, SLOTS

STATE_LOW = 1 << 31  # every state lies in [2**31, 2**63)
LEVELS = 2048
PIECE_BITS = 16  # bits beside a token are coded in pieces of so many, the lowest first

FINE, ENDS_EARLY, OUT_OF_RANGE = 0, 1, 2

Plane = NDArray[np.int32]
Numbers = NDArray[np.int64]
Bytes = NDArray[np.uint8]
Words = NDArray[np.uint32]


@compiled
def column_shift(group: int, most: int) -> int:
    """Return how slowly column means follow: at once at first, then ever more slowly."""
    shift = 0
    while shift < most and 2 << shift <= group:
        shift += 1
    return shift


@compiled
def scan_plane(
    plane: Plane,
    trellis: bool,
    next_state: Bytes,
    odd: Bytes,
    lanes: int,
    row_shift: int,
    most_column_shift: int,
    row_weight: int,
    column_weight: int,
    shift: int,
    center: int,
    exact: int,
    below: int,
    magnitudes: Numbers,
    bin_of_level: Bytes,
    histogram: Numbers,
    tokens: Bytes,
    bins: Bytes,
) -> bool:
    """Find each symbol's token and bin of levels, in coding order, and count them.

    Args:
        histogram: [sets, bins, tokens], added to.
        tokens: [rows * columns], filled; so is `bins`, with set * 128 added.

    Returns:
        Whether a line is no path of the trellis.
    """
    rows, columns = plane.shape
    row_means = np.zeros(lanes, np.int64)
    column_means = np.zeros(columns, np.int64)
    pulls = (magnitudes * row_weight) << 8
    states = np.zeros(lanes, np.int64)
    position = np.uint64(0)
    one = np.uint64(1)
    for group, base in enumerate(range(0, rows, lanes)):
        active = min(lanes, rows - base)
        scale = 256 // active * column_weight
        slowness = column_shift(group, most_column_shift)
        states[:] = 0
        for column in range(columns):
            total = 0
            from_column = column_means[column]
            for lane in range(active):
                value = np.int64(plane[base + lane, column])
                level = (row_means[lane] + from_column) >> shift
                part = bin_of_level[np.uint64(min(level, LEVELS - 1))]
                chosen = 0
                if trellis:
                    state = states[lane]
                    chosen = np.int64(odd[np.uint64(state)])
                    magnitude = abs(value)
                    if magnitude & 1 != chosen and value != 0:
                        return True
                    index = (magnitude + chosen) >> 1
                    if value < 0:
                        index = -index
                    states[lane] = next_state[np.uint64(2 * state + (index & 1))]
                    token = token_of(index, exact) + below
                else:
                    token = token_of(value - center, exact) + below
                histogram[np.uint64(chosen), part, np.uint64(token)] += 1
                tokens[position] = token
                bins[position] = part | (chosen << 7)
                position += one
                total += magnitudes[np.uint64(token)]
                row_means[lane] += (pulls[np.uint64(token)] - row_means[lane]) >> row_shift
            column_means[column] += (total * scale - from_column) >> slowness
    return False


@compiled
def encode_static(
    plane: Plane,
    trellis: bool,
    lanes: int,
    center: int,
    exact: int,
    tokens: Bytes,
    bins: Bytes,
    table_of_bin: Bytes,
    starts: Numbers,
    frequencies: Numbers,
    states: Numbers,
    words: Words,
    position: int,
) -> int:
    """Code a scanned plane from its last symbol to its first.

    Args:
        table_of_bin: [256], by what `scan_plane` put into `bins`.
        starts: [tables, tokens], the sum of the frequencies of lower tokens.
        frequencies: [tables, tokens].
        states: [lanes], changed.
        words: filled downwards from `position`.

    Returns:
        The position of the first word.
    """
    rows, columns = plane.shape
    place = np.int64(rows) * columns
    last_base = (rows - 1) // lanes * lanes
    for base in range(last_base, -1, -lanes):
        active = min(lanes, rows - base)
        for column in range(columns - 1, -1, -1):
            for lane in range(active - 1, -1, -1):
                place -= 1
                x = states[lane]
                value = np.int64(plane[base + lane, column])
                s = (abs(value) + 1) >> 1 if trellis else abs(value - center)
                if s >> exact:
                    extra = bits_beside(s, exact)
                    first = (extra - 1) // PIECE_BITS * PIECE_BITS
                    for low in range(first, -1, -PIECE_BITS):
                        size = min(PIECE_BITS, extra - low)
                        if size <= 0:
                            continue
                        if x >> (63 - size):
                            position -= 1
                            words[position] = np.uint32(x & 0xFFFFFFFF)
                            x >>= 32
                        x = (x << size) | ((s >> low) & ((1 << size) - 1))
                table = table_of_bin[bins[np.uint64(place)]]
                token = tokens[np.uint64(place)]
                frequency = frequencies[table, token]
                if x >> (63 - PRECISION) >= frequency:
                    position -= 1
                    words[position] = np.uint32(x & 0xFFFFFFFF)
                    x >>= 32
                quotient = np.int64(np.uint64(x) // np.uint64(frequency))
                x += quotient * (SLOTS - frequency) + starts[table, token]
                states[lane] = x
    return position


@compiled
def decode_static(
    plane: Plane,
    octets: Bytes,
    low: int,
    high: int,
    trellis: bool,
    next_state: Bytes,
    odd: Bytes,
    lanes: int,
    row_shift: int,
    most_column_shift: int,
    row_weight: int,
    column_weight: int,
    shift: int,
    center: int,
    magnitudes: Numbers,
    values: Numbers,
    extra_bits: Numbers,
    class_of_level: Bytes,
    entries: Words,
    states: Numbers,
    words: Words,
    position: int,
) -> tuple[int, int]:
    """Fill a plane from words.

    In a column of a group the lanes first take their tokens, which needs no branch; what a token
    stands for comes after. Indices into tables are cast to unsigned numbers: a signed one costs
    a test for each access.

    Args:
        plane: filled, if it isn't empty.
        octets: filled with the values' lowest bytes, if `plane` is empty.
        low: the smallest value that is allowed.
        high: the largest.
        magnitudes: [256] by token; in `scan_plane` too.
        values: [256] by token, the bits beside it taken as zeros.
        extra_bits: [256] by token.
        class_of_level: [2048].
        entries: of each class' table (trellis: of each class' two tables), as `get_tables` fills.
        states: [lanes], changed.

    Returns:
        What came of it, and the position after the last word that was used.
    """
    narrow = plane.size == 0
    rows, columns = octets.shape if narrow else plane.shape
    row_means = np.zeros(lanes, np.int64)
    column_means = np.zeros(columns, np.int64)
    pulls = (magnitudes * row_weight) << 8
    paths = np.zeros(lanes, np.int64)
    tokens = np.zeros(lanes, np.int64)
    end = np.int64(words.size)
    span = np.uint64(high - low)
    for group, base in enumerate(range(0, rows, lanes)):
        active = min(lanes, rows - base)
        scale = 256 // active * column_weight
        slowness = column_shift(group, most_column_shift)
        paths[:] = 0
        for column in range(columns):
            total = 0
            from_column = column_means[column]
            for lane in range(active):
                level = (row_means[lane] + from_column) >> shift
                table = np.int64(class_of_level[np.uint64(min(level, LEVELS - 1))])
                if trellis:
                    table = 2 * table + np.int64(odd[np.uint64(paths[lane])])
                x = states[lane]
                entry = np.int64(entries[np.uint64(table * SLOTS + (x & (SLOTS - 1)))])
                token = entry & 255
                states[lane] = ((entry >> 8 & (SLOTS - 1)) + 1) * (x >> PRECISION) + (entry >> 20)
                tokens[lane] = token
                total += magnitudes[np.uint64(token)]
                row_means[lane] += (pulls[np.uint64(token)] - row_means[lane]) >> row_shift
            for lane in range(active):
                x = states[lane]
                if x < STATE_LOW:
                    if position >= end:
                        return ENDS_EARLY, position
                    x = (x << 32) | np.int64(words[np.uint64(position)])
                    position += 1
                value = values[np.uint64(tokens[lane])]
                extra = extra_bits[np.uint64(tokens[lane])]
                if extra:
                    rest = np.int64(0)
                    for done in range(0, extra, PIECE_BITS):
                        size = min(PIECE_BITS, extra - done)
                        rest |= (x & ((1 << size) - 1)) << done
                        x >>= size
                        if x < STATE_LOW:
                            if position >= end:
                                return ENDS_EARLY, position
                            x = (x << 32) | np.int64(words[np.uint64(position)])
                            position += 1
                    value = value + rest if value > center else value - rest
                states[lane] = x
                if trellis:
                    state = paths[lane]
                    sign = np.int64(value > 0) - np.int64(value < 0)
                    paths[lane] = next_state[np.uint64(2 * state + (value & 1))]
                    value = 2 * value - np.int64(odd[np.uint64(state)]) * sign
                if np.uint64(value - low) > span:
                    return OUT_OF_RANGE, position
                if narrow:
                    octets[base + lane, column] = np.uint8(value & 255)
                else:
                    plane[base + lane, column] = value
            column_means[column] += (total * scale - from_column) >> slowness
    return FINE, position
