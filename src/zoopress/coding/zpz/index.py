"""The index of a `.zpz` file: what its tensors are called, what they are, and where they lie.

    index        form (1 byte: 0 plain, 1 deflated), columns, CRC-32 of each tensor
    columns      note, names, dtypes and shapes, codings, stored sizes of chunks

Alike things stand together so that they deflate well. `docs/zpz.md` specifies every bit.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from zoopress.coding.entropy_coder import CODER_NAME, DISTRIBUTION
from zoopress.coding.layout import Integers, PackedCodes
from zoopress.coding.varint import read_varint, varint
from zoopress.coding.zpz.bands import DTYPES, ITEMSIZES, BytePlanes, Coding, Cut, Octets

MAX_NAME_BYTES = 1024
MAX_DIMENSIONS = 64
FREE_INDEX_BYTES = 1 << 12
MAX_INDEX_EXPANSION = 64
# A constant chunk of a mebibyte takes a few bytes, so a small file could fill any memory. No file
# may decode to more than this; a writer stores raw what would break the bound.
FREE_BYTES = 1 << 28
MAX_EXPANSION = 1024

# What names often hold, the most frequent last; part of the format, as `docs/zpz.md` has it.
DICTIONARY = (
    b"transformer.h.blocks.model.layers.embed_tokens.embeddings.self_attn.q_proj.k_proj.v_proj."
    b"o_proj.mlp.gate_proj.up_proj.down_proj.encoder.layer.attention.output.dense.classifier."
    b"features.running_mean.running_var.norm.conv.fc.weight.zero_point.weight.scale"
    b".weight.codebook.weight.row_step.weight.column_step.bias.weight.codes"
)

MAX_CODERS = 16

_OCTETS, _BYTE_PLANES, _ROTATED_PLANES, _CODES, _INTEGERS = range(5)


@dataclass(frozen=True)
class CoderRecord:
    """A coder that the format itself does not have, as a file names it.

    Attributes:
        name: what it is registered as.
        distribution: what brought it where the file was written.

    Raises:
        ValueError: if either is none that a file may hold.
    """

    name: str
    distribution: str

    def __post_init__(self) -> None:
        if not CODER_NAME.fullmatch(self.name):
            raise ValueError(
                f"the coder's name {self.name!r} must be 1 to 64 of a-z, 0-9 and _, a letter first"
            )
        if self.distribution and not DISTRIBUTION.fullmatch(self.distribution):
            raise ValueError(f"{self.distribution!r} is no name of a distribution")


@dataclass(frozen=True)
class Entry:
    """A tensor in a file.

    Attributes:
        dtype: as torch spells it without "torch.".
        shape: its sizes.
        coding: what its planes hold.
        crc: CRC-32 of its bytes, row-major and little-endian.
        sizes: stored bytes of each chunk: band by band, within a band plane by plane.
    """

    dtype: str
    shape: tuple[int, ...]
    coding: Coding
    crc: int
    sizes: tuple[int, ...]

    @property
    def decoded_bytes(self) -> int:
        """How many bytes the tensor has."""
        return math.prod(self.shape) * ITEMSIZES[self.dtype]

    @property
    def stored_bytes(self) -> int:
        """How many bytes its chunks take."""
        return sum(self.sizes)


@dataclass(frozen=True)
class Index:
    """What the index of a file says.

    Attributes:
        entries: the tensors in the order of the file.
        note: what the writer kept beside them.
        coders: those that the file names.
    """

    entries: dict[str, Entry]
    note: bytes
    coders: tuple[CoderRecord, ...] = ()


def encoded_name(name: str) -> bytes:
    """Return a tensor's name as it is stored.

    Raises:
        ValueError: if it cannot be.
    """
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


def check_tensor(dtype: str, shape: Sequence[int]) -> None:
    """Check that the format has room for a tensor.

    Raises:
        ValueError: if not.
    """
    if dtype not in ITEMSIZES:
        raise ValueError(
            f"its dtype {dtype} has no number in the format; convert it to {', '.join(ITEMSIZES)}"
        )
    if len(shape) > MAX_DIMENSIONS:
        raise ValueError(f"it has {len(shape)} dimensions, more than {MAX_DIMENSIONS}")


def write_index(
    entries: Sequence[tuple[bytes, Entry]], note: bytes, coders: Sequence[CoderRecord] = ()
) -> bytes:
    """Return the stored form of an index.

    Args:
        entries: by encoded name, in ascending order.
        note: what the writer wants to keep beside the tensors.
        coders: those that the file names; with any, it is of version 3.
    """
    shared, rests = bytearray(), bytearray()
    previous = b""
    for raw, _ in entries:
        pairs = enumerate(zip(previous, raw, strict=False))
        common = next((i for i, (a, b) in pairs if a != b), min(len(previous), len(raw)))
        shared += varint(common) + varint(len(raw) - common)
        rests += raw[common:]
        previous = raw
    columns = b"".join(
        (
            varint(len(entries)),
            *(varint(len(note)), note),
            *(_spell_coders(coders) if coders else ()),
            *(shared, rests),
            *(_spell_type(entry) for _, entry in entries),
            *(_spell_coding(entry) for _, entry in entries),
            *(varint(size) for _, entry in entries for size in entry.sizes),
        )
    )
    checksums = b"".join(entry.crc.to_bytes(4, "little") for _, entry in entries)
    deflate = zlib.compressobj(9, zlib.DEFLATED, -15, 9, zlib.Z_DEFAULT_STRATEGY, DICTIONARY)
    deflated = deflate.compress(columns) + deflate.flush()
    bound = FREE_INDEX_BYTES + MAX_INDEX_EXPANSION * (len(deflated) + len(checksums))
    if len(deflated) < len(columns) <= bound:
        return b"\1" + deflated + checksums
    return b"\0" + columns + checksums


def read_index(stored: bytes, data_bytes: int, file_bytes: int, names_coders: bool) -> Index:
    """Parse and check an index.

    Everything that it declares is compared with what the file can hold before memory is spent on
    it: what is allocated stays within a constant times the file's size.

    Args:
        stored: the index as `write_index` returned it.
        data_bytes: of the chunks of all tensors.
        file_bytes: of the whole file.
        names_coders: whether the file is of version 3.

    Raises:
        ValueError: if anything is wrong.
    """
    columns, checksums = _inflate(stored)
    cursor = _Cursor(columns)
    count = cursor.varint()
    if 4 * count > len(stored):
        raise ValueError(f"it cannot hold the {count} tensors that it declares")
    note = cursor.take(cursor.varint())
    coders = tuple(_read_coders(cursor)) if names_coders else ()
    names = list(_read_names(cursor, count))
    types = [_read_type(cursor, name) for name in names]
    cuts: list[Cut] = []
    for name, (dtype, shape) in zip(names, types, strict=True):
        with _naming(name):
            cuts.append(_read_coding(cursor, dtype, shape))
    sizes: list[tuple[int, ...]] = []
    stored_total = decoded_total = 0
    for name, cut in zip(names, cuts, strict=True):
        with _naming(name):
            sizes.append(_read_sizes(cursor, cut, data_bytes - stored_total))
        stored_total += sum(sizes[-1])
        decoded_total += cut.bytes
        if stored_total > data_bytes:
            raise ValueError(
                f"tensor {name!r} ends at byte {stored_total} of the data, which has {data_bytes}"
            )
        if decoded_total > FREE_BYTES + MAX_EXPANSION * file_bytes:
            raise ValueError(
                f"up to tensor {name!r} it would decode to {decoded_total:,} bytes, more than a "
                f"file of {file_bytes:,} bytes may ({FREE_BYTES:,} + {MAX_EXPANSION} times its "
                "size)"
            )
    if checksums is None:
        checksums = cursor.take(4 * count)
    if cursor.left or len(checksums) != 4 * count or stored_total != data_bytes:
        raise ValueError("its index does not account for every byte of the file")
    crcs = (int.from_bytes(checksums[4 * i : 4 * i + 4], "little") for i in range(count))
    rows = zip(names, types, cuts, crcs, sizes, strict=True)
    entries = {n: Entry(*kind, cut.coding, crc, size) for n, kind, cut, crc, size in rows}
    return Index(entries, note, coders)


class _Cursor:
    """A place in the columns."""

    def __init__(self, data: bytes) -> None:
        self._data, self._position = data, 0

    @property
    def left(self) -> int:
        return len(self._data) - self._position

    def take(self, size: int) -> bytes:
        if size > self.left:
            raise ValueError("its index ends too early")
        self._position += size
        return self._data[self._position - size : self._position]

    def byte(self) -> int:
        return self.take(1)[0]

    def varint(self) -> int:
        value, self._position = read_varint(self._data, self._position)
        return value


@contextmanager
def _naming(name: str) -> Iterator[None]:
    """Name the tensor in errors."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"tensor {name!r}: {error}") from error


def _inflate(stored: bytes) -> tuple[bytes, bytes | None]:
    """Return the columns, and the checksums if they do not stand among them."""
    if stored[:1] == b"\0":
        return stored[1:], None
    if stored[:1] != b"\1":
        raise ValueError(f"its index has the unknown form {stored[:1].hex()}; upgrade zoopress")
    inflate = zlib.decompressobj(-15, DICTIONARY)
    try:
        bound = FREE_INDEX_BYTES + MAX_INDEX_EXPANSION * len(stored)
        columns = inflate.decompress(stored[1:], bound)
    except zlib.error as error:
        raise ValueError(f"its index cannot be inflated: {error}") from error
    if not inflate.eof:
        raise ValueError("its index is cut off, or larger than an index of its size may be")
    return columns, inflate.unused_data


def _read_names(cursor: _Cursor, count: int) -> Iterator[str]:
    lengths = [(cursor.varint(), cursor.varint()) for _ in range(count)]
    previous = b""
    for shared, length in lengths:
        if shared > len(previous) or not 1 <= shared + length <= MAX_NAME_BYTES:
            raise ValueError(f"a name after {previous!r} has an impossible length")
        raw = previous[:shared] + cursor.take(length)
        if raw <= previous:
            raise ValueError(f"the name {raw!r} stands twice or out of order")
        if b"\0" in raw:
            raise ValueError(f"the name {raw!r} holds a NUL")
        previous = raw
        try:
            yield raw.decode()
        except UnicodeDecodeError:
            raise ValueError(f"the name {raw!r} is not UTF-8") from None


def _spell_coders(coders: Sequence[CoderRecord]) -> Iterator[bytes]:
    yield varint(len(coders))
    for coder in coders:
        for text in (coder.name.encode(), coder.distribution.encode()):
            yield varint(len(text)) + text


def _read_coders(cursor: _Cursor) -> Iterator[CoderRecord]:
    count = cursor.varint()
    if not 1 <= count <= MAX_CODERS:
        raise ValueError(f"it names {count} coders; 1 to {MAX_CODERS} are allowed")
    known: set[str] = set()
    for _ in range(count):
        name, distribution = (_ascii(cursor.take(cursor.varint())) for _ in range(2))
        if name in known:
            raise ValueError(f"it names the coder {name!r} twice")
        known.add(name)
        yield CoderRecord(name, distribution)


def _ascii(raw: bytes) -> str:
    try:
        return raw.decode("ascii")
    except UnicodeDecodeError:
        raise ValueError(f"the coder's name or distribution {raw[:64]!r} is not ASCII") from None


def _spell_type(entry: Entry) -> bytes:
    number = next(i for i, (name, _) in enumerate(DTYPES) if name == entry.dtype)
    sizes = b"".join(map(varint, entry.shape))
    if len(entry.shape) < 7:
        return bytes((number | len(entry.shape) << 5,)) + sizes
    return bytes((number | 7 << 5, len(entry.shape))) + sizes


def _read_type(cursor: _Cursor, name: str) -> tuple[str, tuple[int, ...]]:
    with _naming(name):
        first = cursor.byte()
        number, dimensions = first & 31, first >> 5
        if number >= len(DTYPES):
            raise ValueError(f"its dtype number {number} is unknown; upgrade zoopress")
        if dimensions == 7:
            dimensions = cursor.byte()
            if dimensions < 7:
                raise ValueError(f"its {dimensions} dimensions are not in their shortest form")
        dtype, itemsize = DTYPES[number]
        check_tensor(dtype, range(dimensions))
        shape = tuple(cursor.varint() for _ in range(dimensions))
        # Torch multiplies the other sizes of an empty tensor too.
        if math.prod(size for size in shape if size) * itemsize >= 1 << 63:
            raise ValueError(f"its shape {shape} is too large")
        return dtype, shape


def _spell_coding(entry: Entry) -> bytes:
    coding = entry.coding
    if isinstance(coding, Octets):
        return bytes((_OCTETS,))
    if isinstance(coding, BytePlanes):
        return bytes((_ROTATED_PLANES if coding.rotated else _BYTE_PLANES,))
    if isinstance(coding, Integers):
        return bytes((_INTEGERS | (coding.scan == "columns") << 3 | coding.trellis << 4,))
    has_width = coding.width is not None
    first = _CODES | (coding.bits - 1) << 3 | coding.signed << 6 | has_width << 7
    spare = entry.shape[-1] * 8 // coding.bits - coding.per_row
    return bytes((first, spare)) + (varint(coding.width) if coding.width is not None else b"")


def _read_coding(cursor: _Cursor, dtype: str, shape: tuple[int, ...]) -> Cut:
    first = cursor.byte()
    number, flags = first & 7, first >> 3
    coding: Coding | None = None
    if number == _CODES and shape:
        bits = (flags & 7) + 1
        per_row = shape[-1] * 8 // bits - cursor.byte()
        width = cursor.varint() if flags >> 4 else None
        coding = PackedCodes(bits, per_row, bool(flags >> 3 & 1), width)
    elif number == _INTEGERS and flags < 4:
        coding = Integers("columns" if flags & 1 else "rows", bool(flags & 2))
    elif flags == 0 and number < _CODES:
        coding = Octets() if number == _OCTETS else BytePlanes(number == _ROTATED_PLANES)
    if coding is None:
        raise ValueError(f"its coding {first} is unknown for {dtype}; upgrade zoopress")
    return Cut(dtype, shape, coding)


def _read_sizes(cursor: _Cursor, cut: Cut, room: int) -> tuple[int, ...]:
    chunks = cut.band_count * cut.planes
    if chunks > min(cursor.left, room):  # each takes a byte of both at least
        raise ValueError(f"its {cut.bytes} bytes need more chunks than there are")
    sizes = tuple(cursor.varint() for _ in range(chunks))
    if 0 in sizes:
        raise ValueError("a chunk cannot be stored in 0 bytes")
    return sizes
