"""What the static coder's encoder decides: how magnitudes are predicted, which tables there are.

A few ways to predict are tried on some lines. Tokens are counted by bins of the prediction, and
neighbouring bins joined into the classes that cost least, their tables included.

Source: Wu and Memon 1997, doi:10.1109/26.585919 (classes of predicted magnitude).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from zoopress.coding.alphabet import Alphabet
from zoopress.coding.compiled import compiled
from zoopress.coding.frequency_tables import PRECISION, SLOTS, put_table, round_frequencies
from zoopress.coding.planes import TRELLIS_NEXT, TRELLIS_ODD, Plane, Statistics, check_path
from zoopress.coding.static_kernels import LEVELS, scan_plane

MAX_CLASSES = 16
_BINS = 40
_BINS_PER_OCTAVE = 5
_SAMPLE_SYMBOLS = 1 << 15
_LANES = 8
_SYMBOLS_PER_LANE = 1 << 12  # a lane costs 8 bytes, half of them for nothing


class Context(NamedTuple):
    """How magnitudes are predicted; the fields are a stream's."""

    row_shift: int
    column_shift: int
    row_weight: int
    column_weight: int
    shift: int


_WAYS = ((5, 3, 4), (5, 3, 10), (5, 3, 16), (2, 3, 8))
"""Row shift, column shift, the row's weight in 16ths: for planes whose columns or rows differ, or
whose neighbours are alike."""


@dataclass(frozen=True)
class Scan:
    """A plane's symbols, seen with one context.

    Attributes:
        histogram: [sets, bins, tokens].
        tokens, bins: [symbols] in coding order.
    """

    context: Context
    histogram: NDArray[np.int64]
    tokens: NDArray[np.uint8]
    bins: NDArray[np.uint8]


@dataclass(frozen=True)
class Model:
    """All that is needed to encode.

    Attributes:
        ends: the bin after the last of each class.
        frequencies: [classes * sets, tokens].
        tables: the same as they are stored.
        payload_bits: what the symbols take.
    """

    alphabet: Alphabet
    lanes: int
    scan: Scan
    ends: list[int]
    frequencies: NDArray[np.int64]
    tables: bytes
    payload_bits: float

    @property
    def thresholds(self) -> list[int]:
        """The first level of each class but the first."""
        return [_bin_edges()[end] for end in self.ends[:-1]]

    @property
    def bits(self) -> float:
        """What the stream takes, to within some bytes."""
        frame = 13 + 2 * len(self.ends) + len(self.tables)
        return self.payload_bits + 8 * (frame + 6 * self.lanes)  # last states are half full


def choose_model(plane: Plane, statistics: Statistics, trellis: bool) -> Model:
    """Find out how to code a plane of int32 [rows, columns] that isn't empty.

    Raises:
        ValueError: if a line is no path of the trellis.
    """
    alphabet = statistics.alphabet(trellis)
    lanes = _choose_lanes(plane, trellis)
    parts = cut_for_lanes(plane, lanes, trellis)
    sample = _some_lines(parts[0], lanes)
    contexts = [_context(way, statistics.mean_magnitude) for way in _WAYS]
    if plane.size < 256:
        contexts = contexts[:1]  # a second table would never pay
    scans = [_scan([sample], alphabet, lanes, context, trellis) for context in contexts]
    costs = [_cost_by_octaves(scan.histogram) for scan in scans]
    best = costs.index(min(costs))
    scan = scans[best]
    if sample.size < plane.size:
        scan = _scan(parts, alphabet, lanes, contexts[best], trellis)
    ends = _classes(scan.histogram)
    counts = np.add.reduceat(scan.histogram, [0, *ends[:-1]], axis=1)
    counts = np.ascontiguousarray(counts.swapaxes(0, 1)).reshape(-1, alphabet.size)
    frequencies = np.zeros_like(counts)
    tables = _make_tables(counts, frequencies)
    spent = (PRECISION << 16) - _log2_fixed()[np.maximum(frequencies, 1)]
    beside = counts.sum(axis=0) @ alphabet.tables[1][: alphabet.size]
    payload = int((counts * spent).sum()) / 65536 + int(beside)
    return Model(alphabet, lanes, scan, ends, frequencies, tables, payload)


def _choose_lanes(plane: Plane, trellis: bool) -> int:
    lanes = 1
    while lanes < _LANES and plane.size >= 2 * lanes * _SYMBOLS_PER_LANE:
        lanes *= 2
    return min(lanes, plane.shape[0]) if trellis else lanes


def cut_for_lanes(plane: NDArray[Any], lanes: int, trellis: bool) -> list[NDArray[Any]]:
    """Return what is coded one after the other: few long lines are cut, a piece for each lane."""
    rows = plane.shape[0]
    if trellis or rows >= lanes:
        return [plane]
    flat = plane.reshape(-1)
    width = flat.size // lanes
    if width == 0:
        return [flat.reshape(1, -1)]
    parts = [flat[: width * lanes].reshape(lanes, width)]
    if flat.size > width * lanes:
        parts.append(flat[width * lanes :].reshape(1, -1))
    return parts


def _some_lines(part: Plane, lanes: int) -> Plane:
    width = min(part.shape[1], _SAMPLE_SYMBOLS // lanes)
    lines = max(lanes, _SAMPLE_SYMBOLS // width // lanes * lanes)
    return np.ascontiguousarray(part[:lines, :width])


def _context(way: tuple[int, int, int], mean_magnitude: float) -> Context:
    """Weigh rows and columns so that the mean magnitude is about level 64."""
    row_shift, column_shift, weight = way
    wanted = 64 / max(1.0, mean_magnitude * 256)
    shift = 0
    while shift < 40 and wanted * (1 << (shift + 1)) < 255:
        shift += 1
    total = int(wanted * (1 << shift))
    row_weight = total * weight // 16
    return Context(row_shift, column_shift, row_weight, total - row_weight, shift)


def _scan(
    parts: list[Plane], alphabet: Alphabet, lanes: int, context: Context, trellis: bool
) -> Scan:
    size = sum(part.size for part in parts)
    tokens, bins = np.empty(size, np.uint8), np.empty(size, np.uint8)
    histogram = np.zeros((2 if trellis else 1, _BINS, alphabet.size), np.int64)
    done = 0
    for part in parts:
        astray = scan_plane(
            part,
            trellis,
            TRELLIS_NEXT,
            TRELLIS_ODD,
            lanes,
            *context,
            alphabet.center,
            alphabet.exact,
            alphabet.below,
            alphabet.magnitudes,
            _bin_of_level(),
            histogram,
            tokens[done:],
            bins[done:],
        )
        check_path(astray)
        done += part.size
    return Scan(context, histogram, tokens, bins)


def _cost_by_octaves(histogram: NDArray[np.int64]) -> int:
    """Return what symbols take with a table for each octave of levels, in 65536ths of a bit.

    Whole numbers, as everything that chooses: every machine must write the same bytes.
    """
    merged = np.add.reduceat(histogram, np.arange(0, _BINS, _BINS_PER_OCTAVE), axis=1)
    counts = merged.reshape(-1, merged.shape[-1])
    return _weighed_sum(counts.sum(axis=1), _log2_fixed()) - _weighed_sum(
        counts.reshape(-1), _log2_fixed()
    )


def _classes(histogram: NDArray[np.int64]) -> list[int]:
    """Return the bin after the last of each class."""
    ends = np.zeros(_BINS, np.int64)
    _find_classes(histogram, MAX_CLASSES, _log2_fixed(), ends)
    return [int(end) for end in ends if end]


@compiled
def _find_classes(
    histogram: NDArray[np.int64],
    most: int,
    log2: NDArray[np.int64],
    ends: NDArray[np.int64],
) -> None:
    """Join neighbouring bins into the classes that cost least, by dynamic programming.

    Args:
        ends: filled with the bin after the last of each class.
    """
    sets, bins, tokens = histogram.shape
    costs = np.zeros((bins, bins + 1), np.int64)
    counts = np.zeros(tokens, np.int64)
    for chosen in range(sets):
        for first in range(bins):
            counts[:] = 0
            total = spent = present = np.int64(0)
            for last in range(first, bins):
                for token in range(tokens):
                    more = histogram[chosen, last, token]
                    if more:
                        old = counts[token]
                        present += old == 0
                        spent += _weighed(old + more, log2) - _weighed(old, log2)
                        counts[token] = old + more
                        total += more
                # A table's entry takes about six bits, its frame sixteen, a threshold too.
                table = (6 * present + 24) << 16
                costs[first, last + 1] += _weighed(total, log2) - spent + table
    best = np.full((most + 1, bins + 1), np.int64(1) << 62)
    before = np.zeros((most + 1, bins + 1), np.int64)
    best[0, 0] = 0
    for count in range(1, most + 1):
        for end in range(1, bins + 1):
            for first in range(end):
                cost = best[count - 1, first] + costs[first, end]
                if cost < best[count, end]:
                    best[count, end] = cost
                    before[count, end] = first
    chosen_count = 1
    for count in range(2, most + 1):
        if best[count, bins] < best[chosen_count, bins]:
            chosen_count = count
    end = bins
    for count in range(chosen_count, 0, -1):
        ends[count - 1] = end
        end = before[count, end]


@compiled
def _weighed_sum(counts: NDArray[np.int64], log2: NDArray[np.int64]) -> int:
    total = 0
    for count in counts:
        total += _weighed(count, log2)
    return total


@compiled
def _weighed(count: int, log2: NDArray[np.int64]) -> int:
    """Return count · log2(count) in 65536ths."""
    if count < 2:
        return 0
    dropped = 0
    while count >> dropped >= log2.size:
        dropped += 1
    return int(count * (log2[count >> dropped] + (np.int64(dropped) << 16)))


@lru_cache(maxsize=1)
def _log2_fixed() -> NDArray[np.int64]:
    """Return log2 of 1 … 4096 in 65536ths, after one 0.

    Whole numbers, so that every machine chooses the same tables and writes the same bytes.
    """
    return np.array([0] + [round(math.log2(n) * 65536) for n in range(1, SLOTS + 1)], np.int64)


def _make_tables(counts: NDArray[np.int64], frequencies: NDArray[np.int64]) -> bytes:
    """Choose each table's frequencies, fill them in, and return how they are stored."""
    # A symbol takes at most 7 + 17 + 11 bits, a table's frame 12.
    bits = np.zeros(counts.shape[0] * (5 * counts.shape[1] + 4), np.uint8)
    position = 0
    for row, chosen in zip(counts, frequencies, strict=True):
        order = np.argsort(row, kind="stable")
        if row[order[-1]] == 0:
            row, order = np.eye(1, row.size, dtype=np.int64)[0], order[::-1].copy()
        # Halving the steps of frequencies quarters what they cost; it pays while a symbol occurs
        # more than about 12 · 4**bits times.
        mantissa = 1
        while mantissa < 11 and row.sum() > 12 * 4**mantissa * np.count_nonzero(row):
            mantissa += 1
        round_frequencies(row, order, mantissa, chosen)
        position = put_table(chosen, order[-1], mantissa, bits, position)
    return bits[: (position + 7) // 8].tobytes()


@lru_cache(maxsize=1)
def _bin_edges() -> list[int]:
    """Return the first level of each bin; the mean magnitude's lies amid."""
    edges = [0]
    for number in range(1, _BINS):
        edges.append(max(edges[-1] + 1, round(64 * 2 ** ((number - 18) / _BINS_PER_OCTAVE))))
    return edges


@lru_cache(maxsize=1)
def _bin_of_level() -> NDArray[np.uint8]:
    return (np.searchsorted(_bin_edges(), np.arange(LEVELS), side="right") - 1).astype(np.uint8)
