"""Write tensors into a `.zpz` file, band by band, by any number of threads."""

from __future__ import annotations

import os
import secrets
import struct
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from zoopress.coding.coder import Coder
from zoopress.coding.entropy_coder import NamedCoder
from zoopress.coding.layout import StoredTensor
from zoopress.coding.zpz.bands import CHUNK_SYMBOLS, Band, Cut
from zoopress.coding.zpz.checksums import combine_crc32
from zoopress.coding.zpz.index import (
    FREE_BYTES,
    MAX_EXPANSION,
    CoderRecord,
    Entry,
    encoded_name,
    write_index,
)
from zoopress.coding.zpz.parallel import map_in_order
from zoopress.coding.zpz.sources import (
    Coded,
    Source,
    TensorSource,
    best_cut,
    code_bands,
    code_best,
    raw_chunks,
    size_bytes,
)
from zoopress.resources import usable_cores

HEAD = b"\x89ZPZ\x02"  # no text, as PNG's; the last byte is the version
NAMING_HEAD = b"\x89ZPZ\x03"  # of a file that names coders; everything else reads version 2
FOOT = struct.Struct("<II")  # CRC-32 of the index, its length


def write_zpz(
    path: Path,
    tensors: Mapping[str, StoredTensor],
    progress: Callable[[str], None] | None = None,
    *,
    coder: Coder = "auto",
    threads: int | None = None,
) -> None:
    """Write tensors to `path`, which appears whole or not at all.

    The same tensors give the same bytes, in whatever order they come and whatever the threads.

    Args:
        path: replaced if it exists.
        tensors: by name: 1 to 1024 bytes of UTF-8 without NUL.
        progress: called with a line for each tensor.
        coder: of all chunks.
        threads: by default one for each core.

    Raises:
        ValueError: if a name, a dtype or a layout is not one that can be stored.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}")
    try:
        with temporary.open("xb") as file:
            writer = ZpzWriter(file, coder, threads)
            for name, entry in writer.write(tensors, lambda name: TensorSource(tensors[name])):
                if progress is not None:
                    sizes = f"{entry.decoded_bytes:,} bytes stored in {entry.stored_bytes:,}"
                    progress(f"{name}: {sizes}")
            writer.finish()
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


class ZpzWriter:
    """Writes a file from its beginning to its end; never goes back.

    Args:
        file: at its beginning; or, to go on with a file, after the last tensor of `entries`.
        coder: of all chunks.
        threads: by default one for each core.
        entries: what is in the file already, by name, in its order.
    """

    def __init__(
        self,
        file: BinaryIO,
        coder: Coder = "auto",
        threads: int | None = None,
        entries: Mapping[str, Entry] | None = None,
    ) -> None:
        self._file, self._coder = file, coder
        self._records: tuple[CoderRecord, ...] = ()
        if isinstance(coder, NamedCoder):
            self._records = (CoderRecord(coder.name, coder.distribution),)
        self._threads = threads or usable_cores()
        self._entries = [(encoded_name(name), entry) for name, entry in (entries or {}).items()]
        self._decoded = sum(entry.decoded_bytes for _, entry in self._entries)
        self._stored = sum(entry.stored_bytes for _, entry in self._entries)
        if not self._entries:
            file.write(NAMING_HEAD if self._records else HEAD)

    def write(
        self,
        names: Iterable[str],
        open_source: Callable[[str], Source],
        advance: Callable[[int], None] = lambda size: None,
    ) -> Iterator[tuple[str, Entry]]:
        """Write tensors in the order of the file; yield each once it is written.

        Args:
            names: those of the tensors, which must come after those that are written already.
            open_source: opens a tensor, when its turn comes.
            advance: called with the number of bytes that were coded since the last call.

        Raises:
            ValueError: if a tensor cannot be stored, naming it.
        """
        raw_names = {encoded_name(name): name for name in names}
        jobs = (job for _, name in sorted(raw_names.items()) for job in _jobs(name, open_source))
        crc = 0
        sizes: list[int] = []
        for job, coded in map_in_order(self._code, jobs, self._threads):
            for stream in self._bounded(job, coded):
                self._file.write(stream)
                sizes.append(len(stream))
            crc = combine_crc32(crc, coded.crc, coded.size)
            advance(coded.size)
            if job.last:
                source = job.source
                cut = Cut(source.dtype, source.shape, coded.coding)
                if not cut.contiguous:
                    crc = zlib.crc32(source.read(0, cut.bytes).data)
                entry = Entry(source.dtype, source.shape, coded.coding, crc, tuple(sizes))
                self._entries.append((encoded_name(job.name), entry))
                yield job.name, entry
                crc, sizes = 0, []

    def finish(self, note: bytes = b"") -> None:
        """Write what comes after the last tensor.

        Args:
            note: kept beside the tensors.
        """
        index = write_index(self._entries, note, self._records)
        self._file.write(index + FOOT.pack(zlib.crc32(index), len(index)))

    def _code(self, job: _Job) -> Coded:
        with _storing(job.name):
            if job.cut is None:
                return code_best(job.source, self._coder)
            return code_bands(job.source, job.cut, job.bands, self._coder)

    def _bounded(self, job: _Job, coded: Coded) -> list[bytes]:
        """Return the chunks, raw if the file would decode to more than it may."""
        streams = coded.streams
        self._decoded += coded.size
        if self._decoded > FREE_BYTES + MAX_EXPANSION * (self._stored + sum(map(len, streams))):
            cut = Cut(job.source.dtype, job.source.shape, coded.coding)
            streams = raw_chunks(job.source, cut, job.bands or cut.bands())
        self._stored += sum(map(len, streams))
        return streams


@dataclass(frozen=True)
class _Job:
    """Bands of a tensor to code; or a whole small tensor, if its cut is not decided yet."""

    name: str
    source: Source
    cut: Cut | None = None
    bands: tuple[Band, ...] = ()
    last: bool = True


def _jobs(name: str, open_source: Callable[[str], Source]) -> Iterator[_Job]:
    with _storing(name):
        source = open_source(name)
        if size_bytes(source) <= CHUNK_SYMBOLS:
            yield _Job(name, source)
            return
        cut = best_cut(source)
    left = cut.band_count
    for band in cut.bands():
        left -= 1
        yield _Job(name, source, cut, (band,), left == 0)


@contextmanager
def _storing(name: str) -> Iterator[None]:
    """Name the tensor in errors."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"Tensor {name!r} cannot be stored: {str(error).rstrip('.')}.") from error
