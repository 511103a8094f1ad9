"""Context-adaptive binary arithmetic coding with mixed predictions; no tables are stored.

An integer is coded as yes/no decisions: how many bits its magnitude has (more than none? than one?
…), those below the leading one, its sign. For each decision six contexts predict the probability of
a yes, each from what it has seen so far; their logits are added, with weights that follow the
coding. All in integers.

Source: Marpe, Schwarz and Wiegand 2003, doi:10.1109/TCSVT.2003.815173 (context-adaptive binary
arithmetic coding); Wiedemann et al. 2020, arXiv:1907.11900 (of networks' weights); Mahoney 2005,
CS-2005-16 (mixing in the logistic domain).
"""

from __future__ import annotations

from functools import lru_cache
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from zoopress.coding.compiled import compiled
from zoopress.coding.logistic import LIMIT, logit_table, probability_table
from zoopress.coding.planes import TRELLIS_NEXT, TRELLIS_ODD, Plane, check_path
from zoopress.coding.varint import Buffer, read_varint, unzigzag, varint, zigzag

INPUTS = 6
NODES = 64  # kinds of decisions
LENGTH_NODES = 20  # node k: more than k bits? The last node asks that of all that are longer.
HIGH_BITS_NODE, LOW_BITS_NODE, SIGN_NODE = 20, 48, 53  # four times seven, one, nine around it
MAX_LENGTH = 32
CONTEXTS = (8, 576, 512, 192, 1024, 1024)  # how many contexts each input has
FIRST_WEIGHT = 22938  # 0.35 in 65536ths
MAX_COUNT = 255
ROW_SHIFT, COLUMN_SHIFT = 6, 5
RANGE_LOW = 1 << 24

Numbers: TypeAlias = NDArray[np.int64]
Bytes: TypeAlias = NDArray[np.uint8]
Tables: TypeAlias = tuple[NDArray[np.int32], NDArray[np.int32], Numbers, Numbers, Bytes, Bytes]

FULL, ASTRAY, WRONG = -1, -2, -3  # what may come of a plane, besides a size
LOW, RANGE, CODE, POSITION = range(4)  # places in the array of the arithmetic coder


def encode(plane: Plane, center: int, trellis: bool) -> bytes:
    """Code a plane of int32 that isn't empty; all but the byte that names the coder.

    Raises:
        ValueError: if a line is no path of the trellis.
    """
    size = 2 * plane.size + 1024
    while True:
        octets = np.zeros(size, np.uint8)
        used = _code(plane, octets, center, trellis, False)
        check_path(used == ASTRAY)
        if used != FULL:
            return varint(zigzag(center)) + octets[:used].tobytes().rstrip(b"\0")
        size *= 4


def decode(stream: Buffer, plane: Plane, trellis: bool) -> None:
    """Fill a plane of int32 that isn't empty from what `encode` wrote.

    Raises:
        ValueError: if the stream is none of such a plane.
    """
    number, position = read_varint(stream, 0)
    center = unzigzag(number)
    if not -(1 << 31) <= center < 1 << 31 or (trellis and center):
        raise ValueError("The stream's center is impossible.")
    octets = np.frombuffer(stream, np.uint8, offset=position).copy()  # compiled for writable ones
    if octets.size and octets[-1] == 0:
        raise ValueError("The stream ends with a zero byte, which is never written.")
    if _code(plane, octets, center, trellis, True) < 0:
        raise ValueError("The stream does not end where its last symbol does.")


def _code(plane: Plane, octets: Bytes, center: int, trellis: bool, decoding: bool) -> int:
    """Run the kernel with its tables."""
    return int(
        _code_plane(plane, octets, center, trellis, decoding, TRELLIS_NEXT, TRELLIS_ODD, *_tables())
    )


@lru_cache(maxsize=1)
def _tables() -> Tables:
    counts = np.arange(MAX_COUNT + 1)
    rates = 131072 // (2 * counts + 3)  # 1 / (count + 1.5)
    confidences = 64 * counts // (counts + 4)
    levels = [_level(mean) for mean in range(4096)]
    sizes = [_magnitude_class(magnitude) for magnitude in range(256)]
    return (
        probability_table(),
        logit_table(),
        rates.astype(np.int64),
        confidences.astype(np.int64),
        np.array(levels, np.uint8),
        np.array(sizes, np.uint8),
    )


def _level(mean: int) -> int:
    """Return which of 24 levels, two an octave, a mean magnitude in 64ths has."""
    if mean < 2:
        return 0
    length = mean.bit_length()
    return min(23, 2 * length - 3 + (mean >> (length - 2) & 1))


def _magnitude_class(magnitude: int) -> int:
    """Return which of 8 classes a magnitude is in: 0, 1, 2, to 4, to 8, to 16, to 40, above."""
    return sum(magnitude > limit for limit in (0, 1, 2, 4, 8, 16, 40))


@compiled
def _code_bit(
    bit: int,
    decoding: bool,
    node: int,
    weight_row: int,
    places: Numbers,
    predictions: NDArray[np.uint32],
    weights: Numbers,
    logits: Numbers,
    coder: Numbers,
    octets: Bytes,
    probability_of: NDArray[np.int32],
    logit_of: NDArray[np.int32],
    rates: Numbers,
    confidences: Numbers,
) -> int:
    """Code one decision, or decode it, and learn from it; return it."""
    mixed = np.int64(0)
    for i in range(INPUTS):
        prediction = np.int64(predictions[places[i] + node])
        logit = (np.int64(logit_of[prediction >> 20]) * confidences[prediction & 255]) >> 6
        logits[i] = logit
        mixed += weights[weight_row + i] * logit
    mixed = min(max(mixed >> 16, -LIMIT), LIMIT)
    p = np.int64(probability_of[mixed + LIMIT])

    split = (coder[RANGE] >> 16) * p
    if decoding:
        bit = 1 if coder[CODE] < split else 0
    if bit:
        coder[RANGE] = split
    else:
        coder[LOW] += split
        coder[CODE] -= split
        coder[RANGE] -= split
    while coder[RANGE] < RANGE_LOW:
        coder[RANGE] <<= 8
        at = coder[POSITION]
        if decoding:
            coder[CODE] = coder[CODE] << 8 | (np.int64(octets[at]) if at < octets.size else 0)
        elif at < octets.size - 1:
            _put_byte(coder, octets)
        coder[POSITION] = at + 1

    error = (bit << 16) - p
    target = 4194303 if bit else 0
    for i in range(INPUTS):
        weights[weight_row + i] += (logits[i] * error + 32768) >> 16
        place = places[i] + node
        prediction = np.int64(predictions[place])
        count = prediction & 255
        seen = prediction >> 10
        seen += ((target - seen) * rates[count]) >> 16
        predictions[place] = np.uint32(seen << 10 | min(count + 1, MAX_COUNT))
    return bit


@compiled
def _put_byte(coder: Numbers, octets: Bytes) -> None:
    """Write the top byte of the interval's low end, with what it carries into earlier ones."""
    at = coder[POSITION]
    if coder[LOW] >> 32:
        before = at - 1
        while octets[before] == 255:
            octets[before] = 0
            before -= 1
        octets[before] += np.uint8(1)
    octets[at] = np.uint8(coder[LOW] >> 24 & 255)
    coder[LOW] = (coder[LOW] & 0xFFFFFF) << 8


@compiled
def _code_plane(
    plane: Plane,
    octets: Bytes,
    center: int,
    trellis: bool,
    decoding: bool,
    next_state: Bytes,
    odd: Bytes,
    probability_of: NDArray[np.int32],
    logit_of: NDArray[np.int32],
    rates: Numbers,
    confidences: Numbers,
    level_of: Bytes,
    class_of: Bytes,
) -> int:
    """Code a plane into zeroed octets, or fill it from them; return how many bytes they take.

    One function does both, so that they cannot differ in what they have learnt. A negative result
    says that the octets do not suffice, that a line left the trellis, or that they are no stream.
    """
    rows, columns = plane.shape
    sets = 2 if trellis else 1
    places = np.zeros(INPUTS, np.int64)
    starts = np.zeros(INPUTS, np.int64)
    room = np.int64(0)
    for i in range(INPUTS):
        starts[i] = room
        room += NODES * sets * CONTEXTS[i]
    predictions = np.full(room, np.uint32(1 << 31))
    weights = np.full(INPUTS * NODES * sets, np.int64(FIRST_WEIGHT))
    logits = np.zeros(INPUTS, np.int64)
    coder = np.zeros(4, np.int64)
    coder[RANGE] = 0xFFFFFFFF
    if decoding:
        for i in range(4):
            coder[CODE] = coder[CODE] << 8 | (np.int64(octets[i]) if i < octets.size else 0)
        coder[POSITION] = 4
    row_mean = np.int64(0)
    column_means = np.zeros(columns, np.int64)
    for row in range(rows):
        column_shift = min(COLUMN_SHIFT, 1 + row // 2)
        left = further = state = chosen = np.int64(0)
        for column in range(columns):
            above = beyond = right = np.int64(0)
            if row:
                above = np.int64(plane[row - 1, column]) - center
                if column + 1 < columns:
                    right = np.int64(plane[row - 1, column + 1]) - center
            if row > 1:
                beyond = np.int64(plane[row - 2, column]) - center
            column_mean = column_means[column]
            if trellis:
                chosen = np.int64(odd[state])
            class_above = np.int64(class_of[min(abs(above), 255)])
            near = (abs(left) + abs(above) + abs(right)) << 10
            places[0] = state
            places[1] = np.int64(level_of[min(row_mean >> 4, 4095)]) * 24
            places[1] += level_of[min(column_mean >> 4, 4095)]
            places[2] = np.int64(class_of[min(abs(left), 255)]) * 64 + class_above * 8
            places[2] += class_of[min(abs(further), 255)]
            places[3] = (
                np.int64(level_of[min((2 * (row_mean + column_mean) + near) >> 6, 4095)]) * 8
            )
            places[3] += max(class_above, np.int64(class_of[min(abs(beyond), 255)]))
            places[4] = column & 1023
            places[5] = row & 1023
            for i in range(INPUTS):
                places[i] = starts[i] + (places[i] * sets + chosen) * NODES
            sign_node = SIGN_NODE + 3 * ((left > 0) - (left < 0)) + (above > 0) - (above < 0)

            index = np.int64(plane[row, column]) - center
            if trellis and not decoding:
                if index and index & 1 != chosen:
                    return ASTRAY
                index = (index + chosen * ((index > 0) - (index < 0))) // 2
            magnitude = abs(index)
            length = most = np.int64(0)  # bits of the magnitude: known so far, and in truth
            while magnitude >> most:
                most += 1
            bits = np.int64(0)  # the magnitude's known bits, the leading one first
            left_over = np.int64(-1)  # how many of its bits are not known yet; -1: not its length
            while True:
                if left_over < 0:
                    node, bit = min(length, np.int64(LENGTH_NODES - 1)), np.int64(most > length)
                elif left_over > 0:
                    group = 7 * (min(length, 5) - 2)
                    node = (
                        HIGH_BITS_NODE + group + bits - 1 if bits < 8 else np.int64(LOW_BITS_NODE)
                    )
                    bit = magnitude >> (left_over - 1) & 1
                else:
                    node, bit = np.int64(sign_node), np.int64(index < 0)
                bit = _code_bit(
                    bit,
                    decoding,
                    node,
                    (chosen * NODES + node) * INPUTS,
                    places,
                    predictions,
                    weights,
                    logits,
                    coder,
                    octets,
                    probability_of,
                    logit_of,
                    rates,
                    confidences,
                )
                if left_over < 0:
                    length += bit
                    if bit and length < MAX_LENGTH:
                        continue
                    if length == 0:
                        break
                    bits, left_over = np.int64(1), length - 1
                elif left_over > 0:
                    bits, left_over = 2 * bits + bit, left_over - 1
                else:
                    bits = -bits if bit else bits
                    break
            value = bits
            if trellis:
                state = np.int64(next_state[2 * state + (bits & 1)])
                value = 2 * bits - chosen * ((bits > 0) - (bits < 0))
            if decoding:
                if value + center < -(1 << 31) or value + center >= 1 << 31:
                    return WRONG
                plane[row, column] = value + center
            magnitude = min(abs(value), 255) << 10
            row_mean += (magnitude - row_mean) >> ROW_SHIFT
            column_means[column] += (magnitude - column_mean) >> column_shift
            further = left
            left = value
        if not decoding and coder[POSITION] >= octets.size - 1:
            return FULL
    at = coder[POSITION]
    if decoding:
        # What an encoder leaves ends with the one byte below, so that the last three are no more.
        return int(at) if octets.size <= at - 3 and coder[CODE] < RANGE_LOW else WRONG
    coder[LOW] += RANGE_LOW - 1
    _put_byte(coder, octets)
    return int(at) + 1
