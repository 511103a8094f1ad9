"""Canonical Huffman codes, with relative indexing where most integers are zeros.

Dense: a code for each token. Sparse: for each number other than the center a code for how many
centers lie before it, at most 2**gap_bits - 1 at a time, and a code for its token.

Source: Huffman 1952; Han, Mao and Dally 2016, arXiv:1510.00149, sections 2 and 4.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from zoopress.coding.alphabet import bits_beside, read_alphabet, token_of
from zoopress.coding.compiled import compiled
from zoopress.coding.planes import (
    TRELLIS_NEXT,
    TRELLIS_ODD,
    Plane,
    Statistics,
    check_path,
    follow_trellis,
)
from zoopress.coding.varint import Buffer, read_varint, varint

MAX_LENGTH = 15  # of a code: lengths are stored as half a byte
MAX_GAP_BITS = 8

Numbers: TypeAlias = NDArray[np.int64]
Bytes: TypeAlias = NDArray[np.uint8]


@dataclass(frozen=True)
class Code:
    """A canonical code: shorter codes first, of one length in the order of the symbols.

    Attributes:
        lengths: [symbols], 0 for one that does not occur.
    """

    lengths: Numbers

    def to_bytes(self) -> bytes:
        """Return half a byte for each length, the first in the low half."""
        padded = np.append(self.lengths, 0)[: (self.lengths.size + 1) // 2 * 2].astype(np.uint8)
        return (padded[::2] | padded[1::2] << 4).tobytes()

    def bits(self, counts: Numbers) -> int:
        """Return how many bits symbols that occur so often take."""
        return int(counts @ self.lengths)

    def words(self) -> Numbers:
        """Return each symbol's code as a number, the bit that is written first on top."""
        words = np.zeros(self.lengths.size, np.int64)
        word = 0
        for length in range(1, MAX_LENGTH + 1):
            for symbol in np.flatnonzero(self.lengths == length):
                words[symbol] = word
                word += 1
            word *= 2
        return words

    def ordered(self) -> tuple[Numbers, Numbers]:
        """Return how many codes there are of each length 0 … 15, and the symbols in their order."""
        occurring = np.flatnonzero(self.lengths)
        order = occurring[np.argsort(self.lengths[occurring], kind="stable")]
        return np.bincount(self.lengths[order], minlength=MAX_LENGTH + 1), order


def make_code(counts: Numbers) -> Code:
    """Return an optimal code, or nearly so where an optimal one has codes of over 15 bits."""
    lengths = np.zeros(counts.size, np.int64)
    occurring = [int(symbol) for symbol in np.flatnonzero(counts)]
    if len(occurring) == 1:
        lengths[occurring[0]] = 1
    weights = {symbol: int(counts[symbol]) for symbol in occurring}
    while len(occurring) > 1:
        heap = [(weights[symbol], symbol, [symbol]) for symbol in occurring]
        heapq.heapify(heap)
        lengths[:] = 0
        while len(heap) > 1:
            first, second = heapq.heappop(heap), heapq.heappop(heap)
            members = first[2] + second[2]
            lengths[members] += 1
            heapq.heappush(heap, (first[0] + second[0], min(first[1], second[1]), members))
        if lengths.max() <= MAX_LENGTH:
            break
        weights = {symbol: (weight + 1) // 2 for symbol, weight in weights.items()}
    return Code(lengths)


def encode(plane: Plane, statistics: Statistics, trellis: bool) -> bytes:
    """Code a plane of int32 that isn't empty; all but the byte that names the coder.

    Raises:
        ValueError: if a line is no path of the trellis.
    """
    alphabet = statistics.alphabet(trellis)
    numbers = plane.astype(np.int64)
    if trellis:
        check_path(follow_trellis(numbers, TRELLIS_NEXT, TRELLIS_ODD, True))
    flat = numbers.reshape(-1) - alphabet.center
    places = np.flatnonzero(flat)
    tokens = np.empty(flat.size, np.uint8)
    _find_tokens(flat, alphabet.exact, alphabet.below, tokens)

    counts = np.bincount(tokens, minlength=alphabet.size)
    best_code, best_gaps = make_code(counts), Code(np.zeros(0, np.int64))
    best_bits, gap_bits = best_code.bits(counts), 0
    counts[alphabet.below] = 0
    gaps = np.diff(places, prepend=-1) - 1
    sparse_code = make_code(counts)
    for bits in range(1, MAX_GAP_BITS + 1) if places.size else ():
        most = (1 << bits) - 1
        gap_counts = np.bincount(gaps % most, minlength=most + 1)
        gap_counts[most] += (gaps // most).sum()
        code = make_code(gap_counts)
        size = sparse_code.bits(counts) + code.bits(gap_counts) + 4 * (most + 1)
        if size < best_bits:
            best_bits, gap_bits = size, bits
            best_code, best_gaps = sparse_code, code

    beside = int(alphabet.tables[1][tokens].sum())
    octets = np.zeros((best_bits + beside + 7) // 8, np.uint8)
    size = _write_bits(
        flat,
        tokens,
        alphabet.exact,
        alphabet.below,
        best_code.words(),
        best_code.lengths,
        best_gaps.words(),
        best_gaps.lengths,
        octets,
    )
    assert (size + 7) // 8 <= octets.size
    frame = alphabet.to_bytes() + bytes((gap_bits,)) + best_code.to_bytes()
    if gap_bits:
        frame += best_gaps.to_bytes() + varint(places.size)
    return frame + octets[: (size + 7) // 8].tobytes()


def decode(stream: Buffer, plane: Plane, trellis: bool) -> None:
    """Fill a plane of int32 that isn't empty from what `encode` wrote.

    Raises:
        ValueError: if the stream is none of such a plane.
    """
    alphabet, position = read_alphabet(stream, 0)
    alphabet.check(trellis)
    if len(stream) <= position:
        raise ValueError("The stream ends before its codes.")
    gap_bits = stream[position]
    if gap_bits > MAX_GAP_BITS:
        raise ValueError(f"The stream counts gaps in {gap_bits} bits; at most 8 are allowed.")
    code, position = _read_code(stream, position + 1, alphabet.size)
    gaps, present = Code(np.zeros(0, np.int64)), plane.size
    if gap_bits:
        gaps, position = _read_code(stream, position, 1 << gap_bits)
        present, position = read_varint(stream, position)
        if present > plane.size:
            raise ValueError(f"The stream has {present} numbers for {plane.size} places.")
    octets = np.frombuffer(stream, np.uint8, offset=position).copy()  # compiled for writable ones
    numbers = np.full(plane.shape, alphabet.center, np.int64)
    values, extra_bits = alphabet.tables
    size = _read_bits(
        octets,
        (1 << gap_bits) - 1,
        present,
        alphabet.center,
        values,
        extra_bits,
        *code.ordered(),
        *gaps.ordered(),
        numbers.reshape(-1),
    )
    if size != octets.size:
        raise ValueError("The stream does not end where its last symbol does.")
    if trellis:
        follow_trellis(numbers, TRELLIS_NEXT, TRELLIS_ODD, False)
    if numbers.min() < -(1 << 31) or numbers.max() >= 1 << 31:
        raise ValueError("The stream holds a number beyond 32 bits.")
    plane[...] = numbers


def _read_code(stream: Buffer, position: int, symbols: int) -> tuple[Code, int]:
    size = (symbols + 1) // 2
    if len(stream) < position + size:
        raise ValueError("The stream ends within the lengths of its codes.")
    halves = np.frombuffer(stream, np.uint8, size, position)
    lengths = np.stack((halves & 15, halves >> 4), 1).reshape(-1).astype(np.int64)
    if lengths[symbols:].any() or (lengths > 0) @ (1 << (MAX_LENGTH - lengths)) > 1 << MAX_LENGTH:
        raise ValueError("The lengths of the stream's codes contradict each other.")
    return Code(lengths[:symbols]), position + size


@compiled
def _find_tokens(flat: Numbers, exact: int, below: int, tokens: Bytes) -> None:
    for i in range(flat.size):
        tokens[i] = token_of(flat[i], exact) + below


@compiled
def _put(octets: Bytes, position: int, value: int, size: int) -> int:
    """Write bits, the highest first; return the position after them."""
    for i in range(size - 1, -1, -1):
        if value >> i & 1:
            octets[position >> 3] |= np.uint8(128 >> (position & 7))
        position += 1
    return position


@compiled
def _write_bits(
    flat: Numbers,
    tokens: Bytes,
    exact: int,
    below: int,
    words: Numbers,
    lengths: Numbers,
    gap_words: Numbers,
    gap_lengths: Numbers,
    octets: Bytes,
) -> int:
    most = gap_words.size - 1
    gap = position = np.int64(0)
    for i in range(flat.size):
        s = flat[i]
        if most > 0:
            if s == 0:
                gap += 1
                continue
            while gap >= most:
                position = _put(octets, position, gap_words[most], gap_lengths[most])
                gap -= most
            position = _put(octets, position, gap_words[gap], gap_lengths[gap])
            gap = np.int64(0)
        position = _put(octets, position, words[tokens[i]], lengths[tokens[i]])
        extra = bits_beside(s, exact)
        position = _put(octets, position, abs(s) & ((np.int64(1) << extra) - 1), extra)
    return int(position)


@compiled
def _get_symbol(
    octets: Bytes, position: int, lengths: Numbers, symbols: Numbers
) -> tuple[int, int]:
    """Read a code; return its symbol, or -1 if there is no such code, and the position after it."""
    word = first = index = np.int64(0)
    end = 8 * octets.size
    for length in range(1, lengths.size):
        if position >= end:
            return -1, position
        word = 2 * word + (octets[position >> 3] >> (7 - (position & 7)) & 1)
        position += 1
        if word - first < lengths[length]:
            return symbols[index + word - first], position
        index += lengths[length]
        first = 2 * (first + lengths[length])
    return -1, position


@compiled
def _read_bits(
    octets: Bytes,
    most: int,
    present: int,
    center: int,
    values: Numbers,
    extra_bits: Numbers,
    lengths: Numbers,
    symbols: Numbers,
    gap_lengths: Numbers,
    gap_symbols: Numbers,
    flat: Numbers,
) -> int:
    """Put `present` numbers in their places; return how many bytes that takes, or -1.

    Args:
        most: the gap after which no number follows, 0 where there are no gaps.
    """
    position = place = np.int64(0)
    for _ in range(present):
        gap = most
        while gap == most and most:
            gap, position = _get_symbol(octets, position, gap_lengths, gap_symbols)
            if gap < 0 or place + gap >= flat.size:
                return -1
            place += gap
        token, position = _get_symbol(octets, position, lengths, symbols)
        if token < 0:
            return -1
        extra = extra_bits[token]
        if position + extra > 8 * octets.size:
            return -1
        rest = np.int64(0)
        for _ in range(extra):
            rest = 2 * rest + (octets[position >> 3] >> (7 - (position & 7)) & 1)
            position += 1
        value = values[token]
        flat[place] = value + rest if value > center else value - rest
        place += 1
    while position & 7:
        if octets[position >> 3] >> (7 - (position & 7)) & 1:
            return -1
        position += 1
    return int(position >> 3)
