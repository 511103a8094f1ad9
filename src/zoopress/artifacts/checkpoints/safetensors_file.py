"""The files of a checkpoint, read in slices: safetensors, by their headers alone.

8 bytes      length of the header, little-endian
header       JSON: name to dtype, shape and the offsets of its bytes; spaces may follow
data         the tensors' bytes without gaps
"""

from __future__ import annotations

import json
import math
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from zoopress.coding.layout import Layout
from zoopress.coding.zpz.bands import ITEMSIZES
from zoopress.coding.zpz.repack import Bytes
from zoopress.errors import InputError, SourceError

MAX_HEADER_BYTES = 100_000_000  # safetensors' own bound

DTYPES = {
    "BOOL": "bool",
    "U8": "uint8",
    "I8": "int8",
    "U16": "uint16",
    "I16": "int16",
    "U32": "uint32",
    "I32": "int32",
    "U64": "uint64",
    "I64": "int64",
    "F16": "float16",
    "BF16": "bfloat16",
    "F32": "float32",
    "F64": "float64",
    "C64": "complex64",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
    "F8_E4M3FNUZ": "float8_e4m3fnuz",
    "F8_E5M2FNUZ": "float8_e5m2fnuz",
    "F8_E8M0": "float8_e8m0fnu",
}


@dataclass(frozen=True)
class Slice:
    """Where the bytes of a tensor lie in a file's data, and what they are.

    Types that have no name in torch, such as four-bit floats, are rows of bytes here.
    """

    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int


def parse_header(header: bytes, data_bytes: int | None = None) -> dict[str, Slice]:
    """Parse a header; give the tensors in the order of their bytes.

    Args:
        header: of a file.
        data_bytes: that follow it, where that is known.

    Raises:
        ValueError: if it is no header of such a file.
    """
    try:
        fields = json.loads(header)
        fields.pop("__metadata__", None)
        slices = {name: _slice(field) for name, field in fields.items()}
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise ValueError(f"its header is no header of safetensors ({error})") from error
    slices = dict(sorted(slices.items(), key=lambda item: (item[1].start, item[1].stop)))
    at = 0
    for name, piece in slices.items():
        size = math.prod(piece.shape) * ITEMSIZES[piece.dtype]
        if piece.start != at or piece.stop - piece.start != size:
            raise ValueError(f"its header gives tensor {name!r} an impossible place")
        at = piece.stop
    if data_bytes not in (None, at):
        raise ValueError(f"its header speaks of {at:,} bytes, but {data_bytes:,} follow it")
    return slices


def build_header(tensors: dict[str, tuple[str, tuple[int, ...]]]) -> bytes:
    """Return the header of a file with tensors of these dtypes and shapes, in this order."""
    names = {ours: theirs for theirs, ours in DTYPES.items()}
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    at = 0
    for name, (dtype, shape) in tensors.items():
        stop = at + math.prod(shape) * ITEMSIZES[dtype]
        header[name] = {"dtype": names[dtype], "shape": list(shape), "data_offsets": [at, stop]}
        at = stop
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    return text + b" " * (-len(text) % 8)


class SafetensorsFile:
    """An open file; any number of threads may read it.

    Raises:
        SourceError: if it cannot be read, or is no safetensors file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        try:
            self._file = path.open("rb", buffering=0)
        except OSError as error:
            raise SourceError(f"{path} cannot be opened: {error.strerror}.") from error
        try:
            self.identity = self._identify()
            length = int.from_bytes(self._file.read(8), "little")
            if not 2 <= length <= min(MAX_HEADER_BYTES, self.size - 8):
                raise ValueError("it does not begin with the length of a header")
            self.header = self._file.read(length)
            self._data_at = 8 + length
            self.slices = parse_header(self.header, self.size - self._data_at)
        except (ValueError, OSError) as error:
            self._file.close()
            raise SourceError(
                f"{path} is not a whole safetensors file: {str(error).rstrip('.')}. Fetch it again."
            ) from error

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    @property
    def size(self) -> int:
        """The file's size in bytes, when it was opened."""
        return self.identity[0]

    def check_unchanged(self) -> None:
        """Check that the file is what it was when it was opened.

        Raises:
            SourceError: if not.
        """
        try:
            same = self._identify() == self.identity
        except OSError:
            same = False
        if not same:
            raise SourceError(
                f"{self.path} changed while it was encoded, so nothing was written. Run it again "
                "when nothing writes to it."
            )

    def read(self, start: int, stop: int) -> Bytes:
        """Return some bytes of the data."""
        data = np.empty(stop - start, np.uint8)
        left = data.data
        with self._lock:
            try:
                self._file.seek(self._data_at + start)
                while left:
                    count = self._file.readinto(left)
                    if not count:
                        raise OSError(0, "it became shorter")
                    left = left[count:]
            except OSError as error:
                raise SourceError(f"{self.path} cannot be read: {error.strerror}.") from error
        return data

    def _identify(self) -> tuple[int, int]:
        status = self.path.stat()
        return status.st_size, status.st_mtime_ns


class FileSource:
    """A tensor in a file."""

    layout: Layout | None = None

    def __init__(self, file: SafetensorsFile, name: str) -> None:
        self._file, self._slice = file, file.slices[name]
        self.dtype, self.shape = self._slice.dtype, self._slice.shape

    def read(self, start: int, stop: int) -> Bytes:
        """Return some of its bytes."""
        return self._file.read(self._slice.start + start, self._slice.start + stop)


@dataclass(frozen=True)
class Checkpoint:
    """The files of a model, open.

    Attributes:
        files: by name.
        index: name and text of the file that says which tensor is in which shard.
        places: the file of each tensor.
    """

    files: dict[str, SafetensorsFile]
    index: tuple[str, str] | None
    places: dict[str, SafetensorsFile]

    def source(self, name: str) -> FileSource:
        """Return a tensor."""
        return FileSource(self.places[name], name)


@contextmanager
def open_checkpoint(path: Path) -> Iterator[Checkpoint]:
    """Open a safetensors file, or a folder with one or with shards and their index.

    Raises:
        SourceError: if anything is missing, damaged or stored twice.
        InputError: if it is not clear what to open.
    """
    index = None
    paths = [path]
    if path.is_dir():
        index_path, paths = _find_files(path)
        index = (index_path.name, index_path.read_text(encoding="utf-8")) if index_path else None
    with ExitStack() as stack:
        files: dict[str, SafetensorsFile] = {}
        places: dict[str, SafetensorsFile] = {}
        for one in paths:
            file = files[one.name] = SafetensorsFile(one)
            stack.callback(file.close)
            for name in file.slices:
                if name in places:
                    where = f"{places[name].path.name} and {one.name}"
                    raise SourceError(f"{path}: tensor {name!r} is both in {where}.")
                places[name] = file
        yield Checkpoint(files, index, places)


def _find_files(folder: Path) -> tuple[Path | None, list[Path]]:
    indexes = sorted(folder.glob("*.safetensors.index.json"))
    if not indexes:
        paths = sorted(folder.glob("*.safetensors"))
        if len(paths) == 1:
            return None, paths
        found = ", ".join(path.name for path in paths) or "none"
        raise InputError(
            f"{folder} should hold one .safetensors file, or shards with their .index.json; it has "
            f"{found}. Name a file."
        )
    if len(indexes) > 1:
        found = ", ".join(path.name for path in indexes)
        raise InputError(f"{folder} has several checkpoints: {found}. Name a file.")
    try:
        names = set(json.loads(indexes[0].read_text(encoding="utf-8"))["weight_map"].values())
        paths = [folder / name for name in sorted(names) if is_plain_name(name)]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise SourceError(f"{indexes[0]} does not map tensors to files: {error}.") from error
    if not paths or len(paths) != len(names):
        raise SourceError(f"{indexes[0]} does not map tensors to files beside it.")
    return indexes[0], paths


def is_plain_name(name: object) -> bool:
    """Tell whether this is the name of a file in a folder, and cannot be anything else."""
    return (
        isinstance(name, str)
        and name not in ("", ".", "..")
        and not any(sign in name for sign in "/\\:\0")
        and len(name.encode(errors="replace")) <= 255
    )


def _slice(field: dict[str, Any]) -> Slice:
    kind, shape, (start, stop) = field["dtype"], field["shape"], field["data_offsets"]
    if not all(type(number) is int and 0 <= number < 1 << 63 for number in [*shape, start, stop]):
        raise ValueError("a size or an offset is no such number")
    if kind not in DTYPES:
        return Slice("uint8", (max(0, stop - start),), start, stop)
    return Slice(DTYPES[kind], tuple(shape), start, stop)
