"""Integers by LZMA, which finds what repeats; of Python's own library.

stream = bytes of an integer (1, 2 or 4), raw LZMA2 of the integers' bytes, all lowest first
"""

from __future__ import annotations

import lzma
from typing import Any

import numpy as np

from zoopress.coding.entropy_coder import EntropyCoder
from zoopress.coding.planes import Plane, Statistics
from zoopress.coding.varint import Buffer

# Part of what files hold: a decoder takes as much memory as the dictionary has.
_FILTERS = [{"id": lzma.FILTER_LZMA2, "preset": 6, "dict_size": 1 << 19}]


class Lzma(EntropyCoder):
    """Small where rows repeat; slow, and it knows nothing of neighbours."""

    def encode(self, plane: Plane, statistics: Statistics, trellis: bool) -> bytes:
        """Compress the integers in the narrowest type that holds them."""
        width = next(
            width
            for width in (1, 2, 4)
            if -(1 << 8 * width - 1) <= statistics.low and statistics.high < 1 << 8 * width - 1
        )
        octets = plane.astype(f"<i{width}").reshape(-1, 1).view(np.uint8)
        packed = lzma.compress(octets.T.tobytes(), lzma.FORMAT_RAW, filters=_FILTERS)
        return bytes((width,)) + packed

    def decode(self, stream: Buffer, plane: Plane, trellis: bool) -> None:
        """Decompress as many bytes as the plane needs, and not one more."""
        width = stream[0] if len(stream) else 0
        if width not in (1, 2, 4):
            raise ValueError(f"integers of {width} bytes; there are 1, 2 and 4")
        size = width * plane.size
        decoder: Any = lzma.LZMADecompressor(lzma.FORMAT_RAW, filters=_FILTERS)
        try:
            octets = decoder.decompress(bytes(stream[1:]), size + 1)
            # The end is marked by one byte more, which gives nothing.
            while len(octets) <= size and not decoder.eof and not decoder.needs_input:
                more = decoder.decompress(b"", size + 1 - len(octets))
                if not more:
                    break
                octets += more
        except lzma.LZMAError as error:
            raise ValueError(f"no LZMA2: {error}") from error
        if len(octets) != size or not decoder.eof or decoder.unused_data:
            raise ValueError(f"{len(octets)} bytes and what follows, instead of {size}")
        columns = np.frombuffer(octets, np.uint8).reshape(width, plane.size)
        plane[...] = np.ascontiguousarray(columns.T).view(f"<i{width}").reshape(plane.shape)
