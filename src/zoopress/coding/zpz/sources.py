"""Tensors to be coded, wherever they are, and which coding suits each."""

from __future__ import annotations

import math
import sys
import zlib
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from zoopress.coding.coder import RAW, Coder, encode_plane, estimate_bits
from zoopress.coding.layout import Integers, Layout, PackedCodes, StoredTensor
from zoopress.coding.zpz.bands import (
    CHUNK_SYMBOLS,
    FLOATS,
    ITEMSIZES,
    MAX_WIDTH,
    Band,
    BytePlanes,
    Coding,
    Cut,
    Octets,
    Plane,
    padding_is_zero,
)
from zoopress.coding.zpz.index import check_tensor
from zoopress.coding.zpz.repack import Bytes

TRIED_BYTES = 1 << 14
"""Tensors of up to so many bytes are coded in every way."""
_SAMPLES, _SAMPLE_SYMBOLS = 4, 1 << 14
_NOISE_LEAST, _NOISE_SAMPLE = 1 << 12, 1 << 16
_MIN_GAIN = 1 / 100


class Source(Protocol):
    """A tensor that need not be in memory; any number of threads may read it."""

    dtype: str
    shape: tuple[int, ...]
    layout: Layout | None

    def read(self, start: int, stop: int) -> Bytes:
        """Return some of its bytes, row-major and little-endian."""
        ...


class TensorSource:
    """A tensor in memory.

    Raises:
        ValueError: if its dtype or number of axes is not one that can be stored.
    """

    def __init__(self, stored: StoredTensor) -> None:
        import torch

        tensor = stored.tensor.detach().cpu().resolve_conj().resolve_neg().contiguous()
        self.dtype = str(tensor.dtype).removeprefix("torch.")
        self.shape = tuple(tensor.shape)
        self.layout = stored.layout
        check_tensor(self.dtype, self.shape)
        data: Bytes = tensor.reshape(-1).view(torch.uint8).numpy()
        if sys.byteorder == "big":
            data = np.ascontiguousarray(data.reshape(-1, tensor.itemsize)[:, ::-1]).reshape(-1)
        self._data = data

    def read(self, start: int, stop: int) -> Bytes:
        """Return a view of some of its bytes."""
        return self._data[start:stop]


@dataclass(frozen=True)
class Coded:
    """Chunks of a tensor.

    Attributes:
        coding: what they hold.
        streams: the chunks.
        size: bytes of the tensor that they hold.
        crc: CRC-32 of these; 0 if bands are not contiguous.
    """

    coding: Coding
    streams: list[bytes]
    size: int
    crc: int


def size_bytes(source: Source) -> int:
    """Return how many bytes a tensor has."""
    return math.prod(source.shape) * ITEMSIZES[source.dtype]


def code_bands(source: Source, cut: Cut, bands: Iterable[Band], coder: Coder) -> Coded:
    """Code some bands of a tensor."""
    streams: list[bytes] = []
    size = crc = 0
    for band in bands:
        data = source.read(*cut.byte_range(band))
        size += cut.band_bytes(band)
        if cut.contiguous:
            crc = zlib.crc32(data.data, crc)
        for plane in cut.split(data, band):
            if isinstance(cut.coding, BytePlanes) and _is_noise(plane):
                streams.append(_raw_chunk(plane))
            else:
                streams.append(encode_plane(plane, trellis=cut.trellis, coder=coder))
    return Coded(cut.coding, streams, size, crc)


def raw_chunks(source: Source, cut: Cut, bands: Iterable[Band]) -> list[bytes]:
    """Return the chunks of some bands as they are."""
    pieces = ((band, source.read(*cut.byte_range(band))) for band in bands)
    return [_raw_chunk(plane) for band, data in pieces for plane in cut.split(data, band)]


def code_best(source: Source, coder: Coder) -> Coded:
    """Code a small tensor in the way that suits it best.

    Raises:
        ValueError: if its layout does not fit it.
    """
    if size_bytes(source) > TRIED_BYTES:
        cut = best_cut(source)
        return code_bands(source, cut, cut.bands(), coder)
    tried = [code_bands(source, cut, cut.bands(), coder) for cut in _cuts(source)]
    # Each chunk has its size in the index, a byte or two.
    return min(tried, key=lambda coded: sum(len(stream) + 1 for stream in coded.streams))


def best_cut(source: Source) -> Cut:
    """Return the cut that suits a tensor, as far as its type and samples of codes tell.

    Raises:
        ValueError: if the tensor's layout does not fit it.
    """
    cuts = _cuts(source)
    if isinstance(cuts[-1].coding, PackedCodes):
        # Patterns of several codes, such as two of four that are kept, show in whole bytes.
        return min(cuts[::-1], key=lambda cut: _bits_per_byte(source, cut))
    return cuts[-1]


def _cuts(source: Source) -> list[Cut]:
    """Return the ways in which a tensor can be coded, the likeliest last."""
    layout, dtype, shape = source.layout, source.dtype, source.shape
    codings: list[Coding] = [Octets()]
    if ITEMSIZES[dtype] > 1:
        codings.append(BytePlanes(rotated=dtype in FLOATS))
    if layout is None and len(shape) == 2 and dtype in ("int8", "int16", "int32"):
        layout = Integers()
    if isinstance(layout, PackedCodes) and layout.width is not None and layout.width > MAX_WIDTH:
        layout = replace(layout, width=None)
    if isinstance(layout, Integers) and layout.trellis:
        length = shape[-1 if layout.scan == "rows" else 0] if shape else 0
        layout = replace(layout, trellis=length <= CHUNK_SYMBOLS)
    if layout is not None:
        cut = Cut(dtype, shape, layout)
        data = source.read(0, cut.bytes)  # what has a layout is in memory
        if not isinstance(layout, PackedCodes) or padding_is_zero(data, layout):
            codings.append(layout)
    return [Cut(dtype, shape, coding) for coding in codings]


def _bits_per_byte(source: Source, cut: Cut) -> float:
    """Estimate what a byte of a tensor takes, from pieces of it."""
    bands = list(cut.bands())
    bits, size = 0.0, 0
    for band in bands[:: -(-len(bands) // _SAMPLES) or 1]:
        length = min(band.length, _SAMPLE_SYMBOLS)
        lines = max(1, min(band.lines, _SAMPLE_SYMBOLS // length // 8 * 8))
        piece = Band(band.line, lines, band.start, length)
        for plane in cut.split(source.read(*cut.byte_range(piece)), piece):
            bits += estimate_bits(plane)
        size += cut.band_bytes(piece)
    return bits / max(size, 1)


def _is_noise(plane: Plane) -> bool:
    """Tell whether a plane of bytes is so near to random that decoding it is not worth its time."""
    if plane.size < _NOISE_LEAST:
        return False
    counts = np.bincount(plane.reshape(-1)[:: -(-plane.size // _NOISE_SAMPLE)])
    share = counts[counts > 0] / counts.sum()
    return float(-(share * np.log2(share)).sum()) > 8 * (1 - _MIN_GAIN)


def _raw_chunk(plane: Plane) -> bytes:
    stored = plane.dtype.newbyteorder("<")
    return bytes((RAW, plane.itemsize)) + plane.astype(stored, copy=False).tobytes()
