"""Code bytes near their entropy: interleaved rANS with a static table, vectorised over lanes.

    stream = table, lane count (varint), lane states (uint32 each), words (uint16 each)

Symbol i belongs to lane i % lanes. Each lane is an independent 32-bit range asymmetric numeral
system that shares the stream of 16-bit words, so that one step over all lanes is a handful of
numpy calls. `docs/zpz.md` specifies every bit.

Source: Duda 2013, arXiv:1311.2540 (asymmetric numeral systems); Giesen 2014, arXiv:1402.3392
(interleaved coders).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Bytes: TypeAlias = NDArray[np.uint8]
Integers: TypeAlias = NDArray[np.int64]
Floats: TypeAlias = NDArray[np.float64]
Buffer: TypeAlias = bytes | memoryview

MAX_PRECISION = 14
STATE_LOW = 1 << 16  # every state lies in [STATE_LOW, 2**32); coding starts and ends at STATE_LOW
SYMBOLS_PER_LANE = 2048  # a lane costs 16 to 32 bits: about 0.012 bits a symbol
MAX_LANES = 4096
_MANTISSA_CHOICES = (1, 3, 5, 13)
_BLOCK_SYMBOLS = 1 << 16  # table look-ups are made for this many symbols at once


@dataclass(frozen=True)
class FrequencyTable:
    """Integer frequencies [256] that sum to 2**precision; precision 0 means a single symbol."""

    precision: int
    frequencies: Integers
    serialised: bytes

    def payload_bits(self, histogram: Integers) -> int:
        """Return the bits that symbols with this `histogram` [256] take, rounded up."""
        present = histogram > 0
        spent = (self.precision << 16) - _log2_fixed()[self.frequencies[present]]
        return (int(histogram[present] @ spent) >> 16) + 1


def encode(symbols: Bytes, histogram: Integers | None = None) -> bytes:
    """Code one or more symbols into a stream that `decode` turns back.

    Args:
        symbols: [n], uint8.
        histogram: [256], how often each symbol occurs, where that is known already.

    Raises:
        ValueError: if there are no symbols.
    """
    if symbols.size == 0:
        raise ValueError("There are no symbols to code; store an empty stream as no stream.")
    if histogram is None:
        histogram = byte_histogram(symbols)
    table = build_table(histogram)
    if table.precision == 0:
        return table.serialised
    lanes = _lanes(symbols.size)
    states, words = _encode_lanes(symbols, table, lanes)
    return b"".join((table.serialised, varint(lanes), states.tobytes(), words.tobytes()))


def decode(stream: Buffer, count: int) -> Bytes:
    """Decode exactly `count` symbols from a stream that holds nothing else.

    Allocates in proportion to `count` and to the stream, whatever the stream says.

    Returns:
        [count], uint8.

    Raises:
        ValueError: if the stream is truncated, has bytes left over or contradicts itself.
    """
    return np.concatenate(list(decode_blocks(stream, count)))


def decode_blocks(stream: Buffer, count: int) -> Iterator[Bytes]:
    """Decode exactly `count` symbols, about 65,536 at a time.

    Yields:
        [n], uint8. Whether the stream is sound is known only at its end.

    Raises:
        ValueError: as `decode`.
    """
    if count < 1:
        raise ValueError(f"A stream holds at least one symbol, not {count}.")
    table, position = parse_table(stream)
    if table.precision == 0:
        if position != len(stream):
            raise ValueError(f"{len(stream) - position} bytes follow a single-symbol stream.")
        symbol = int(table.frequencies.argmax())
        for start in range(0, count, _BLOCK_SYMBOLS):
            yield np.full(min(_BLOCK_SYMBOLS, count - start), symbol, np.uint8)
        return
    lanes, position = read_varint(stream, position)
    if not 1 <= lanes <= min(count, MAX_LANES):
        raise ValueError(f"The stream has {lanes} lanes for {count} symbols.")
    words_at = position + 4 * lanes
    if words_at > len(stream) or (len(stream) - words_at) % 2:
        raise ValueError(f"The stream of {len(stream)} bytes ends within a lane state or a word.")
    states = np.frombuffer(stream, "<u4", lanes, position).astype(np.int64)
    words = np.frombuffer(stream, "<u2", offset=words_at)
    yield from _decode_lanes(states, words, table, count)


def byte_histogram(symbols: Bytes) -> Integers:
    """Count each byte value; [256]."""
    counts = np.zeros(256, np.int64)
    for start in range(0, symbols.size, 1 << 18):  # bincount widens its input to 8 bytes a symbol
        counts += np.bincount(symbols[start : start + (1 << 18)], minlength=256)
    return counts


def estimate_size(histogram: Integers) -> int:
    """Return the bytes that `encode` takes for symbols with this `histogram`, to within a few."""
    table = build_table(histogram)
    if table.precision == 0:
        return len(table.serialised)
    lanes = _lanes(int(histogram.sum()))
    # A lane's last state holds 0 to 16 bits of payload more than its first, 8 on average.
    return (
        len(table.serialised)
        + len(varint(lanes))
        + 3 * lanes
        + (table.payload_bits(histogram) + 7) // 8
    )


def build_table(histogram: Integers) -> FrequencyTable:
    """Choose the table with the smallest sum of its own size and the payload's.

    Args:
        histogram: [256], how often each symbol occurs; at least one does.
    """
    return _build_table(histogram.astype(np.int64, copy=False).tobytes())


@lru_cache(maxsize=64)  # the size is estimated first, and the same symbols are coded later
def _build_table(counts: bytes) -> FrequencyTable:
    histogram = np.frombuffer(counts, np.int64)
    if np.count_nonzero(histogram) == 1:
        symbol = int(histogram.argmax())
        single = np.zeros(256, np.int64)
        single[symbol] = 1
        return FrequencyTable(0, single, bytes((0, symbol)))
    count = int(histogram.sum())
    precision = 10 if count < 1 << 10 else 12 if count < 1 << 14 else MAX_PRECISION
    targets = _targets(histogram, precision)
    best: FrequencyTable | None = None
    best_bits = 0
    for mantissa in _MANTISSA_CHOICES:
        frequencies = _round_frequencies(targets, precision, mantissa)
        if frequencies is None:
            continue
        serialised = _serialise(frequencies, targets[-1][1], precision, mantissa)
        table = FrequencyTable(precision, frequencies, serialised)
        bits = 8 * len(serialised) + table.payload_bits(histogram)
        if best is None or bits < best_bits:
            best, best_bits = table, bits
        elif count < 1 << 14:
            break  # finer mantissas seldom help again, and many small tensors add up
    assert best is not None  # exact mantissas always fit: the targets sum to 2**precision
    return best


def parse_table(stream: Buffer) -> tuple[FrequencyTable, int]:
    """Read the table at the start of a stream; return it and where it ends.

    Raises:
        ValueError: if the table is truncated or its frequencies do not sum to 2**precision.
    """
    if len(stream) < 2:
        raise ValueError("The stream ends within its frequency table.")
    precision, mantissa = stream[0] & 15, stream[0] >> 4
    frequencies = np.zeros(256, np.int64)
    if stream[0] == 0:
        frequencies[stream[1]] = 1
        return FrequencyTable(0, frequencies, bytes(stream[:2])), 2
    if not 1 <= precision <= MAX_PRECISION or len(stream) < 3 or stream[2] > stream[1]:
        raise ValueError("The frequency table's header is impossible.")
    last, rest = stream[1], stream[2]
    bits = _BitReader(stream, 3)
    coded = [symbol for symbol in range(last + 1) if symbol != rest]
    index = length = 0
    while index < len(coded):
        step = bits.gamma() - 1
        length += -((step + 1) >> 1) if step & 1 else step >> 1
        if not 0 <= length <= precision:
            raise ValueError(f"A frequency has {length} bits; the table allows {precision}.")
        if length == 0:
            index += bits.gamma()
            continue
        kept = min(length - 1, mantissa)
        frequencies[coded[index]] = ((1 << kept) | bits.take(kept)) << (length - 1 - kept)
        index += 1
    frequencies[rest] = (1 << precision) - int(frequencies.sum())
    if index > len(coded) or frequencies[rest] < 1:
        raise ValueError("The frequency table does not add up.")
    end = bits.end()
    return FrequencyTable(precision, frequencies, bytes(stream[:end])), end


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


def _lanes(count: int) -> int:
    return max(1, min(MAX_LANES, count // SYMBOLS_PER_LANE))


def _encode_lanes(
    symbols: Bytes, table: FrequencyTable, lanes: int
) -> tuple[NDArray[np.uint32], NDArray[np.uint16]]:
    """Return the lanes' last states and the words in the order in which the decoder reads them.

    States are held as float64, exact below 2**53: numpy divides floats with vector instructions
    and integers without. (x + 0.5) / f lies at least 0.5 / f from every integer, far more than
    the rounding error of multiplying by 1 / f, so its floor is x // f.
    """
    precision = table.precision
    frequencies = table.frequencies.astype(np.float64)
    inverse = 1.0 / np.maximum(frequencies, 1.0)
    limit = frequencies * float(1 << (32 - precision))
    complement = float(1 << precision) - frequencies
    start = (table.frequencies.cumsum() - table.frequencies).astype(np.float64)

    states: Floats = np.full(lanes, float(STATE_LOW))
    quotient_buffer: Floats = np.empty(lanes)
    full_buffer = np.empty(lanes, np.bool_)
    words: list[NDArray[np.uint16]] = []
    steps = -(-symbols.size // lanes)
    block_steps = max(1, _BLOCK_SYMBOLS // lanes)
    for block in reversed(range(0, steps, block_steps)):
        first = block * lanes
        part = symbols[first : first + block_steps * lanes].astype(np.intp)
        inverses, limits = inverse[part], limit[part]
        complements, starts = complement[part], start[part]
        for a in reversed(range(0, part.size, lanes)):
            b = min(a + lanes, part.size)
            x = states[: b - a]
            quotient, full = quotient_buffer[: b - a], full_buffer[: b - a]
            np.greater_equal(x, limits[a:b], out=full)
            who = full.nonzero()[0]
            if who.size:
                spilled = x[who].astype(np.uint32)
                words.append(spilled.astype(np.uint16))
                x[who] = spilled >> 16
            np.add(x, 0.5, out=quotient)
            quotient *= inverses[a:b]
            np.floor(quotient, out=quotient)
            quotient *= complements[a:b]
            x += quotient
            x += starts[a:b]
    words.reverse()
    joined = np.concatenate(words) if words else np.empty(0, np.uint16)
    return states.astype("<u4"), joined.astype("<u2", copy=False)


def _decode_lanes(
    states: Integers, words: NDArray[np.uint16], table: FrequencyTable, count: int
) -> Iterator[Bytes]:
    if int(states.min()) < STATE_LOW:
        raise ValueError("A lane starts from an impossible state.")
    precision, lanes = table.precision, states.size
    frequencies = table.frequencies
    symbol_of = np.repeat(np.arange(256, dtype=np.uint8), frequencies)
    frequency_of = frequencies[symbol_of]
    start = frequencies.cumsum() - frequencies
    offset_of = np.arange(1 << precision) - start[symbol_of]

    slot_mask = (1 << precision) - 1
    block_size = max(1, _BLOCK_SYMBOLS // lanes) * lanes
    slots = np.empty(min(block_size, -(-count // lanes) * lanes), np.intp)
    factor_buffer, offset_buffer = np.empty(lanes, np.int64), np.empty(lanes, np.int64)
    low_buffer = np.empty(lanes, np.bool_)
    position = 0
    for block in range(0, count, block_size):
        filled = min(block_size, count - block)
        for a in range(0, filled, lanes):
            b = min(a + lanes, filled)
            x, slot = states[: b - a], slots[a:b]
            factor, offset, low = (
                factor_buffer[: b - a],
                offset_buffer[: b - a],
                low_buffer[: b - a],
            )
            np.bitwise_and(x, slot_mask, out=slot)
            frequency_of.take(slot, out=factor, mode="clip")
            offset_of.take(slot, out=offset, mode="clip")
            np.right_shift(x, precision, out=x)
            np.multiply(x, factor, out=x)
            np.add(x, offset, out=x)
            np.less(x, STATE_LOW, out=low)
            who = low.nonzero()[0]
            if who.size:
                end = position + who.size
                if end > words.size:
                    raise ValueError(f"The stream ends before its {count} symbols.")
                x[who] = x[who] << 16 | words[position:end]
                position = end
        yield symbol_of.take(slots[:filled], mode="clip")
    if position != words.size:
        raise ValueError(f"{words.size - position} words follow the last symbol.")
    if np.any(states != STATE_LOW):
        raise ValueError("The lanes do not end where they must; the stream is damaged.")


def _targets(histogram: Integers, precision: int) -> list[tuple[float, int]]:
    """Share out 2**precision in proportion, at least 1 for each symbol that occurs.

    Returns:
        (frequency, symbol), the smallest first.
    """
    present = np.flatnonzero(histogram)
    counts = histogram[present].astype(np.float64)
    total = float(1 << precision)
    rare = np.zeros(present.size, np.bool_)
    while True:
        scaled = counts * ((total - np.count_nonzero(rare)) / counts[~rare].sum())
        more = ~rare & (scaled < 1.0)
        if not more.any():
            break
        rare |= more
    shares = np.where(rare, 1.0, scaled)
    return sorted(zip(shares.tolist(), present.tolist(), strict=True))


def _round_frequencies(
    targets: list[tuple[float, int]], precision: int, mantissa: int
) -> Integers | None:
    """Round to `mantissa` bits after the leading one; the most frequent symbol takes the rest.

    A rounding error is passed on to the next larger symbol, where it weighs less.
    """
    frequencies = np.zeros(256, np.int64)
    error = 0.0
    left = 1 << precision
    for target, symbol in targets[:-1]:
        value = max(1, round(target + error))
        dropped = max(0, value.bit_length() - 1 - mantissa)
        value = (value + (1 << dropped >> 1)) >> dropped << dropped
        error += target - value
        left -= value
        frequencies[symbol] = value
    if left < 1:
        return None
    frequencies[targets[-1][1]] = left
    return frequencies


def _serialise(frequencies: Integers, rest: int, precision: int, mantissa: int) -> bytes:
    last = int(np.flatnonzero(frequencies)[-1])
    values = frequencies[: last + 1].tolist()
    del values[rest]
    bits = _BitWriter()
    length = index = 0
    while index < len(values):
        value = values[index]
        step = value.bit_length() - length
        length += step
        bits.gamma(1 + (2 * step if step >= 0 else -2 * step - 1))
        if value == 0:
            run = 1
            while index + run < len(values) and values[index + run] == 0:
                run += 1
            bits.gamma(run)
            index += run
            continue
        kept = min(length - 1, mantissa)
        bits.put((value >> (length - 1 - kept)) & ((1 << kept) - 1), kept)
        index += 1
    return bytes((precision | mantissa << 4, last, rest)) + bits.to_bytes()


class _BitWriter:
    """Bits, least significant first."""

    def __init__(self) -> None:
        self.value = 0
        self.size = 0

    def put(self, value: int, size: int) -> None:
        self.value |= value << self.size
        self.size += size

    def gamma(self, value: int) -> None:
        """Write value ≥ 1: as many zeros as bits follow its leading one, a one, those bits."""
        size = value.bit_length() - 1
        self.put(1 << size, size + 1)
        self.put(value & ((1 << size) - 1), size)

    def to_bytes(self) -> bytes:
        return self.value.to_bytes((self.size + 7) // 8, "little")


class _BitReader:
    """Reads what `_BitWriter` wrote; raises ValueError at the end of the data."""

    def __init__(self, stream: Buffer, start: int) -> None:
        # The longest table: 256 symbols of at most 9 + 17 + 13 bits.
        self.data = bytes(stream[start : start + 1280])
        self.value = int.from_bytes(self.data, "little")
        self.start = start
        self.position = 0

    def take(self, size: int) -> int:
        value = (self.value >> self.position) & ((1 << size) - 1)
        self.position += size
        if self.position > 8 * len(self.data):
            raise ValueError("The stream ends within its frequency table.")
        return value

    def gamma(self) -> int:
        for size in range(9):
            if self.take(1):
                return 1 << size | self.take(size)
        raise ValueError("The frequency table holds an impossible number.")

    def end(self) -> int:
        if self.position % 8 and self.take(8 - self.position % 8):
            raise ValueError("The frequency table is not padded with zeros.")
        return self.start + self.position // 8


@lru_cache(maxsize=1)
def _log2_fixed() -> Integers:
    """Return log2 of 1 … 2**14 in units of 2**-16.

    Whole numbers, so that every machine chooses the same table and writes the same bytes.
    """
    logs = [0] + [round(math.log2(f) * 65536) for f in range(1, (1 << MAX_PRECISION) + 1)]
    return np.array(logs, np.int64)
