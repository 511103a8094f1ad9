"""Keep tensors losslessly in `model.zpz`, entropy coded, each readable alone.

    model.zpz
    ├── header   32 bytes: magic, version, CRC-32 of the index, where the index is
    ├── data     the stored chunks of every tensor, in the order of the index, without gaps
    └── index    per tensor: name, dtype, shape, layout, CRC-32 of its bytes, chunk sizes

A tensor becomes one or more planes of symbols; a plane is cut into chunks, and a chunk is stored
raw or as a stream of `rans.py`, whichever is smaller. `docs/zpz.md` specifies every bit.
"""

from __future__ import annotations

import math
import os
import secrets
import struct
import sys
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, BinaryIO

import numpy as np

from zoopress.coding import rans
from zoopress.coding.rans import Buffer, Bytes, read_varint, varint
from zoopress.errors import ArtifactError, nearest

if TYPE_CHECKING:
    from torch import Tensor

MAGIC = b"\x89ZPZ\r\n\x1a\n"  # as PNG's: shows at once when a transfer mangled line ends
VERSION = 1
HEADER = struct.Struct("<8sIIQQ")  # magic, version, CRC-32 of the index, its offset, its length
CHUNK_SYMBOLS = 1 << 22
MAX_NAME_BYTES = 1024
MAX_DIMENSIONS = 64
# A constant chunk of 4 MiB takes 2 bytes, so a small file could fill any memory. No file may decode
# to more than this; a writer stores raw what would break the bound.
FREE_BYTES = 1 << 28
MAX_EXPANSION = 1024
# Decoding costs time; below this gain a chunk stays raw.
_MIN_GAIN = 1 / 256
# What is read or changed at once, so that what is made on the way stays small and in the cache.
_BLOCK_BYTES = 1 << 16

BYTES, PLANES, ROTATED_PLANES, CODES = range(4)

# The place in this tuple is the number in the file: append only.
DTYPES: tuple[tuple[str, int], ...] = (
    ("bool", 1),
    ("uint8", 1),
    ("int8", 1),
    ("int16", 2),
    ("int32", 4),
    ("int64", 8),
    ("float16", 2),
    ("bfloat16", 2),
    ("float32", 4),
    ("float64", 8),
    ("uint16", 2),
    ("uint32", 4),
    ("uint64", 8),
    ("float8_e4m3fn", 1),
    ("float8_e5m2", 1),
)
_FLOATS = frozenset(name for name, size in DTYPES if "float" in name and size > 1)


@dataclass(frozen=True)
class StoredTensor:
    """A tensor to store, and how its bytes hold codes where they do.

    `tensor` may have any shape and strides. With `code_bits` (1 to 8) it is uint8 and each row
    (last dimension) holds `codes_per_row` codes as `bits.pack_codes` packs them.
    """

    tensor: Tensor
    code_bits: int | None = None
    codes_per_row: int | None = None


@dataclass(frozen=True)
class _Codes:
    """Rows of `per_row` codes of `bits` bits."""

    rows: int
    per_row: int
    bits: int


@dataclass(frozen=True)
class _Entry:
    """One tensor in the index; `offset` and what follows it only where it has chunks."""

    dtype: str
    itemsize: int
    shape: tuple[int, ...]
    layout: int
    codes: _Codes | None
    crc: int
    chunk_sizes: tuple[int, ...]
    offset: int

    @property
    def decoded_bytes(self) -> int:
        return math.prod(self.shape) * self.itemsize


def write_zpz(
    path: Path,
    tensors: Mapping[str, StoredTensor],
    progress: Callable[[str], None] | None = None,
) -> None:
    """Write tensors to `path`, which appears whole or not at all.

    The same tensors give the same bytes, in whatever order they come.

    Args:
        path: replaced if it exists.
        tensors: by name: 1 to 1024 bytes of UTF-8 without NUL.
        progress: called with a line for each tensor.

    Raises:
        ValueError: if a name, a dtype or a description of codes is not one that can be stored.
    """
    named = sorted((_encoded_name(name), name) for name in tensors)
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}")
    try:
        with temporary.open("xb") as file:
            _write_file(file, [(raw, name, tensors[name]) for raw, name in named], progress)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _write_file(
    file: BinaryIO,
    named: list[tuple[bytes, str, StoredTensor]],
    progress: Callable[[str], None] | None,
) -> None:
    file.write(bytes(HEADER.size))
    index = bytearray(varint(len(named)))
    previous = b""
    stored_total = decoded_total = 0
    for raw_name, name, stored in named:
        try:
            dtype, itemsize, shape, data = _bytes_of(stored)
            layout, planes = _choose_layout(data, DTYPES[dtype][0], itemsize, stored)
        except ValueError as error:
            raise ValueError(f"Tensor {name!r} cannot be stored: {_sentence(error)}.") from error
        shared = _shared_prefix(previous, raw_name)
        previous = raw_name
        index += varint(shared) + varint(len(raw_name) - shared) + raw_name[shared:]
        index += bytes((dtype, len(shape))) + b"".join(varint(size) for size in shape)

        start = file.tell()
        decoded_total += data.size
        sizes = [file.write(chunk) for plane in planes for chunk in _store_plane(plane)]
        if decoded_total > FREE_BYTES + MAX_EXPANSION * (stored_total + sum(sizes)):
            file.seek(start)
            file.truncate()
            layout, sizes = bytes((BYTES,)), [file.write(chunk.data) for chunk in _chunks(data)]
        stored_total += sum(sizes)
        index += layout + zlib.crc32(data.data).to_bytes(4, "little")
        index += b"".join(varint(size) for size in sizes)
        if progress is not None:
            progress(f"{name}: {data.size:,} bytes stored in {sum(sizes):,}")
    offset = file.tell()
    file.write(index)
    file.seek(0)
    file.write(HEADER.pack(MAGIC, VERSION, zlib.crc32(index), offset, len(index)))


class ZpzReader:
    """Read tensors from a file that need not be trusted.

    Opening checks the header and the whole index against the file's size and allocates no more
    than the index's size times a constant; tensors are decoded one at a time, on request. Use it
    as a context manager, from one thread at a time.

    Raises:
        ArtifactError: from every method, naming the file, the tensor and what is wrong.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self._file = path.open("rb")
        except OSError as error:
            raise ArtifactError(f"{path} cannot be opened: {error.strerror}.") from error
        try:
            self._entries = self._read_index()
        except (ValueError, OSError) as error:
            self._file.close()
            raise _named(path, None, error) from error
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> ZpzReader:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def names(self) -> list[str]:
        """Return the tensors' names in the order of the file, which is that of their bytes."""
        return list(self._entries)

    def info(self, name: str) -> tuple[str, tuple[int, ...]]:
        """Return a tensor's dtype, as torch spells it without "torch.", and its shape."""
        entry = self._entry(name)
        return entry.dtype, entry.shape

    def stored_bytes(self, name: str) -> int:
        """Return how many bytes of the file a tensor takes, without its line in the index."""
        return sum(self._entry(name).chunk_sizes)

    def read(self, name: str) -> Tensor:
        """Decode one tensor, exactly as it was stored, on the CPU and contiguous."""
        entry = self._entry(name)
        try:
            return self._decode(entry)
        except (ValueError, OSError) as error:
            raise _named(self._path, name, error) from error

    def _entry(self, name: str) -> _Entry:
        entry = self._entries.get(name)
        if entry is None:
            raise ArtifactError(
                f"{self._path} has no tensor {name!r}.{nearest(name, self._entries)}"
            )
        return entry

    def _read_index(self) -> dict[str, _Entry]:
        size = os.fstat(self._file.fileno()).st_size
        header = self._file.read(HEADER.size)
        if header[: len(MAGIC)] != MAGIC:
            raise ValueError("it is not a .zpz file, or its first bytes are damaged")
        if len(header) < HEADER.size:
            raise ValueError(f"it ends after {size} bytes, within its header")
        _, version, crc, offset, length = HEADER.unpack(header)
        if version != VERSION:
            raise ValueError(
                f"its format has version {version}, but this zoopress reads version {VERSION}; "
                "upgrade zoopress"
            )
        if offset < HEADER.size or offset + length != size:
            raise ValueError(
                f"its index should end at byte {offset + length}, but the file has {size} bytes"
            )
        self._file.seek(offset)
        index = self._file.read(length)
        if len(index) != length or zlib.crc32(index) != crc:
            raise ValueError("its index does not match its checksum")
        return _parse_index(index, offset, size)

    def _decode(self, entry: _Entry) -> Tensor:
        import torch

        if entry.codes is not None:
            data = self._decode_codes(entry, entry.codes)
        else:
            # Torch's memory is aligned for torch's kernels, numpy's is not.
            data = torch.empty(entry.decoded_bytes, dtype=torch.uint8).numpy()
            if entry.layout == BYTES:
                self._fill(entry, [data])
            else:
                elements = data.reshape(-1, entry.itemsize)
                self._fill(entry, [elements[:, place] for place in range(entry.itemsize)])
                if entry.layout == ROTATED_PLANES:
                    _rotate_right(data, entry.itemsize)
        if zlib.crc32(data.data) != entry.crc:
            raise ValueError("its bytes do not match their checksum")
        if entry.dtype == "bool" and data.size and data.max() > 1:
            raise ValueError("it is of type bool but holds bytes other than 0 and 1")
        data = _swap_if_big_endian(data, entry.itemsize)
        dtype: torch.dtype = getattr(torch, entry.dtype)
        if data.size == 0:  # an array without bytes has strides that torch will not view
            return torch.empty(entry.shape, dtype=dtype)
        return torch.from_numpy(data).view(dtype).reshape(entry.shape)

    def _decode_codes(self, entry: _Entry, codes: _Codes) -> Bytes:
        """Pack codes as they come: all of a tensor's, a byte each, are several times its size."""
        import torch

        from zoopress.coding.bits import RowPacker

        packer = RowPacker(codes.rows, codes.per_row, codes.bits)
        for block in self._symbols(entry, [codes.rows * codes.per_row]):
            packer.add(torch.from_numpy(block))
        data: Bytes = packer.packed.reshape(-1).numpy()
        return data

    def _fill(self, entry: _Entry, planes: list[Bytes]) -> None:
        """Decode the chunks of `entry` into its planes."""
        place = filled = 0
        # To the end, since what is wrong with a stream shows only after its last block.
        for block in self._symbols(entry, [plane.shape[0] for plane in planes]):
            while filled == planes[place].shape[0]:
                place, filled = place + 1, 0
            planes[place][filled : filled + block.size] = block
            filled += block.size

    def _symbols(self, entry: _Entry, planes: list[int]) -> Iterator[Bytes]:
        """Decode planes of so many symbols, one after the other, in blocks within a plane."""
        self._file.seek(entry.offset)
        sizes = iter(entry.chunk_sizes)
        for plane in planes:
            for start in range(0, plane, CHUNK_SYMBOLS):
                symbols, size = min(CHUNK_SYMBOLS, plane - start), next(sizes)
                if size < symbols:
                    yield from rans.decode_blocks(self._read_exactly(size).data, symbols)
                    continue
                for done in range(0, size, _BLOCK_BYTES):
                    yield self._read_exactly(min(_BLOCK_BYTES, size - done))

    def _read_exactly(self, size: int) -> Bytes:
        stored = np.empty(size, np.uint8)
        if self._file.readinto(stored.data) != size:
            raise ValueError("the file became shorter while it was read")
        return stored


def _parse_index(index: bytes, data_end: int, file_size: int) -> dict[str, _Entry]:
    """Parse and check the whole index.

    Everything it declares is compared with what the file can hold before memory is spent on it.
    """
    count, position = read_varint(index, 0)
    entries: dict[str, _Entry] = {}
    offset = HEADER.size
    decoded = 0
    previous = b""
    for _ in range(count):
        raw_name, name, position = _parse_name(index, position, previous)
        previous = raw_name
        try:
            entry, position = _parse_entry(index, position, offset)
        except ValueError as error:
            raise ValueError(f"tensor {name!r}: {_sentence(error)}") from error
        offset += sum(entry.chunk_sizes)
        decoded += entry.decoded_bytes
        if offset > data_end:
            raise ValueError(f"tensor {name!r} ends at byte {offset}, after the data ({data_end})")
        if decoded > FREE_BYTES + MAX_EXPANSION * file_size:
            raise ValueError(
                f"up to tensor {name!r} it would decode to {decoded:,} bytes, more than a file of "
                f"{file_size:,} bytes may ({FREE_BYTES:,} + {MAX_EXPANSION} times its size)"
            )
        entries[name] = entry
    if position != len(index) or offset != data_end:
        raise ValueError("its index does not account for every byte of the file")
    return entries


def _parse_name(index: bytes, position: int, previous: bytes) -> tuple[bytes, str, int]:
    shared, position = read_varint(index, position)
    length, position = read_varint(index, position)
    if shared > len(previous) or not 1 <= shared + length <= MAX_NAME_BYTES:
        raise ValueError(f"a name after {previous!r} has an impossible length")
    raw = previous[:shared] + _take(index, position, length)
    if raw <= previous:
        raise ValueError(f"the name {raw!r} stands twice or out of order")
    if b"\0" in raw:
        raise ValueError(f"the name {raw!r} holds a NUL")
    try:
        return raw, raw.decode(), position + length
    except UnicodeDecodeError:
        raise ValueError(f"the name {raw!r} is not UTF-8") from None


def _parse_entry(index: bytes, position: int, offset: int) -> tuple[_Entry, int]:
    number, dimensions = _take(index, position, 2)
    position += 2
    if number >= len(DTYPES):
        raise ValueError(f"its dtype number {number} is unknown; upgrade zoopress")
    dtype, itemsize = DTYPES[number]
    if dimensions > MAX_DIMENSIONS:
        raise ValueError(f"it has {dimensions} dimensions, more than {MAX_DIMENSIONS}")
    shape: list[int] = []
    for _ in range(dimensions):
        size, position = read_varint(index, position)
        shape.append(size)
    # Torch multiplies the other sizes of an empty tensor too.
    if math.prod(size for size in shape if size) * itemsize >= 1 << 63:
        raise ValueError(f"its shape {tuple(shape)} is too large")
    elements = math.prod(shape)

    (layout,) = _take(index, position, 1)
    position += 1
    codes = None
    if layout == BYTES:
        planes, symbols = 1, elements * itemsize
    elif layout == PLANES or (layout == ROTATED_PLANES and dtype in _FLOATS):
        planes, symbols = itemsize, elements
    elif layout == CODES:
        (bits,) = _take(index, position, 1)
        per_row, position = read_varint(index, position + 1)
        codes = _describe_codes(dtype, tuple(shape), bits, per_row)
        planes, symbols = 1, codes.rows * codes.per_row
        if symbols == 0:
            raise ValueError("it holds no codes and must be stored as bytes")
    else:
        raise ValueError(f"its layout {layout} is unknown for {dtype}; upgrade zoopress")

    crc = int.from_bytes(_take(index, position, 4), "little")
    position += 4
    whole, last = divmod(symbols, CHUNK_SYMBOLS)
    if planes * (whole + (last > 0)) > len(index) - position:
        raise ValueError(f"its shape {tuple(shape)} needs more chunks than the index has")
    sizes: list[int] = []
    for _ in range(planes):
        for chunk in [CHUNK_SYMBOLS] * whole + [last] * (last > 0):
            size, position = read_varint(index, position)
            if not 1 <= size <= chunk:
                raise ValueError(f"a chunk of {chunk} symbols cannot be stored in {size} bytes")
            sizes.append(size)
    entry = _Entry(dtype, itemsize, tuple(shape), layout, codes, crc, tuple(sizes), offset)
    return entry, position


def _bytes_of(stored: StoredTensor) -> tuple[int, int, tuple[int, ...], Bytes]:
    """Return the dtype's number and size, the shape, and the tensor's little-endian bytes."""
    import torch

    tensor = stored.tensor.detach().cpu().resolve_neg().contiguous()
    dtype = str(tensor.dtype).removeprefix("torch.")
    numbers = [number for number, (name, _) in enumerate(DTYPES) if name == dtype]
    if not numbers:
        known = ", ".join(name for name, _ in DTYPES)
        raise ValueError(f"its dtype {dtype} has no number in the format; convert it to {known}")
    if tensor.dim() > MAX_DIMENSIONS:
        raise ValueError(f"it has {tensor.dim()} dimensions, more than {MAX_DIMENSIONS}")
    itemsize = DTYPES[numbers[0]][1]
    data = tensor.reshape(-1).view(torch.uint8).numpy()
    return numbers[0], itemsize, tuple(tensor.shape), _swap_if_big_endian(data, itemsize)


def _choose_layout(
    data: Bytes, dtype: str, itemsize: int, stored: StoredTensor
) -> tuple[bytes, list[Bytes]]:
    """Return the layout that promises the smallest size, as the index spells it, and its planes."""
    candidates: list[tuple[bytes, list[Bytes]]] = [(bytes((BYTES,)), [data])]
    if stored.code_bits is not None or stored.codes_per_row is not None:
        shape = tuple(stored.tensor.shape)
        codes = _describe_codes(dtype, shape, stored.code_bits, stored.codes_per_row)
        symbols = _exact_codes(data, codes)
        if codes.bits < 8 and symbols is not None:
            spelled = bytes((CODES, codes.bits)) + varint(codes.per_row)
            candidates.append((spelled, [symbols]))
    if itemsize > 1:
        candidates.append((bytes((PLANES,)), _planes(data, itemsize)))
        if dtype in _FLOATS:
            rotated = _planes(_rotated_left(data, itemsize), itemsize)
            candidates.append((bytes((ROTATED_PLANES,)), rotated))
    if len(candidates) == 1:
        return candidates[0]
    sizes = [
        len(layout) + sum(_estimate(chunk) for plane in planes for chunk in _chunks(plane))
        for layout, planes in candidates
    ]
    return candidates[sizes.index(min(sizes))]


def _describe_codes(
    dtype: str, shape: tuple[int, ...], bits: int | None, per_row: int | None
) -> _Codes:
    """Check that a tensor can hold such codes.

    Raises:
        ValueError: if it cannot.
    """
    if dtype != "uint8" or not shape:
        raise ValueError(f"codes are stored in rows of uint8, not in {dtype} of shape {shape}")
    if bits is None or per_row is None or not 1 <= bits <= 8:
        raise ValueError(
            f"codes need both code_bits (1 to 8) and codes_per_row, not {bits} and {per_row}"
        )
    if per_row < 0 or (per_row * bits + 7) // 8 != shape[-1]:
        raise ValueError(
            f"{per_row} codes of {bits} bits do not fill rows of {shape[-1]} bytes exactly"
        )
    return _Codes(math.prod(shape[:-1]), per_row, bits)


def _exact_codes(data: Bytes, codes: _Codes) -> Bytes | None:
    """Unpack codes; None if packing them again would not give back every bit."""
    import torch

    from zoopress.coding.bits import pack_codes, unpack_codes

    if data.size == 0:
        return None
    rows = torch.from_numpy(data).view(codes.rows, -1)
    unpacked = unpack_codes(rows, codes.bits, codes.per_row).contiguous()
    if not torch.equal(pack_codes(unpacked, codes.bits), rows):
        return None
    return unpacked.numpy().reshape(-1)


def _planes(data: Bytes, itemsize: int) -> list[Bytes]:
    """Return byte 0 of every element, byte 1 of every element, and so on."""
    elements = data.reshape(-1, itemsize)
    return [np.ascontiguousarray(elements[:, place]) for place in range(itemsize)]


def _rotated_left(data: Bytes, itemsize: int) -> Bytes:
    """Move each element's sign from the top bit to the bottom, so that the exponent leads."""
    words = data.view(f"<u{itemsize}")
    rotated = (words << 1) | (words >> (8 * itemsize - 1))
    return rotated.astype(words.dtype, copy=False).view(np.uint8)


def _rotate_right(data: Bytes, itemsize: int) -> None:
    """Undo `_rotated_left` in place."""
    words = data.view(f"<u{itemsize}")
    for start in range(0, words.size, _BLOCK_BYTES):
        block = words[start : start + _BLOCK_BYTES]
        block[:] = (block >> 1) | (block << (8 * itemsize - 1))


def _store_plane(plane: Bytes) -> Iterator[Buffer]:
    for chunk in _chunks(plane):
        histogram = rans.byte_histogram(chunk)
        enough = _enough(chunk.size)
        if rans.estimate_size(histogram) <= enough:
            stream = rans.encode(chunk, histogram)
            if len(stream) <= enough:
                yield stream
                continue
        yield chunk.data


def _estimate(chunk: Bytes) -> int:
    """Return the bytes that `_store_plane` is expected to take for a chunk."""
    size = rans.estimate_size(rans.byte_histogram(chunk))
    return size if size <= _enough(chunk.size) else chunk.size


def _enough(size: int) -> int:
    """Return the largest stream that is worth decoding instead of `size` raw bytes."""
    return size - 1 - int(size * _MIN_GAIN)


def _chunks(plane: Bytes) -> Iterator[Bytes]:
    for start in range(0, plane.shape[0], CHUNK_SYMBOLS):
        yield plane[start : start + CHUNK_SYMBOLS]


def _swap_if_big_endian(data: Bytes, itemsize: int) -> Bytes:
    if sys.byteorder == "little" or itemsize == 1:
        return data
    return np.ascontiguousarray(data.reshape(-1, itemsize)[:, ::-1]).reshape(-1)


def _shared_prefix(a: bytes, b: bytes) -> int:
    size = 0
    for x, y in zip(a, b, strict=False):
        if x != y:
            break
        size += 1
    return size


def _encoded_name(name: str) -> bytes:
    try:
        raw = name.encode()
    except UnicodeEncodeError:
        raise ValueError(f"Tensor name {name!r} has no UTF-8 form; rename the tensor.") from None
    if not 1 <= len(raw) <= MAX_NAME_BYTES or b"\0" in raw:
        raise ValueError(
            f"Tensor name {name!r} must take 1 to {MAX_NAME_BYTES} bytes of UTF-8 without NUL; "
            "rename the tensor."
        )
    return raw


def _take(data: Buffer, position: int, size: int) -> bytes:
    if size > len(data) - position:
        raise ValueError("the index ends too early")
    return bytes(data[position : position + size])


def _sentence(error: Exception) -> str:
    text = str(error).rstrip(".")
    return text[:1].lower() + text[1:]


def _named(path: Path, name: str | None, error: Exception) -> ArtifactError:
    where = f"{path}" if name is None else f"{path}: tensor {name!r}"
    return ArtifactError(
        f"{where} cannot be read: {_sentence(error)}. Fetch the file again, or ask who made it."
    )
