"""Read tensors from a `.zpz` file that need not be trusted: each alone, by many threads."""

from __future__ import annotations

import io
import sys
import threading
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, BinaryIO

import numpy as np

from zoopress.coding.coder import NAMED, decode_plane
from zoopress.coding.entropy_coder import FindCoder, NamedCoder, finder
from zoopress.coding.zpz.bands import ITEMSIZES, Band, Cut, Plane
from zoopress.coding.zpz.checksums import combine_crc32
from zoopress.coding.zpz.index import CoderRecord, Entry, Index, read_index
from zoopress.coding.zpz.parallel import map_in_order
from zoopress.coding.zpz.repack import Bytes
from zoopress.coding.zpz.writer import FOOT, HEAD, NAMING_HEAD
from zoopress.errors import ArtifactError, PluginError, nearest
from zoopress.resources import usable_cores

if TYPE_CHECKING:
    from torch import Tensor

_TAIL_BYTES = 1 << 14
"""Read at once from the end of the file; most indexes lie within."""
_BLOCK_BYTES = 1 << 22
"""Chunks of a tensor are read together up to this size: a remote file answers each read slowly."""
_THREAD_BYTES = 1 << 27
"""A file has a thread for each so many bytes of tensors: a thread needs some megabytes itself."""
_AHEAD_BYTES = 1 << 23
"""Bytes of tensors that are decoded before they are asked for."""


class ZpzReader:
    """An open file; any number of threads may use it.

    Opening checks the index against the file's size and allocates no more than a constant times
    that; tensors are decoded on request. Use it as a context manager.

    Args:
        source: a path, or an open file that can seek, such as fsspec's; it is left open.
        threads: at most; by default one for each core. Small files take fewer.
        find_coder: finds the coders that the file names; among all that is installed by default.

    Attributes:
        path: what the file is called.
        size: of the file in bytes.
        note: what its writer kept beside the tensors.
        coders: those that the file names, since the format itself does not have them.

    Raises:
        ArtifactError: from every method, naming the file, the tensor and what is wrong.
    """

    def __init__(
        self,
        source: Path | str | BinaryIO,
        threads: int | None = None,
        find_coder: FindCoder | None = None,
    ) -> None:
        self._find_coder = find_coder or finder()
        self._lock = threading.Lock()  # of the file's position
        self._scheduling = threading.Lock()
        self._pool: ThreadPoolExecutor | None = None
        self._expected: deque[str] = deque()
        self._ahead: dict[str, Future[Tensor]] = {}
        self._owned = isinstance(source, (str, Path))
        if isinstance(source, (str, Path)):
            self.path = str(source)
            try:
                self._file: BinaryIO = Path(source).open("rb", buffering=0)  # noqa: SIM115
            except OSError as error:
                raise ArtifactError(f"{source} cannot be opened: {error.strerror}.") from error
        else:
            self._file = source
            self.path = str(getattr(source, "path", None) or getattr(source, "name", "the file"))
        try:
            with self._told(None):
                index = self._read_index()
                self._entries, self.note = index.entries, index.note
                self.coders: tuple[CoderRecord, ...] = index.coders
        except BaseException:
            self.close()
            raise
        decoded = sum(entry.decoded_bytes for entry in self._entries.values())
        self._threads = min(threads or usable_cores(), 1 + decoded // _THREAD_BYTES)
        self._offsets: dict[str, int] = {}
        offset = len(HEAD)
        for name, entry in self._entries.items():
            self._offsets[name] = offset
            offset += entry.stored_bytes

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
        """Wait for threads, and close the file if it was opened here."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
            self._pool = None
        if self._owned:
            self._file.close()

    def names(self) -> list[str]:
        """Return the tensors' names in the order of the file, which is that of their bytes."""
        return list(self._entries)

    def entry(self, name: str) -> Entry:
        """Return what the file says of a tensor."""
        entry = self._entries.get(name)
        if entry is None:
            known = nearest(name, self._entries)
            raise ArtifactError(f"{self.path} has no tensor {name!r}.{known}")
        return entry

    def info(self, name: str) -> tuple[str, tuple[int, ...]]:
        """Return a tensor's dtype, as torch spells it without "torch.", and its shape."""
        entry = self.entry(name)
        return entry.dtype, entry.shape

    def stored_bytes(self, name: str) -> int:
        """Return how many bytes of the file a tensor takes, without its part of the index."""
        return self.entry(name).stored_bytes

    def read(self, name: str) -> Tensor:
        """Decode one tensor, exactly as it was stored, on the CPU and contiguous."""
        with self._scheduling:
            waiting = self._ahead.pop(name, None)
        tensor = self._decode(name, self._threads) if waiting is None else waiting.result()
        self._decode_ahead()
        return tensor

    def expect(self, names: Iterable[str]) -> None:
        """Decode tensors in the background, in the order in which they are about to be read.

        What is decoded and not yet read takes no more than a few megabytes.
        """
        expected = [name for name in names if self.entry(name).decoded_bytes <= _AHEAD_BYTES]
        if self._threads > 1:
            self._expected.extend(expected)
            self._decode_ahead()

    def pieces(self, name: str) -> Iterator[Bytes]:
        """Decode a tensor's bytes, row-major and little-endian, piece by piece.

        Raises:
            ArtifactError: after the last piece, if they do not match their checksum.
        """
        cut = self._cut(name)
        if cut.contiguous:
            with self._told(name):
                yield from self._bands(name, lambda start, stop: np.empty(stop - start, np.uint8))
        else:
            yield self._whole(name, np.empty(cut.bytes, np.uint8), self._threads)

    def _decode(self, name: str, threads: int) -> Tensor:
        import torch

        entry = self.entry(name)
        # Torch's memory is aligned for torch's kernels, numpy's is not.
        tensor = torch.empty(entry.decoded_bytes, dtype=torch.uint8)
        data = self._whole(name, tensor.numpy(), threads)
        if sys.byteorder == "big":
            data[:] = data.reshape(-1, ITEMSIZES[entry.dtype])[:, ::-1].reshape(-1)
        dtype: torch.dtype = getattr(torch, entry.dtype)
        if data.size == 0:  # torch cannot view what has no bytes
            return torch.empty(entry.shape, dtype=dtype)
        return tensor.view(dtype).reshape(entry.shape)

    def _decode_ahead(self) -> None:
        """Have threads decode what is expected next, as far as there is room for it."""
        with self._scheduling:
            room = _AHEAD_BYTES - sum(self.entry(name).decoded_bytes for name in self._ahead)
            while self._expected and room > 0:
                name = self._expected.popleft()
                room -= self.entry(name).decoded_bytes
                if self._pool is None:
                    self._pool = ThreadPoolExecutor(self._threads, "zoopress-decoder")
                self._ahead[name] = self._pool.submit(self._decode, name, 1)

    def _whole(self, name: str, data: Bytes, threads: int) -> Bytes:
        """Fill the bytes of a tensor."""
        with self._told(name):
            for _ in self._bands(name, lambda start, stop: data[start:stop], threads):
                pass
            if not self._cut(name).contiguous:
                self._check(name, zlib.crc32(data.data))
        return data

    def _bands(
        self, name: str, place: Callable[[int, int], Bytes], threads: int | None = None
    ) -> Iterator[Bytes]:
        """Decode bands in order, each into what `place` gives for its range of bytes."""
        cut = self._cut(name)

        def decode(stored: tuple[Band, list[memoryview]]) -> tuple[Bytes, int]:
            band, streams = stored
            data = place(*cut.byte_range(band))
            cut.merge(band, data, lambda planes: self._fill(cut, planes, streams))
            if self.entry(name).dtype == "bool" and data.max() > 1:
                raise ValueError("it is of type bool but holds bytes other than 0 and 1")
            return data, zlib.crc32(data.data) if cut.contiguous else 0

        crc = 0
        for _, (data, part) in map_in_order(decode, self._stored(name), threads or self._threads):
            crc = combine_crc32(crc, part, data.size)
            yield data
        if cut.contiguous:
            self._check(name, crc)

    def _stored(self, name: str) -> Iterator[tuple[Band, list[memoryview]]]:
        """Read the chunks of each band; those of several at once where they are small."""
        entry, cut = self.entry(name), self._cut(name)
        bands = cut.bands()
        sizes = iter(entry.sizes)
        offset = self._offsets[name]
        block: list[tuple[Band, list[int]]] = []
        total = 0
        for left in range(cut.band_count - 1, -1, -1):
            chunk_sizes = [next(sizes) for _ in range(cut.planes)]
            block.append((next(bands), chunk_sizes))
            total += sum(chunk_sizes)
            if total < _BLOCK_BYTES and left:
                continue
            data = memoryview(self._read_at(offset, total))
            offset += total
            place = 0
            for band, chunk_sizes in block:
                streams = []
                for size in chunk_sizes:
                    streams.append(data[place : place + size])
                    place += size
                yield band, streams
            block, total = [], 0

    def _check(self, name: str, crc: int) -> None:
        if crc != self.entry(name).crc:
            raise ValueError("its bytes do not match their checksum")

    def _fill(self, cut: Cut, planes: list[Plane], streams: list[memoryview]) -> None:
        named = self._named if any(stream[0] >= NAMED for stream in streams) else ()
        for plane, stream in zip(planes, streams, strict=True):
            decode_plane(stream, plane, trellis=cut.trellis, named=named)

    @cached_property
    def _named(self) -> tuple[NamedCoder, ...]:
        """The coders that the file names, found once a chunk needs one."""
        return tuple(self._find(coder) for coder in self.coders)

    def _find(self, record: CoderRecord) -> NamedCoder:
        try:
            return self._find_coder(record.name)
        except PluginError as error:
            brought = ""
            if record.distribution:
                brought = (
                    f" The file says that the distribution {record.distribution!r} brings it; "
                    "install that if you trust it."
                )
            raise ArtifactError(
                f"{self.path} is coded by {record.name!r}, which is no coder of the format: "
                f"{error}{brought}"
            ) from error

    def _cut(self, name: str) -> Cut:
        entry = self.entry(name)
        return Cut(entry.dtype, entry.shape, entry.coding)

    def _read_index(self) -> Index:
        size = self.size = self._file.seek(0, io.SEEK_END)
        at = max(0, size - _TAIL_BYTES)
        tail = self._read_at(at, size - at)
        head = tail[: len(HEAD)] if at == 0 else self._read_at(0, len(HEAD))
        if head[:-1] != HEAD[:-1]:
            raise ValueError("it is not a .zpz file, or its first bytes are damaged")
        if head not in (HEAD, NAMING_HEAD):
            raise ValueError(
                f"its format has version {head[-1]}, but this zoopress reads versions {HEAD[-1]} "
                f"and {NAMING_HEAD[-1]}; upgrade zoopress, or encode it again"
            )
        room = size - len(HEAD) - FOOT.size
        if room < 0:
            raise ValueError(f"it ends after {size} bytes, within its head or foot")
        crc, length = FOOT.unpack(tail[-FOOT.size :])
        if length > room:
            raise ValueError(f"its index of {length} bytes has no room in {size} bytes")
        start = size - FOOT.size - length
        index = tail[start - at : -FOOT.size] if start >= at else self._read_at(start, length)
        if zlib.crc32(index) != crc:
            raise ValueError("its index does not match its checksum; is the file whole?")
        return read_index(index, room - length, size, head == NAMING_HEAD)

    def _read_at(self, offset: int, size: int) -> bytes:
        with self._lock:
            self._file.seek(offset)
            parts = []
            while size and (part := self._file.read(size)):
                parts.append(part)
                size -= len(part)
        if size:
            raise ValueError("the file became shorter while it was read")
        return parts[0] if len(parts) == 1 else b"".join(parts)

    @contextmanager
    def _told(self, name: str | None) -> Iterator[None]:
        """Turn what is wrong with the file into an error that names it."""
        try:
            yield
        except ArtifactError:
            raise
        except (ValueError, OSError) as error:
            where = self.path if name is None else f"{self.path}: tensor {name!r}"
            text = str(error).rstrip(".")
            raise ArtifactError(
                f"{where} cannot be read: {text[:1].lower()}{text[1:]}. Fetch the file again, or "
                "ask who made it."
            ) from error
