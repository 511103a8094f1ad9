"""Masks of one bit a weight, applied block by block.

Unpacked, a mask takes a byte a weight: twice what the codes of a weight in 4 bits do, which it
belongs to. So what a mask keeps is put in its places without unpacking more than a block of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from zoopress.coding.bits import BLOCK_CODES, pack_codes, packed_size, unpack_range


class PackedMask:
    """A mask as it is stored: bit i of the stream tells whether weight i, row-major, is kept.

    Args:
        packed: [ceil(n / 8)], uint8, least significant bit first.
        shape: of the mask, n elements.
    """

    def __init__(self, packed: Tensor, shape: torch.Size) -> None:
        self._packed, self._shape = packed, shape

    def count(self) -> int:
        """Return how many weights are kept."""
        return sum(int(block.sum()) for _, block in self._blocks())

    def unpack(self) -> Tensor:
        """Return the mask, bool, a byte a weight."""
        mask = torch.empty(self._shape.numel(), dtype=torch.bool)
        for start, block in self._blocks():
            mask[start : start + len(block)] = block
        return mask.view(self._shape)

    def scatter(self, kept: Tensor) -> Tensor:
        """Return a tensor of the mask's shape with `kept` [count] in its places, 0 elsewhere."""
        tensor = torch.zeros(self._shape.numel(), dtype=kept.dtype)
        taken = 0
        for start, block in self._blocks():
            count = int(block.sum())
            place = tensor[start : start + len(block)]
            place.masked_scatter_(block, kept[taken : taken + count])
            taken += count
        return tensor.view(self._shape)

    def scatter_codes(self, kept: Tensor, bits: int, fill: Callable[[slice], Tensor]) -> Tensor:
        """Return packed rows of codes, those in `kept` in their places.

        Args:
            kept: [ceil(count * bits / 8)], uint8, the kept codes packed as one row.
            bits: of a code.
            fill: returns the codes [rows, columns], uint8, that stand elsewhere in some rows.

        Returns:
            [rows, ceil(columns * bits / 8)], uint8; the mask's shape is [rows, columns].

        Raises:
            ValueError: if a code of `fill` has more bits.
        """
        rows, columns = self._shape
        packed = torch.empty(rows, packed_size(columns, bits), dtype=torch.uint8)
        step = max(1, BLOCK_CODES // max(1, columns))
        taken = 0
        for first in range(0, rows, step):
            some = slice(first, min(first + step, rows))
            block = unpack_range(self._packed, 1, first * columns, some.stop * columns).bool()
            count = int(block.sum())
            values = unpack_range(kept, bits, taken, taken + count)
            codes = fill(some).masked_scatter(block.view(-1, columns), values)
            packed[some] = pack_codes(codes, bits)
            taken += count
        return packed

    def _blocks(self) -> Iterator[tuple[int, Tensor]]:
        """Yield where each block starts, and the block: [m], bool."""
        total = self._shape.numel()
        for start in range(0, total, BLOCK_CODES):
            stop = min(start + BLOCK_CODES, total)
            yield start, unpack_range(self._packed, 1, start, stop).bool()
