"""Pack integer codes of 1 to 8 bits into bytes, row by row, and back.

Code j of a row occupies bits j*bits … j*bits+bits-1 of the row's bit stream; the least significant
bit comes first and bit 0 of the stream is bit 0 of byte 0. A row starts on a byte; the bits after
its last code are zero.

The smallest whole group is 8/g codes in bits/g bytes, g = gcd(8, bits): one code for 8 bits, two
for 4, four codes in three bytes for 6, eight codes in `bits` bytes for odd widths.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import pad

BLOCK_CODES = 1 << 16
"""How many codes are packed or unpacked at once where those of a whole tensor would take many times
its packed size. Fewer take longer, since a step has its price however little it does; of more, the
C library maps memory anew every time, or keeps what is freed in holes between tensors."""


def packed_size(count: int, bits: int) -> int:
    """Return how many bytes a row of `count` codes of `bits` bits takes."""
    return (count * bits + 7) // 8


def pack_codes(codes: Tensor, bits: int) -> Tensor:
    """Pack each row (last dimension) of integer codes.

    Args:
        codes: [..., n], uint8, every value below 2**bits.
        bits: 1 to 8.

    Returns:
        [..., ceil(n * bits / 8)], uint8. At 8 bits this is `codes` itself, not a copy.

    Raises:
        ValueError: if `bits` or the dtype is wrong, or a code does not fit into `bits`.
    """
    _check(codes, bits)
    if bits == 8:
        return codes
    if codes.numel() and int(codes.max()) >> bits:
        raise ValueError(
            f"A code of {bits} bits must be below {1 << bits}, but the largest is "
            f"{int(codes.max())}; clamp the codes or pack them with more bits."
        )
    count = codes.shape[-1]
    group_codes, group_bytes = _group(bits)
    if count % group_codes:
        codes = pad(codes, (0, -count % group_codes))
    columns = _columns(codes, group_codes)
    packed: list[Tensor] = []
    for byte in range(group_bytes):
        first = byte * 8 // bits
        value = columns[first] >> (byte * 8 - first * bits)
        for j in range(first + 1, (byte * 8 + 7) // bits + 1):
            value |= columns[j] << (j * bits - byte * 8)  # uint8 drops what overflows
        packed.append(value)
    return torch.stack(packed, -1).flatten(-2)[..., : packed_size(count, bits)].contiguous()


def unpack_codes(packed: Tensor, bits: int, count: int) -> Tensor:
    """Unpack the first `count` codes of each row (last dimension); inverse of `pack_codes`.

    Args:
        packed: [..., ceil(count * bits / 8)], uint8.
        bits: 1 to 8.
        count: codes in each row.

    Returns:
        [..., count], uint8; may be a view, at 8 bits of `packed` itself.

    Raises:
        ValueError: if `bits`, the dtype or the size of the last dimension is wrong.
    """
    _check(packed, bits)
    size = packed_size(count, bits)
    if count < 0 or packed.shape[-1] != size:
        raise ValueError(
            f"{count} codes of {bits} bits take {size} bytes a row, but the rows have "
            f"{packed.shape[-1]}; give the `count` and `bits` that the rows were packed with."
        )
    if bits == 8:
        return packed
    group_codes, group_bytes = _group(bits)
    if size % group_bytes:
        packed = pad(packed, (0, -size % group_bytes))
    columns = _columns(packed, group_bytes)
    mask = (1 << bits) - 1
    codes: list[Tensor] = []
    for j in range(group_codes):
        byte, shift = divmod(j * bits, 8)
        value = columns[byte] >> shift if shift else columns[byte]
        if shift + bits > 8:
            value = value | (columns[byte + 1] << (8 - shift))
        codes.append(value if shift + bits == 8 else value & mask)
    unpacked = torch.stack(codes, -1).flatten(-2)
    return unpacked if unpacked.shape[-1] == count else unpacked[..., :count]


def unpack_range(packed: Tensor, bits: int, start: int, stop: int) -> Tensor:
    """Unpack the codes from `start` to before `stop` of one row [bytes], uint8; [stop - start]."""
    first = start // 8 * 8  # eight codes always end on a byte
    begin = first * bits // 8
    part = packed[begin : begin + packed_size(stop - first, bits)]
    return unpack_codes(part, bits, stop - first)[start - first :]


def _group(bits: int) -> tuple[int, int]:
    """Return the codes and the bytes of the smallest group that ends on a byte."""
    divisor = math.gcd(8, bits)
    return 8 // divisor, bits // divisor


def _columns(rows: Tensor, size: int) -> tuple[Tensor, ...]:
    """Split rows of groups of `size` into one tensor per place in the group."""
    return rows.reshape(*rows.shape[:-1], rows.shape[-1] // size, size).unbind(-1)


def _check(tensor: Tensor, bits: int) -> None:
    if not 1 <= bits <= 8:
        raise ValueError(f"Codes have 1 to 8 bits, not {bits}.")
    if tensor.dtype != torch.uint8 or tensor.dim() == 0:
        raise ValueError(
            f"Codes are uint8 with at least one dimension, not {tensor.dtype} with "
            f"{tensor.dim()}; convert with `.to(torch.uint8)`."
        )
