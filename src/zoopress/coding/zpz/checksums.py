"""The CRC-32 of bytes whose parts were read by different threads."""

from __future__ import annotations

from functools import lru_cache

_POLYNOMIAL = 0xEDB88320
_ONE = 1 << 31  # reflected: the top bit is the coefficient of x**0


def combine_crc32(first: int, second: int, second_bytes: int) -> int:
    """Return the CRC-32 of two strings put together, from theirs and the second's length.

    What follows multiplies a checksum, a polynomial over GF(2), by x to the number of its bits.
    """
    return _multiply(first, _shift(second_bytes)) ^ second


@lru_cache(maxsize=64)  # but for the last of a tensor, parts are of one length
def _shift(size: int) -> int:
    """Return x ** (8 * size) modulo the polynomial."""
    power, result = _ONE >> 8, _ONE
    while size:
        if size & 1:
            result = _multiply(result, power)
        power = _multiply(power, power)
        size >>= 1
    return result


def _multiply(a: int, b: int) -> int:
    product = 0
    while a:
        if a & _ONE:
            product ^= b
        a = a << 1 & 0xFFFFFFFF
        b = b >> 1 ^ (_POLYNOMIAL if b & 1 else 0)
    return product
