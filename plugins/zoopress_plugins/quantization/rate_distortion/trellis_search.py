"""Choose the integers of lines so that distortion + bits is least: one by one, or along a trellis.

Targets are in units of the step, distortion in units of what a bit is worth. Each function takes a
block of lines, as `feedback.with_feedback` calls it.

Sources: Sullivan & Wiegand 1998, doi:10.1109/79.733497 (rate–distortion optimized choice);
Marcellin & Fischer 1990, doi:10.1109/26.46532 (trellis-coded quantization by Viterbi's algorithm);
Schwarz et al. 2019, doi:10.1109/DCC.2019.00017 (with entropy coding, the two quantizers).
"""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from zoopress.coding.compiled import compiled
from zoopress.coding.trellis import NEXT, ODD, STATES

Floats: TypeAlias = NDArray[np.float32]
Doubles: TypeAlias = NDArray[np.float64]
Bytes: TypeAlias = NDArray[np.uint8]
Codes: TypeAlias = NDArray[np.int16]
Indices: TypeAlias = NDArray[np.int32]
States: TypeAlias = NDArray[np.int64]

NEXT_STATES = np.array(NEXT, np.int64)
ODD_STATES = np.array(ODD, np.int64)


def _sources() -> NDArray[np.int64]:
    """Return [states, 2, (state before, parity)]: what leads to each state."""
    found: list[list[tuple[int, int]]] = [[] for _ in range(STATES)]
    for state in range(STATES):
        for parity in (0, 1):
            found[NEXT[state][parity]].append((state, parity))
    return np.array(found, np.int64)


SOURCES = _sources()


@compiled
def _cost(bits: Floats, magnitude: int) -> float:
    """Return the bits of a magnitude; those beyond the table take two bits more per doubling."""
    last = len(bits) - 1
    if magnitude <= last:
        return float(bits[magnitude])
    return float(bits[last] + 2.0 * np.log2(magnitude / last))


@compiled
def _finish_line(
    targets: Floats, coupling: Floats, codes: Codes, errors: Floats, line: int
) -> None:
    """Turn a line's weights into errors, and move the targets of later lines."""
    length = targets.shape[1]
    for i in range(length):
        errors[line, i] -= codes[line, i]
    for later in range(line + 1, targets.shape[0]):
        factor = coupling[line, later]
        if factor != 0.0:
            for i in range(length):
                targets[later, i] += factor * errors[line, i]


@compiled
def search_uniform(
    targets: Floats,
    errors: Floats,
    coupling: Floats,
    along: Floats,
    across: Floats,
    classes: Bytes,
    table: Floats,
    keep: NDArray[np.bool_],
    most: int,
    codes: Codes,
) -> None:
    """Choose of the two nearest integers and 0 the one with the least distortion + bits.

    Args:
        targets: [lines, length], float32; changed.
        errors: [lines, length], float32; the weights on entry, then what codes lack of them.
        coupling: [lines, lines], float32.
        along: [lines], float32; a squared error of a step is worth along · across bits.
        across: [length], float32.
        classes: [lines, length], uint8; of `rate`.
        table: bits [classes, 1, magnitudes], float32.
        keep: [lines, length], bool; elsewhere codes are 0.
        most: the largest magnitude.
        codes: [lines, length], int16; filled.
    """
    for line in range(targets.shape[0]):
        for i in range(targets.shape[1]):
            codes[line, i] = 0
            if not keep[line, i]:
                continue
            target = targets[line, i]
            worth = along[line] * across[i]
            bits = table[classes[line, i], 0]
            size = min(abs(target), np.float32(most))
            best, least = 0, worth * size * size + bits[0]
            below = int(size)
            for magnitude in (below, below + 1):
                if 0 < magnitude <= most:
                    cost = worth * (size - magnitude) ** 2 + _cost(bits, magnitude)
                    if cost < least:
                        best, least = magnitude, cost
            codes[line, i] = best if target >= 0 else -best
        _finish_line(targets, coupling, codes, errors, line)


@compiled
def _best_of_subsets(
    target: float, worth: float, table: Floats, most: int, costs: Doubles, values: Indices
) -> None:
    """Find the best value of each of the four subsets of the grid, by quantizer and parity.

    Index k of quantizer 0 stands for 2k, of quantizer 1 for 2k − sign(k).

    Args:
        target: in steps.
        worth: of a squared error of a step, in bits.
        table: bits [2, magnitudes of indices].
        most: the largest magnitude of a value.
        costs: [4], of quantizer 0 and even, 0 and odd, 1 and even, 1 and odd; filled.
        values: [4], filled.
    """
    size = min(abs(target), np.float32(most))
    for quantizer in (0, 1):
        for parity in (0, 1):
            nearest = parity + 2 * int(max(0.0, ((size + quantizer) / 2 - parity) / 2 + 0.5))
            least, best = np.inf, 0
            for index in (nearest, nearest - 2):
                value = 2 * index - quantizer if index > 0 else 0
                if index >= 0 and value <= most:
                    cost = worth * (size - value) ** 2 + _cost(table[quantizer], index)
                    if cost < least:
                        least, best = cost, value
            costs[2 * quantizer + parity] = least
            values[2 * quantizer + parity] = best if target >= 0 else -best


@compiled
def search_trellis(
    targets: Floats,
    errors: Floats,
    coupling: Floats,
    along: Floats,
    across: Floats,
    classes: Bytes,
    table: Floats,
    keep: NDArray[np.bool_],
    most: int,
    codes: Codes,
    odd: States,
    sources: States,
) -> None:
    """Choose for each line the path of the trellis with the least distortion + bits.

    Args are those of `search_uniform`, but for table: bits [classes, 2, magnitudes of indices], and
        odd: [states], which quantizer a state has.
        sources: [states, 2, (state before, parity)].
    """
    length, states = targets.shape[1], len(odd)
    back = np.empty((length, states), np.uint8)
    values = np.empty((length, 4), np.int32)
    costs = np.empty(4, np.float64)
    now = np.empty(states, np.float64)
    then = np.empty(states, np.float64)
    for line in range(targets.shape[0]):
        now[:] = np.inf
        now[0] = 0.0
        for i in range(length):
            bits = table[classes[line, i]]
            if keep[line, i]:
                worth = along[line] * across[i]
                _best_of_subsets(targets[line, i], worth, bits, most, costs, values[i])
            else:
                values[i] = 0
                costs[0], costs[1], costs[2], costs[3] = bits[0, 0], np.inf, bits[1, 0], np.inf
            for state in range(states):
                one, other = sources[state, 0], sources[state, 1]
                first = now[one[0]] + costs[2 * odd[one[0]] + one[1]]
                second = now[other[0]] + costs[2 * odd[other[0]] + other[1]]
                then[state] = min(first, second)
                back[i, state] = 0 if first <= second else 1
            now, then = then, now
        state = int(np.argmin(now))
        for i in range(length - 1, -1, -1):
            before, parity = sources[state, back[i, state]]
            codes[line, i] = values[i, 2 * odd[before] + parity]
            state = before
        _finish_line(targets, coupling, codes, errors, line)


@compiled
def read_paths(
    codes: Codes, odd: States, following: States, indices: Indices, quantizers: Bytes
) -> bool:
    """Find of each code its index and quantizer; return whether each line is a path.

    Args:
        codes: [lines, length], int16.
        odd: [states].
        following: the next state [states, 2] by parity.
        indices: magnitudes [lines, length], int32; filled.
        quantizers: [lines, length], uint8; filled.
    """
    for line in range(codes.shape[0]):
        state = 0
        for i in range(codes.shape[1]):
            size = abs(codes[line, i])
            if size & 1 != (odd[state] if size else 0):
                return False
            index = (size + 1) >> 1
            indices[line, i] = index
            quantizers[line, i] = odd[state]
            state = following[state, index & 1]
    return True
