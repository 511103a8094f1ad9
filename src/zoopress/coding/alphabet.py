"""Tokens: integers of any size as at most 256 symbols, the large ones with bits beside them.

With s = value - center and m = |s|: a magnitude below 2**exact is a token of its own. A larger one
with leading bit e shares a token with all that have the same two bits after the leading one; the
e - 2 bits below are kept beside the token. A token's number is its magnitude's, counted from the
most negative that occurs.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from zoopress.coding.compiled import compiled
from zoopress.coding.varint import Buffer, read_varint, unzigzag, varint, zigzag

MAX_TOKENS = 256
MAX_CONTEXT = 4095
_EXACT_CHOICES = (
    8,
    7,
    6,
    5,
    4,
)  # 4 makes 2 · (16 + 4 · 29) tokens at most, 3 fewer where they occur
_MAX_MAGNITUDE = 1 << 32  # of an int32 less another


@dataclass(frozen=True)
class Alphabet:
    """Which tokens occur.

    Attributes:
        center: the value whose token lies in the middle.
        exact: magnitudes below 2**exact have tokens of their own; 2 to 8.
        below: how many tokens lie below the center's.
        size: how many tokens there are, 1 to 256.
    """

    center: int
    exact: int
    below: int
    size: int

    @cached_property
    def tables(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The value of each token, its bits beside it taken as zeros, and how many those are."""
        values, extra = np.zeros(MAX_TOKENS, np.int64), np.zeros(MAX_TOKENS, np.int64)
        for token in range(self.size):
            number = token - self.below
            magnitude, extra[token] = _smallest(abs(number), self.exact)
            values[token] = self.center + (magnitude if number >= 0 else -magnitude)
        return values, extra

    @cached_property
    def magnitudes(self) -> NDArray[np.int64]:
        """How far the values of each token are from the center at least, or 4095; [256]."""
        return np.minimum(abs(self.tables[0] - self.center), MAX_CONTEXT)

    def check(self, trellis: bool) -> None:
        """Refuse tokens whose values no plane holds.

        Raises:
            ValueError: if there are such, or if codes of a trellis are counted from other than 0.
        """
        values, extra = (table[: self.size] for table in self.tables)
        direct = values[extra == 0]
        if direct.min() < -(1 << 31) or direct.max() >= 1 << 31 or (trellis and self.center):
            raise ValueError("The stream's alphabet is impossible.")

    def to_bytes(self) -> bytes:
        """Spell the alphabet; `read_alphabet` reads it."""
        return bytes((self.exact, self.below, self.size - 1)) + varint(zigzag(self.center))


def choose_alphabet(center: int, low: int, high: int) -> Alphabet:
    """Return the alphabet of values low … high with as few bits beside its tokens as can be."""
    for exact in _EXACT_CHOICES:
        first = _signed_number(low - center, exact)
        last = _signed_number(high - center, exact)
        first, last = min(first, 0), max(last, 0)
        if last - first < MAX_TOKENS:
            return Alphabet(center, exact, -first, last - first + 1)
    raise AssertionError("exact = 4 serves every range of int32 around 0")


def read_alphabet(stream: Buffer, position: int) -> tuple[Alphabet, int]:
    """Read what `Alphabet.to_bytes` wrote; return it and the position after it.

    Raises:
        ValueError: if it is truncated or impossible.
    """
    if len(stream) < position + 4:
        raise ValueError("The stream ends within its alphabet.")
    exact, below, size = stream[position], stream[position + 1], stream[position + 2] + 1
    number, position = read_varint(stream, position + 3)
    center = unzigzag(number)
    if not 2 <= exact <= 8 or below >= size or not -(1 << 31) <= center < 1 << 31:
        raise ValueError("The stream's alphabet is impossible.")
    alphabet = Alphabet(center, exact, below, size)
    if max(_smallest(below, exact)[0], _smallest(size - 1 - below, exact)[0]) > _MAX_MAGNITUDE:
        raise ValueError("The stream's alphabet has tokens beyond every integer.")
    return alphabet, position


def _signed_number(s: int, exact: int) -> int:
    m = abs(s)
    if m >= 1 << exact:
        e = m.bit_length() - 1
        m = (1 << exact) + 4 * (e - exact) + (m >> (e - 2) & 3)
    return m if s >= 0 else -m


def _smallest(number: int, exact: int) -> tuple[int, int]:
    """Return the smallest magnitude of a token and how many bits are kept beside it."""
    if number < 1 << exact:
        return number, 0
    group, leading = divmod(number - (1 << exact), 4)
    extra = group + exact - 2
    return (4 + leading) << extra, extra


@compiled
def bits_beside(s: int, exact: int) -> int:
    """Return how many bits are kept beside the token of s."""
    m = abs(s) >> exact
    if m == 0:
        return 0
    extra = exact - 2
    while m > 1:
        m >>= 1
        extra += 1
    return extra


@compiled
def token_of(s: int, exact: int) -> int:
    """Return the number of the token of s; 0 for s = 0, negative for negative s."""
    extra = bits_beside(s, exact)
    m = abs(s)
    if m >> exact:
        m = (1 << exact) + 4 * (extra + 2 - exact) + ((m >> extra) & 3)
    return m if s >= 0 else -m
