"""Digits of base 3 in bytes: five in each, 1.6 bits a digit where log₂ 3 is 1.585.

Digit j of a row is worth 3^(j mod 5) in byte ⌊j / 5⌋; what fills up the last byte is 0.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

DIGITS = 5
"""In a byte: 3⁵ = 243."""
_WORTHS = tuple(3**place for place in range(DIGITS))


def digit_bytes(count: int) -> int:
    """Return how many bytes a row of `count` digits takes."""
    return -(-count // DIGITS)


def pack_digits(digits: Tensor) -> Tensor:
    """Pack each row of digits.

    Args:
        digits: [rows, n], uint8, 0 to 2.

    Returns:
        [rows, ⌈n / 5⌉], uint8.
    """
    groups = pad(digits, (0, -digits.shape[1] % DIGITS)).view(len(digits), -1, DIGITS)
    packed = torch.zeros_like(groups[..., 0])
    for place, worth in enumerate(_WORTHS):
        packed += groups[..., place] * worth
    return packed


def unpack_digits(packed: Tensor, count: int) -> Tensor:
    """Return the first `count` digits of each row; inverse of `pack_digits`.

    The last digit of a byte above 242 is 3, which is none.

    Args:
        packed: [rows, ⌈count / 5⌉], uint8.
        count: of digits in a row.

    Returns:
        [rows, count], uint8.
    """
    byte = torch.arange(256, device=packed.device)
    worths = torch.tensor(_WORTHS, device=packed.device)
    table = byte[:, None] // worths
    table[:, :-1] %= 3
    found = table.to(torch.uint8).index_select(0, packed.reshape(-1).int())
    return found.view(len(packed), DIGITS * packed.shape[1])[:, :count]
