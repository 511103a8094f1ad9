"""Decode chunks in plain Python, as `docs/zpz.md` says it: to check the fast decoders, not for use.

Numbers are Python's own, streams are bytes; nothing is shared with the fast decoders but the
trellis' table, which the page prints too.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise

from zoopress.coding.trellis import NEXT, ODD


def decode_plane(
    stream: bytes, rows: int, columns: int, *, bits: int, signed: bool, trellis: bool = False
) -> list[int]:
    """Return the integers of a chunk, row by row.

    Args:
        bits: of an integer's type: 8, 16 or 32.
        signed: whether that type is signed.
        trellis: whether each row is a path of the trellis.

    Raises:
        ValueError: if the stream is none of such a plane.
    """
    low, high = (-(1 << (bits - 1)), 1 << (bits - 1)) if signed else (0, 1 << bits)
    plane = Plane(rows, columns, trellis)
    source = Bytes(stream)
    coder = source.byte()
    if coder == 0:
        plane.numbers = raw(source, rows * columns, bits // 8, signed)
    elif rows * columns == 0:
        raise ValueError("an empty plane is stored raw")
    elif coder == 1:
        plane.numbers = [source.signed_varint()] * (rows * columns)
        require(not trellis or plane.numbers[0] == 0, "a constant is no path of the trellis")
    elif coder == 2:
        static(source, plane)
    elif coder == 3:
        adaptive(source, plane)
    elif coder == 4:
        huffman(source, plane)
    else:
        raise ValueError(f"there is no coder {coder} in the format")
    require(source.at_end(), "bytes are left over")
    require(all(low <= n < high for n in plane.numbers), "an integer is beyond its type")
    return plane.numbers


def require(condition: bool, problem: str) -> None:
    """Refuse a stream.

    Raises:
        ValueError: with the problem, unless the condition holds.
    """
    if not condition:
        raise ValueError(problem)


@dataclass
class Bytes:
    """Bytes that are read from the first to the last."""

    data: bytes
    position: int = 0

    def take(self, size: int) -> bytes:
        require(self.position + size <= len(self.data), "the stream ends early")
        self.position += size
        return self.data[self.position - size : self.position]

    def byte(self) -> int:
        return self.take(1)[0]

    def number(self, size: int) -> int:
        return int.from_bytes(self.take(size), "little")

    def varint(self) -> int:
        value = shift = 0
        while True:
            byte = self.byte()
            require(shift <= 56 and (byte > 0 or shift == 0), "an integer is too long")
            value |= (byte & 127) << shift
            if byte < 128:
                return value
            shift += 7

    def signed_varint(self) -> int:
        number = self.varint()
        return number // 2 if number % 2 == 0 else -(number + 1) // 2

    def at_end(self) -> bool:
        return self.position == len(self.data)


@dataclass
class Plane:
    """Integers that become known; their neighbours and their places in the trellis."""

    rows: int
    columns: int
    trellis: bool
    center: int = 0
    numbers: list[int] = field(default_factory=list)
    states: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.numbers = [0] * (self.rows * self.columns)
        self.states = [0] * self.rows

    def odd(self, row: int) -> int:
        """Return 1 if the row's next number is of the odd multiples."""
        return ODD[self.states[row]] if self.trellis else 0

    def put(self, row: int, column: int, index: int) -> None:
        """Set a number: the center plus the index, in a trellis the multiple that it stands for."""
        number = self.center + index
        if self.trellis:
            number = 2 * index - self.odd(row) * sign(index)
            self.states[row] = NEXT[self.states[row]][index % 2]
        require(-(1 << 31) <= number < 1 << 31, "an integer is beyond 32 bits")
        self.numbers[row * self.columns + column] = number

    def get(self, row: int, column: int) -> int:
        """Return a number less the center, or 0 outside the plane."""
        if not (0 <= row < self.rows and 0 <= column < self.columns):
            return 0
        return self.numbers[row * self.columns + column] - self.center


def sign(n: int) -> int:
    """Return -1, 0 or 1."""
    return (n > 0) - (n < 0)


def raw(source: Bytes, count: int, itemsize: int, signed: bool) -> list[int]:
    """Read integers as they are."""
    width = source.byte()
    require(width in (1, 2, 4) and width <= itemsize, "raw integers have an impossible width")
    return [int.from_bytes(source.take(width), "little", signed=signed) for _ in range(count)]


# The alphabet -------------------------------------------------------------------------------------


@dataclass
class Token:
    """Which indices a token stands for: a sign, the smallest magnitude, bits beside the token."""

    sign: int
    magnitude: int
    extra: int


def alphabet(source: Bytes, plane: Plane) -> list[Token]:
    """Read an alphabet and the plane's center."""
    exact, below, size = source.byte(), source.byte(), source.byte() + 1
    plane.center = source.signed_varint()
    require(2 <= exact <= 8 and below < size, "the alphabet is impossible")
    require(-(1 << 31) <= plane.center < 1 << 31, "the center is beyond 32 bits")
    require(not plane.trellis or plane.center == 0, "a trellis has no center but 0")
    tokens = []
    for token in range(size):
        number = abs(token - below)
        if number < 1 << exact:
            magnitude, extra = number, 0
        else:
            group, leading = divmod(number - (1 << exact), 4)
            extra = group + exact - 2
            magnitude = (4 + leading) << extra
        tokens.append(Token(-1 if token < below else 1, magnitude, extra))
        value = plane.center + tokens[-1].sign * magnitude
        require(magnitude <= 1 << 32, "a token is beyond every integer")
        require(bool(extra) or -(1 << 31) <= value < 1 << 31, "a token is beyond 32 bits")
    return tokens


# Static -------------------------------------------------------------------------------------------


def static(source: Bytes, plane: Plane) -> None:
    """Fill a plane from asymmetric numeral systems with static tables."""
    lanes = source.byte()
    row_shift, column_shift, row_weight, column_weight, shift = source.take(5)
    require(1 <= lanes <= 16, "there must be 1 to 16 lanes")
    require(max(row_shift, column_shift) <= 15 and shift <= 40, "the shifts are impossible")
    tokens = alphabet(source, plane)
    classes = source.byte() + 1
    require(classes <= 16, "there are more than 16 classes")
    thresholds = [source.number(2) for _ in range(classes - 1)]
    require(all(a < b for a, b in pairwise([0, *thresholds, 2048])), "the thresholds do not rise")
    sets = 2 if plane.trellis else 1
    bits = LowBitsFirst(source)
    tables = [frequencies(bits, len(tokens)) for _ in range(classes * sets)]
    bits.align()
    slots = [[t for t, f in enumerate(table) for _ in range(f)] for table in tables]
    starts = [[sum(table[:t]) for t in range(len(table))] for table in tables]
    states = [source.number(8) for _ in range(lanes)]
    require(all(1 << 31 <= x < 1 << 63 for x in states), "a lane's first state is impossible")

    def refill(lane: int) -> None:
        if states[lane] < 1 << 31:
            states[lane] = states[lane] << 32 | source.number(4)

    def index(lane: int, table: int) -> tuple[int, Token]:
        slot = states[lane] % 4096
        token = slots[table][slot]
        states[lane] = tables[table][token] * (states[lane] >> 12) + slot - starts[table][token]
        refill(lane)
        rest = 0
        for low in range(0, tokens[token].extra, 16):
            size = min(16, tokens[token].extra - low)
            rest |= states[lane] % (1 << size) << low
            states[lane] >>= size
            refill(lane)
        return tokens[token].sign * (tokens[token].magnitude + rest), tokens[token]

    for base, width, lines in parts(plane, lanes):
        row_means, column_means = [0] * lanes, [0] * width
        for group, first in enumerate(range(0, lines, lanes)):
            active = min(lanes, lines - first)
            slowness = min(column_shift, max(group, 1).bit_length() - 1)
            for column in range(width):
                total, column_mean = 0, column_means[column]
                for lane in range(active):
                    level = min(row_means[lane] + column_mean >> shift, 2047)
                    number = sum(level >= threshold for threshold in thresholds)
                    place = base + (first + lane) * width + column
                    row = place // plane.columns
                    value, token = index(lane, number * sets + plane.odd(row))
                    plane.put(row, place % plane.columns, value)
                    magnitude = min(token.magnitude, 4095)
                    total += magnitude
                    row_means[lane] += magnitude * row_weight * 256 - row_means[lane] >> row_shift
                target = total * (256 // active) * column_weight
                column_means[column] += target - column_mean >> slowness
    require(all(x == 1 << 31 for x in states), "a lane's last state is wrong")


def parts(plane: Plane, lanes: int) -> list[tuple[int, int, int]]:
    """Return where each part starts, how wide its lines are and how many there are."""
    count = plane.rows * plane.columns
    if plane.trellis or plane.rows >= lanes:
        return [(0, plane.columns, plane.rows)]
    if count < lanes:
        return [(0, count, 1)]
    width = count // lanes
    left = count - width * lanes
    return [(0, width, lanes)] + ([(width * lanes, left, 1)] if left else [])


class LowBitsFirst:
    """Bits of a source, the lowest of each byte first."""

    def __init__(self, source: Bytes) -> None:
        self.source = source
        self.byte = self.left = 0

    def take(self, size: int) -> int:
        value = 0
        for place in range(size):
            if self.left == 0:
                self.byte, self.left = self.source.byte(), 8
            value |= (self.byte & 1) << place
            self.byte >>= 1
            self.left -= 1
        return value

    def gamma(self) -> int:
        size = 0
        while self.take(1) == 0:
            size += 1
            require(size <= 8, "a number of a table is too large")
        return (1 << size) + self.take(size)

    def align(self) -> None:
        require(self.byte == 0, "the bits that fill a byte are not zero")
        self.left = 0


def frequencies(bits: LowBitsFirst, size: int) -> list[int]:
    """Read the frequency of each token; they add up to 4096."""
    rest, mantissa = bits.take(8), bits.take(4)
    require(rest < size, "the rest is no token")
    table = [0] * size
    coded = [token for token in range(size) if token != rest]
    length = place = 0
    while place < len(coded):
        step = bits.gamma() - 1
        length += step // 2 if step % 2 == 0 else -(step + 1) // 2
        require(0 <= length <= 12, "a frequency has an impossible length")
        if length == 0:
            place += bits.gamma()
            require(place <= len(coded), "a run of zeros is too long")
            continue
        kept = min(length - 1, mantissa)
        table[coded[place]] = (1 << kept | bits.take(kept)) << (length - 1 - kept)
        place += 1
    table[rest] = 4096 - sum(table)
    require(table[rest] >= 1, "the frequencies add up to too much")
    return table


# Adaptive -----------------------------------------------------------------------------------------

KNOTS = (
    *(32768, 40793, 47911, 53581, 57724, 60565, 62428, 63615, 64357, 64816, 65097, 65269, 65374),
    *(65438, 65476, 65500, 65514, 65523, 65528, 65531, 65533, 65534, 65535, 65535, 65535),
)


def probability(logit: int) -> int:
    """Return the probability, in 65536ths, of a logit in 256ths."""
    knot, part = divmod(abs(logit), 128)
    above = (KNOTS[knot] * (128 - part) + KNOTS[knot + 1] * part + 64) >> 7
    return above if logit >= 0 else 65536 - above


def logits() -> list[int]:
    """Return the logit of each probability in 4096ths."""
    table, logit = [], -3071
    for p in range(4096):
        while logit < 3071 and probability(logit) < 16 * p + 8:
            logit += 1
        table.append(logit)
    return table


LOGITS = logits()


def level(mean: int) -> int:
    """Return which of 24 levels a mean is on."""
    mean = min(mean, 4095)
    if mean < 2:
        return 0
    length = mean.bit_length()
    return min(23, 2 * length - 3 + (mean >> (length - 2) & 1))


def magnitude_class(n: int) -> int:
    """Return which of 8 classes the magnitude of n is in."""
    return sum(abs(n) > limit for limit in (0, 1, 2, 4, 8, 16, 40))


@dataclass
class Prediction:
    """How probable a yes is, in 2**-22, and how many decisions it has seen."""

    p: int = 1 << 21
    count: int = 0


class Decisions:
    """The decisions that an arithmetic coder wrote, with what they have taught so far."""

    def __init__(self, source: Bytes) -> None:
        self.source = source
        self.range = (1 << 32) - 1
        self.beyond = 0
        self.code = 0
        for _ in range(4):
            self.code = self.code << 8 | self.next_byte()
        self.predictions: dict[tuple[int, int, int, int], Prediction] = {}
        self.weights: dict[tuple[int, int], list[int]] = {}

    def next_byte(self) -> int:
        if self.source.at_end():
            self.beyond += 1
            return 0
        return self.source.byte()

    def decide(self, node: int, odd: int, contexts: list[int]) -> bool:
        seen = [
            self.predictions.setdefault((place, context, odd, node), Prediction())
            for place, context in enumerate(contexts)
        ]
        weights = self.weights.setdefault((odd, node), [22938] * 6)
        inputs = [LOGITS[s.p >> 10] * (64 * s.count // (s.count + 4)) >> 6 for s in seen]
        mixed = sum(w * x for w, x in zip(weights, inputs, strict=True)) >> 16
        p = probability(min(max(mixed, -3071), 3071))

        split = (self.range >> 16) * p
        yes = self.code < split
        if yes:
            self.range = split
        else:
            self.code -= split
            self.range -= split
        while self.range < 1 << 24:
            self.range <<= 8
            self.code = self.code << 8 | self.next_byte()

        error = (65536 if yes else 0) - p
        for place, x in enumerate(inputs):
            weights[place] += x * error + 32768 >> 16
        for s in seen:
            target = (1 << 22) - 1 if yes else 0
            s.p += (target - s.p) * (131072 // (2 * s.count + 3)) >> 16
            s.count = min(s.count + 1, 255)
        return yes


def adaptive(source: Bytes, plane: Plane) -> None:
    """Fill a plane from decisions."""
    plane.center = source.signed_varint()
    require(-(1 << 31) <= plane.center < 1 << 31, "the center is beyond 32 bits")
    require(not plane.trellis or plane.center == 0, "a trellis has no center but 0")
    require(source.at_end() or source.data[-1] != 0, "the last byte is zero")
    decisions = Decisions(source)
    row_mean, column_means = 0, [0] * plane.columns
    for row in range(plane.rows):
        for column in range(plane.columns):
            left, further = plane.get(row, column - 1), plane.get(row, column - 2)
            above, beyond = plane.get(row - 1, column), plane.get(row - 2, column)
            near = abs(left) + abs(above) + abs(plane.get(row - 1, column + 1))
            column_mean = column_means[column]
            contexts = [
                plane.states[row],
                level(row_mean >> 4) * 24 + level(column_mean >> 4),
                magnitude_class(left) * 64 + magnitude_class(above) * 8 + magnitude_class(further),
                level((2 * (row_mean + column_mean) + 1024 * near) >> 6) * 8
                + max(magnitude_class(above), magnitude_class(beyond)),
                column % 1024,
                row % 1024,
            ]
            odd = plane.odd(row)

            def yes(node: int, odd: int = odd, contexts: list[int] = contexts) -> bool:
                return decisions.decide(node, odd, contexts)

            plane.put(row, column, integer(yes, 53 + 3 * sign(left) + sign(above)))
            magnitude = min(abs(plane.get(row, column)), 255) * 1024
            row_mean += magnitude - row_mean >> 6
            column_means[column] += magnitude - column_mean >> min(5, 1 + row // 2)
    require(decisions.beyond >= 3 and decisions.code < 1 << 24, "the stream ends late")


def integer(yes: Callable[[int], bool], sign_node: int) -> int:
    """Decode an index: the length of its magnitude in bits, the bits, the sign."""
    length = 0
    while length < 32 and yes(min(length, 19)):
        length += 1
    if length == 0:
        return 0
    magnitude = 1
    for _ in range(length - 1):
        node = 20 + 7 * (min(length, 5) - 2) + magnitude - 1 if magnitude < 8 else 48
        magnitude = 2 * magnitude + yes(node)
    return -magnitude if yes(sign_node) else magnitude


# Huffman ------------------------------------------------------------------------------------------


class HighBitsFirst:
    """Bits of a source, the highest of each byte first."""

    def __init__(self, source: Bytes) -> None:
        self.source = source
        self.byte = self.left = 0

    def bit(self) -> int:
        if self.left == 0:
            self.byte, self.left = self.source.byte(), 8
        self.left -= 1
        return self.byte >> self.left & 1

    def align(self) -> None:
        while self.left:
            require(self.bit() == 0, "the bits that fill a byte are not zero")

    def symbol(self, code: dict[str, int]) -> int:
        word = ""
        while word not in code:
            require(len(word) < 15, "there is no such code")
            word += str(self.bit())
        return code[word]


def canonical_code(source: Bytes, symbols: int) -> dict[str, int]:
    """Read the lengths of a code's words; return the symbol of each word."""
    halves = [half for byte in source.take((symbols + 1) // 2) for half in (byte & 15, byte >> 4)]
    require(not any(halves[symbols:]), "the last half byte is not zero")
    words, word = {}, 0
    for length in range(1, 16):
        for symbol in range(symbols):
            if halves[symbol] == length:
                require(word < 1 << length, "the lengths of the codes contradict each other")
                words[f"{word:0{length}b}"] = symbol
                word += 1
        word *= 2
    return words


def huffman(source: Bytes, plane: Plane) -> None:
    """Fill a plane from Huffman codes."""
    tokens = alphabet(source, plane)
    gap_bits = source.byte()
    require(gap_bits <= 8, "gaps are counted in at most 8 bits")
    code = canonical_code(source, len(tokens))
    gap_code, present = {}, plane.rows * plane.columns
    if gap_bits:
        gap_code = canonical_code(source, 1 << gap_bits)
        present = source.varint()
    bits = HighBitsFirst(source)
    indices = [0] * (plane.rows * plane.columns)
    place = 0
    for _ in range(present):
        most = gap = (1 << gap_bits) - 1
        while gap_bits and gap == most:
            gap = bits.symbol(gap_code)
            place += gap
        require(place < len(indices), "a number lies outside the plane")
        token = tokens[bits.symbol(code)]
        rest = 0
        for _ in range(token.extra):
            rest = 2 * rest + bits.bit()
        indices[place] = token.sign * (token.magnitude + rest)
        place += 1
    bits.align()
    for place, index in enumerate(indices):
        plane.put(place // plane.columns, place % plane.columns, index)
