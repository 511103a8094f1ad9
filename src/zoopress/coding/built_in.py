"""The entropy coders of the format itself, each under its number in a chunk."""

from __future__ import annotations

from zoopress.coding import adaptive_coder, huffman_coder, static_coder
from zoopress.coding.entropy_coder import EntropyCoder
from zoopress.coding.planes import Plane, Statistics
from zoopress.coding.static_model import choose_model
from zoopress.coding.varint import Buffer


class Static(EntropyCoder):
    """Asymmetric numeral systems with a table for each context: the fastest."""

    def encode(self, plane: Plane, statistics: Statistics, trellis: bool) -> bytes:
        """Choose a model of the plane, and code by its tables."""
        return static_coder.encode(plane, choose_model(plane, statistics, trellis), trellis)

    def decode(self, stream: Buffer, plane: Plane, trellis: bool) -> None:
        """Fill a plane of int32, or of 8 bits."""
        static_coder.decode(stream, plane, trellis)


class Adaptive(EntropyCoder):
    """Arithmetic coding with probabilities learned on the way: the smallest for small planes."""

    def encode(self, plane: Plane, statistics: Statistics, trellis: bool) -> bytes:
        """Code around the plane's center."""
        return adaptive_coder.encode(plane, statistics.center, trellis)

    def decode(self, stream: Buffer, plane: Plane, trellis: bool) -> None:
        """Fill a plane of int32."""
        adaptive_coder.decode(stream, plane, trellis)


class Huffman(EntropyCoder):
    """Whole bits for each symbol, and gaps between nonzero ones, as Deep Compression has them."""

    def encode(self, plane: Plane, statistics: Statistics, trellis: bool) -> bytes:
        """Code symbols, or gaps and symbols."""
        return huffman_coder.encode(plane, statistics, trellis)

    def decode(self, stream: Buffer, plane: Plane, trellis: bool) -> None:
        """Fill a plane of int32."""
        huffman_coder.decode(stream, plane, trellis)


STATIC, ADAPTIVE, HUFFMAN = 2, 3, 4
"""Part of the format, as `docs/zpz.md` has it; 0 and 1 are raw and constant planes."""

BUILT_IN: dict[str, tuple[int, EntropyCoder]] = {
    "static": (STATIC, Static()),
    "adaptive": (ADAPTIVE, Adaptive()),
    "huffman": (HUFFMAN, Huffman()),
}
BY_NUMBER = dict(BUILT_IN.values())
