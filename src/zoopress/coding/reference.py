"""Read a `.zpz` file in plain Python, as `docs/zpz.md` says it: to check the fast reader by.

    python -m zoopress.coding.reference FILE.zpz

prints the name, type, shape and SHA-256 of each tensor. Nothing is shared with the fast reader, and
nothing but Python's own library is used. It takes about a second for a million numbers.
"""

from __future__ import annotations

import argparse
import hashlib
import math
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from zoopress.coding.reference_coder import Bytes, decode_plane, require

DTYPES = [
    *(("bool", 1), ("uint8", 1), ("int8", 1), ("int16", 2), ("int32", 4), ("int64", 8)),
    *(("float16", 2), ("bfloat16", 2), ("float32", 4), ("float64", 8)),
    *(("uint16", 2), ("uint32", 4), ("uint64", 8)),
    *(("float8_e4m3fn", 1), ("float8_e5m2", 1), ("complex64", 8)),
    *(("float8_e4m3fnuz", 1), ("float8_e5m2fnuz", 1), ("float8_e8m0fnu", 1)),
]
FLOATS = ("float16", "bfloat16", "float32", "float64")

DICTIONARY = (
    b"transformer.h.blocks.model.layers.embed_tokens.embeddings.self_attn.q_proj.k_proj.v_proj."
    b"o_proj.mlp.gate_proj.up_proj.down_proj.encoder.layer.attention.output.dense.classifier."
    b"features.running_mean.running_var.norm.conv.fc.weight.zero_point.weight.scale"
    b".weight.codebook.weight.row_step.weight.column_step.bias.weight.codes"
)


@dataclass
class Tensor:
    """A tensor and what the index says of it; `data` is little-endian and row-major."""

    name: str
    dtype: str = ""
    itemsize: int = 0
    shape: tuple[int, ...] = ()
    coding: int = 0
    bits: int = 0
    per_row: int = 0
    width: int = 0
    signed: bool = False
    columns: bool = False
    trellis: bool = False
    planes: int = 1
    lines: int = 0
    length: int = 0
    sizes: tuple[int, ...] = ()
    crc: int = 0
    data: bytes = b""


def read_zpz(content: bytes) -> dict[str, Tensor]:
    """Decode every tensor of a file.

    Raises:
        ValueError: if the file is not as the page says.
    """
    require(content[:4] == b"\x89ZPZ", "the file does not begin as a .zpz file")
    require(content[4:5] in (b"\2", b"\3"), "the version is neither 2 nor 3")
    require(len(content) >= 13, "the file is too short")
    crc = int.from_bytes(content[-8:-4], "little")
    length = int.from_bytes(content[-4:], "little")
    start = len(content) - 8 - length
    require(start >= 5, "the index has no room")
    index = content[start:-8]
    require(zlib.crc32(index) == crc, "the index does not match its checksum")
    tensors = read_index(index, len(content), names_coders=content[4] == 3)
    chunks = Bytes(content[5:start])
    for tensor in tensors:
        tensor.data = decode_tensor(tensor, chunks)
        require(zlib.crc32(tensor.data) == tensor.crc, "a tensor does not match its checksum")
        require(tensor.dtype != "bool" or max(tensor.data, default=0) < 2, "a bool is neither")
    require(chunks.at_end(), "bytes are left over after the last chunk")
    return {tensor.name: tensor for tensor in tensors}


def read_index(stored: bytes, file_size: int, names_coders: bool) -> list[Tensor]:
    """Return the tensors, still without data."""
    require(stored[:1] in (b"\0", b"\1"), "the form of the index is unknown")
    columns = Bytes(stored[1:])
    if stored[0] == 1:
        inflate = zlib.decompressobj(-15, DICTIONARY)
        try:
            columns = Bytes(inflate.decompress(stored[1:], 4096 + 64 * len(stored)))
        except zlib.error as error:
            raise ValueError(f"the index cannot be inflated: {error}") from None
        require(inflate.eof, "the index is cut off or too large")
    count = columns.varint()
    require(4 * count <= len(stored), "the index cannot hold so many tensors")
    columns.take(columns.varint())  # the note
    if names_coders:
        coders = columns.varint()
        require(1 <= coders <= 16, "a file names 1 to 16 coders")
        for _ in range(2 * coders):  # names and distributions; their chunks are not read here
            columns.take(columns.varint())
    tensors = [Tensor(name) for name in read_names(columns, count)]
    for tensor in tensors:
        read_type(columns, tensor)
    decoded = sum(math.prod(tensor.shape) * tensor.itemsize for tensor in tensors)
    require(decoded <= 2**28 + 1024 * file_size, "the file would decode to too much")
    for tensor in tensors:
        read_coding(columns, tensor)
    for tensor in tensors:
        chunks = tensor.planes * sum(1 for _ in bands(tensor))
        tensor.sizes = tuple(columns.varint() for _ in range(chunks))
        require(0 not in tensor.sizes, "a chunk is empty")
    checksums = Bytes(inflate.unused_data) if stored[0] == 1 else columns
    for tensor in tensors:
        tensor.crc = int.from_bytes(checksums.take(4), "little")
    require(columns.at_end() and checksums.at_end(), "bytes are left over in the index")
    return tensors


def read_names(columns: Bytes, count: int) -> Iterator[str]:
    """Yield the names, each checked against the one before."""
    lengths = [(columns.varint(), columns.varint()) for _ in range(count)]
    previous = b""
    for shared, length in lengths:
        require(shared <= len(previous), "a name shares more than there is")
        name = previous[:shared] + columns.take(length)
        require(1 <= len(name) <= 1024 and b"\0" not in name, "a name is impossible")
        require(name > previous, "names are not in ascending order")
        previous = name
        yield name.decode()


def read_type(columns: Bytes, tensor: Tensor) -> None:
    """Read a dtype and a shape."""
    first = columns.byte()
    number, dimensions = first % 32, first // 32
    if dimensions == 7:
        dimensions = columns.byte()
        require(7 <= dimensions <= 64, "the number of dimensions is impossible")
    require(number < len(DTYPES), "the dtype is unknown")
    tensor.dtype, tensor.itemsize = DTYPES[number]
    tensor.shape = tuple(columns.varint() for _ in range(dimensions))
    largest = math.prod(size for size in tensor.shape if size) * tensor.itemsize
    require(largest < 2**63, "the shape is too large")


def read_coding(columns: Bytes, tensor: Tensor) -> None:
    """Read what the planes hold, and find their lines."""
    first = columns.byte()
    tensor.coding, flags = first % 8, first // 8
    shape, elements = tensor.shape, math.prod(tensor.shape)
    if tensor.coding in (0, 1, 2):
        require(flags == 0, "the coding is unknown")
        tensor.length = line_length(shape)
        tensor.lines = elements // tensor.length if elements else 0
        if tensor.coding == 0:
            tensor.length *= tensor.itemsize
        else:
            tensor.planes = tensor.itemsize
            require(tensor.itemsize > 1, "the coding does not fit the dtype")
            require(tensor.coding == 1 or tensor.dtype in FLOATS, "only floats have exponents")
    elif tensor.coding == 3:
        require(tensor.dtype == "uint8" and len(shape) > 0, "codes stand in rows of uint8")
        tensor.bits, tensor.signed = flags % 8 + 1, flags // 8 % 2 == 1
        tensor.per_row = shape[-1] * 8 // tensor.bits - columns.byte()
        tensor.length = tensor.per_row
        require(tensor.per_row >= 0, "a row has fewer than no codes")
        require(-(-tensor.per_row * tensor.bits // 8) == shape[-1], "codes do not fill a row")
        rows = math.prod(shape[:-1])
        if flags // 16:
            tensor.length = tensor.width = columns.varint()
            require(1 <= tensor.width <= 2**17 and rows == 1, "the width is impossible")
            require(tensor.per_row % tensor.width == 0, "the width does not divide the row")
        tensor.lines = rows * tensor.per_row // tensor.length if rows * tensor.per_row else 0
    else:
        require(tensor.coding == 4 and flags < 4, "the coding is unknown")
        require(tensor.dtype in ("int8", "int16", "int32") and len(shape) == 2, "no integers")
        tensor.columns, tensor.trellis = flags % 2 == 1, flags // 2 == 1
        tensor.lines, tensor.length = shape[::-1] if tensor.columns else shape
        require(not tensor.trellis or tensor.length <= 2**20, "a path of the trellis is cut")


def line_length(shape: tuple[int, ...]) -> int:
    """Return how many elements make a line."""
    if not shape:
        return 1
    length = shape[-1]
    for size in reversed(shape[1:-1]):
        if length * size > 2**20:
            break
        length *= size
    return math.prod(shape) if length == 1 else length


def bands(tensor: Tensor) -> Iterator[tuple[int, int, int, int]]:
    """Yield the first line, number of lines, first symbol and number of symbols of each band."""
    if tensor.lines == 0 or tensor.length == 0:
        return
    step = 2**20 // tensor.length
    if step > 8:
        step -= step % 8
    if step > 0:
        for line in range(0, tensor.lines, step):
            yield line, min(step, tensor.lines - line), 0, tensor.length
    else:
        for line in range(tensor.lines):
            for start in range(0, tensor.length, 2**20):
                yield line, 1, start, min(2**20, tensor.length - start)


def decode_tensor(tensor: Tensor, chunks: Bytes) -> bytes:
    """Decode the chunks of a tensor into its bytes."""
    sizes = iter(tensor.sizes)
    wide = tensor.coding == 4
    signed = wide or (tensor.coding == 3 and tensor.signed)
    data = bytearray()
    lines: list[list[int]] = [[] for _ in range(tensor.lines if tensor.coding in (3, 4) else 0)]
    for line, count, _, length in bands(tensor):
        planes = [
            decode_plane(
                chunks.take(next(sizes)),
                count,
                length,
                bits=8 * tensor.itemsize if wide else 8,
                signed=signed,
                trellis=tensor.trellis,
            )
            for _ in range(tensor.planes)
        ]
        if tensor.coding == 0:
            data += bytes(planes[0])
        elif tensor.coding in (1, 2):
            for octets in zip(*planes, strict=True):
                data += join(octets, rotated=tensor.coding == 2)
        else:
            for i in range(count):
                lines[line + i] += planes[0][i * length : (i + 1) * length]
    if tensor.coding == 3:
        codes = [code for one in lines for code in one]
        rows = len(codes) // tensor.per_row if codes else 0
        for row in range(rows):
            data += pack(codes[row * tensor.per_row : (row + 1) * tensor.per_row], tensor)
    elif tensor.coding == 4:
        rows_of = list(zip(*lines, strict=True)) if tensor.columns else lines
        for one in rows_of:
            for integer in one:
                data += integer.to_bytes(tensor.itemsize, "little", signed=True)
    return bytes(data)


def join(octets: tuple[int, ...], rotated: bool) -> bytes:
    """Return an element from its bytes, rotated right by one bit if it was rotated left."""
    value = int.from_bytes(bytes(octets), "little")
    if rotated:
        value = value >> 1 | (value & 1) << (8 * len(octets) - 1)
    return value.to_bytes(len(octets), "little")


def pack(codes: list[int], tensor: Tensor) -> bytes:
    """Return the bytes of a row of codes, the first in the lowest bits."""
    half = 2 ** (tensor.bits - 1)
    low, high = (-half, half) if tensor.signed else (0, 2 * half)
    require(all(low <= code < high for code in codes), "a code has too many bits")
    value = 0
    for code in reversed(codes):
        value = value << tensor.bits | code % 2**tensor.bits
    return value.to_bytes((len(codes) * tensor.bits + 7) // 8, "little")


def main() -> None:
    """Print what the file that is given holds."""
    parser = argparse.ArgumentParser(description="Decode a .zpz file in plain Python.")
    parser.add_argument("file", type=Path)
    tensors = read_zpz(parser.parse_args().file.read_bytes())
    for tensor in tensors.values():
        print(
            tensor.name, tensor.dtype, list(tensor.shape), hashlib.sha256(tensor.data).hexdigest()
        )


if __name__ == "__main__":
    main()
