"""The compiled loops over the columns of a block, which have to know of those before them.

Lines are columns of the matrix, [lines, rows]; rows do not know of each other, so they are taken
in parts that stay in the cache. What blocks do to each other is left to matrix products outside.
All arrays are contiguous, so that each function is compiled once.
"""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from zoopress.coding.compiled import compiled

Floats: TypeAlias = NDArray[np.float32]
Flags: TypeAlias = NDArray[np.bool_]

_ROWS = 256


@compiled
def round_lines(
    targets: Floats,
    errors: Floats,
    coupling: Floats,
    scale: Floats,
    zero: Floats,
    keep: Flags,
    low: np.float32,
    high: np.float32,
    levels: Floats,
) -> None:
    """Round lines one after another; errors of each move the targets of those after it.

    Args:
        targets: [lines, rows], changed.
        errors: the weights on entry; what was put out is taken off.
        coupling: [lines, lines]; an error of line i moves the target of line j > i by [i, j].
        scale: [lines, rows], positive.
        zero: zero points.
        keep: elsewhere the level is the zero point.
        low: the lowest level.
        high: the highest.
        levels: filled.
    """
    lines, rows = targets.shape
    for first in range(0, rows, _ROWS):
        last = min(first + _ROWS, rows)
        for line in range(lines):
            for row in range(first, last):
                step = np.rint(targets[line, row] / scale[line, row])
                step = step if keep[line, row] else np.float32(0.0)
                level = min(max(step + zero[line, row], low), high)
                levels[line, row] = level
                errors[line, row] -= (level - zero[line, row]) * scale[line, row]
            for later in range(line + 1, lines):
                share = coupling[line, later]
                for row in range(first, last):
                    targets[later, row] += share * errors[line, row]


@compiled
def improve_lines(
    held: Floats,
    pull: Floats,
    inputs: Floats,
    scale: Floats,
    zero: Floats,
    keep: Flags,
    low: np.float32,
    high: np.float32,
    levels: Floats,
    moves: Floats,
) -> None:
    """Give lines one after another the levels that are best beside all other lines.

    Args:
        held: [lines, rows], what levels stand for on entry.
        pull: inputs times errors, half the derivative of what outputs err; changed.
        inputs: [lines, lines], what errors of these lines do to each other, positive diagonal.
        scale: [lines, rows], positive.
        zero: zero points.
        keep: elsewhere the level is the zero point.
        low: the lowest level.
        high: the highest.
        levels: changed.
        moves: filled with how errors changed.
    """
    lines, rows = held.shape
    for first in range(0, rows, _ROWS):
        last = min(first + _ROWS, rows)
        for line in range(lines):
            alone = inputs[line, line]
            for row in range(first, last):
                target = held[line, row] + pull[line, row] / alone
                step = np.rint(target / scale[line, row])
                step = step if keep[line, row] else np.float32(0.0)
                level = min(max(step + zero[line, row], low), high)
                moves[line, row] = (levels[line, row] - level) * scale[line, row]
                levels[line, row] = level
            for later in range(line + 1, lines):
                share = inputs[later, line]
                for row in range(first, last):
                    pull[later, row] += share * moves[line, row]
