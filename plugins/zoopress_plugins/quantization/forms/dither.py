"""Dither that both sides draw from a seed, the same on every machine: integers, then exact floats.

Sources: Steele, Lea & Flood 2014, doi:10.1145/2660193.2660195 (SplitMix64, by counter); Conway &
Sloane 1982, doi:10.1109/TIT.1982.1056484 (the nearest point of E8); Zamir & Feder 1992,
doi:10.1109/18.135648 (dither is uniform over the cell of a lattice's origin).
"""

from __future__ import annotations

from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

Lattice: TypeAlias = Literal["Z", "E8"]
Floats: TypeAlias = NDArray[np.float64]
BLOCK = 8
"""Weights of a row that E8 takes together; those that are left over take Z."""

_FRACTION = 16  # bits of the dither: all sums below are exact in float64
_MASK = (1 << 64) - 1


def splitmix64(seed: int, counters: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Return the 64-bit number of each counter.

    Args:
        seed: 0 to 2**64 − 1.
        counters: of any shape; counter i gives output i + 1 of the generator.
    """
    with np.errstate(over="ignore"):
        z = counters * np.uint64(0x9E3779B97F4A7C15)
        z += np.uint64((seed + 0x9E3779B97F4A7C15) & _MASK)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: NDArray[np.uint64] = z ^ (z >> np.uint64(31))
    return mixed


def nearest_point(points: Floats, lattice: Lattice) -> Floats:
    """Return the point of a lattice that is nearest to each row of a matrix [n, columns].

    Z rounds every number. E8 rounds eight at a time, to integers of even sum or to halves of odd
    numbers of even sum, whichever is nearer, and what is left over as Z does. What lies between two
    numbers goes to the even one.
    """
    rounded: Floats = np.rint(points)
    if lattice == "E8" and (size := points.shape[1] // BLOCK * BLOCK):
        # [8, blocks]: numpy sums along the first axis several times as fast as along a short last.
        blocks = np.ascontiguousarray(points[:, :size].reshape(-1, BLOCK).T)
        whole, half = _nearest_even(blocks), _nearest_even(blocks - 0.5) + 0.5
        nearer = ((blocks - half) ** 2).sum(0) < ((blocks - whole) ** 2).sum(0)
        rounded[:, :size] = np.where(nearer, half, whole).T.reshape(-1, size)
    return rounded


def _nearest_even(blocks: Floats) -> Floats:
    """Return the nearest integers of even sum, D8: if it is odd, the worst goes the other way.

    Args:
        blocks: [8, n].
    """
    rounded: Floats = np.rint(blocks)
    odd = np.flatnonzero(rounded.sum(0) % 2)
    errors = blocks[:, odd] - rounded[:, odd]
    worst = np.abs(errors).argmax(0)
    chosen = errors[worst, np.arange(len(odd))]
    rounded[worst, odd] += np.where(chosen < 0, -1.0, 1.0)
    return rounded


def dither(seed: int, rows: NDArray[np.int64], columns: int, lattice: Lattice) -> Floats:
    """Return the dither of some rows of a matrix, in units of the step.

    Args:
        seed: 0 to 2**64 − 1.
        rows: [n], which.
        columns: of the matrix.
        lattice: whose cell it is uniform over.

    Returns:
        [n, columns], multiples of 2**-16.
    """
    counters = rows.astype(np.uint64)[:, None] * np.uint64(columns)
    counters = counters + np.arange(columns, dtype=np.uint64)
    uniform = (splitmix64(seed, counters) >> np.uint64(64 - _FRACTION)).astype(np.float64)
    # Uniform over [0, 2)⁸, which holds as much of every class modulo E8; over [0, 1) modulo Z.
    uniform *= 2.0 ** (1 - _FRACTION)
    uniform[:, _coupled(columns, lattice) :] *= 0.5
    result: Floats = uniform - nearest_point(uniform, lattice)
    return result


def codes_of(points: Floats, lattice: Lattice) -> Floats:
    """Return an integer for each coordinate of lattice points [n, columns].

    Of a block x of E8, k = ⌊x⌋ has an even sum and all of x − k is the same, 0 or ½. So the last
    code of a block is k₈ − p + 2(x₈ − k₈), where p is the parity of k₁ + … + k₇: as many codes as
    numbers, all of the same spread, and no bit too many.
    """
    if not (size := _coupled(points.shape[1], lattice)):
        return points
    codes = np.floor(points)
    blocks = codes[:, :size].reshape(-1, BLOCK)
    halves = (points[:, :size] - codes[:, :size]).reshape(-1, BLOCK)[:, -1]
    blocks[:, -1] += 2 * halves - blocks[:, :-1].sum(1) % 2
    codes[:, :size] = blocks.reshape(-1, size)
    codes[:, size:] = points[:, size:]
    return codes


def points_of(codes: NDArray[Any], lattice: Lattice) -> Floats:
    """Return the lattice points of codes [n, columns]; inverse of `codes_of`."""
    points = codes.astype(np.float64)
    if size := _coupled(points.shape[1], lattice):
        blocks = points[:, :size].reshape(-1, BLOCK)
        half = blocks[:, -1] % 2
        blocks[:, -1] += blocks[:, :-1].sum(1) % 2 - half
        blocks += 0.5 * half[:, None]
        points[:, :size] = blocks.reshape(-1, size)
    return points


def _coupled(columns: int, lattice: Lattice) -> int:
    """Return how many of the first columns are quantized in blocks."""
    return columns // BLOCK * BLOCK if lattice == "E8" else 0
