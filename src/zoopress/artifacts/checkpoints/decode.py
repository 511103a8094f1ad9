"""Decode a `.zpz` file back into safetensors, piece by piece."""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import BinaryIO

from zoopress.artifacts.checkpoints.safetensors_file import (
    build_header,
    is_plain_name,
    parse_header,
)
from zoopress.coding.zpz.reader import ZpzReader
from zoopress.errors import ArtifactError, InputError, ZoopressError
from zoopress.progress import Reporter


@dataclass(frozen=True)
class Decoded:
    """What was done.

    Attributes:
        files: that were written; none if the tensors were only verified.
        tensors: how many were decoded; each matched its checksum.
        bytes: of these tensors.
    """

    files: list[Path]
    tensors: int
    bytes: int


@contextmanager
def open_zpz(place: str, threads: int | None = None) -> Iterator[ZpzReader]:
    """Open a `.zpz` file on disk, or at a URL such as hf://org/name/model.zpz.

    Of what is remote, only the index and the tensors that are asked for are fetched.
    """
    if "://" not in place:
        with ZpzReader(Path(place), threads) as reader:
            yield reader
        return
    import fsspec

    try:
        # Without a cache of its own, which would fetch megabytes around each read.
        system, path = fsspec.core.url_to_fs(place)
        opened = system.open(path, "rb", cache_type="none")
    except (OSError, ValueError, ImportError) as error:
        raise ArtifactError(f"{place} cannot be opened: {error}") from error
    with opened as file, ZpzReader(file, threads) as reader:
        yield reader


def decode_checkpoint(
    reader: ZpzReader,
    out: Path | None,
    names: Sequence[str] = (),
    *,
    force: bool = False,
    reporter: Reporter | None = None,
) -> Decoded:
    """Decode a file; every tensor is compared with its checksum.

    What `encode_checkpoint` made of shards becomes the same shards in a folder; everything else
    becomes one file. Memory stays below a few megabytes a thread.

    Args:
        reader: of the file.
        out: the file or folder to write; None to write nothing.
        names: the tensors that are wanted, in one file; by default all.
        force: whether to replace files that are there.
        reporter: is told how far it is.

    Raises:
        InputError: if a file is there.
        ArtifactError: if what is stored is damaged.
        ZoopressError: if a file cannot be written; none is left half-written.
    """
    reporter = reporter or Reporter()
    shards, index = _shards(reader, names)
    paths = [] if out is None else _paths(out, shards, index, force)
    total = sum(reader.entry(name).decoded_bytes for shard in shards for name in shard.tensors)
    done = 0
    title = "Verifying" if out is None else f"Decoding {out.name}"
    with reporter.step(title, closing_line=False) as progress:
        for shard, path in zip_longest(shards, paths[: len(shards)]):
            with _whole_file(path) as file:
                file.write(len(shard.header).to_bytes(8, "little") + shard.header)
                for name in shard.tensors:
                    for piece in reader.pieces(name):
                        file.write(piece.data)
                        done += piece.size
                        progress(name, done / total)
        if index is not None and paths:
            with _whole_file(paths[-1]) as file:
                file.write(index[1].encode())
    return Decoded(paths, sum(len(shard.tensors) for shard in shards), total)


def is_sharded(reader: ZpzReader) -> bool:
    """Tell whether the tensors came from a folder of shards, and decode to one."""
    shards, index = _shards(reader, ())
    return len(shards) > 1 or index is not None


@dataclass(frozen=True)
class _Shard:
    """A file to write: its name, its header, and its tensors in order."""

    name: str
    header: bytes
    tensors: list[str]


def _shards(reader: ZpzReader, names: Sequence[str]) -> tuple[list[_Shard], tuple[str, str] | None]:
    """Return the files that the tensors came from, or one of those that are wanted."""
    try:
        note = {} if names or not reader.note else json.loads(reader.note)
        if not isinstance(note, dict) or "files" not in note:
            wanted = {name: reader.info(name) for name in names or reader.names()}
            return [_Shard("model.safetensors", build_header(wanted), list(wanted))], None
        shards = [_original(reader, name, header.encode()) for name, header in note["files"]]
        index = tuple(note["index"]) if note["index"] else None
        file_names = [*(shard.name for shard in shards), *(index[:1] if index else ())]
        if not all(map(is_plain_name, file_names)) or len({*file_names}) < len(file_names):
            raise ValueError(f"its files cannot be called {file_names}")
        if index is not None and not isinstance(index[1], str):
            raise ValueError("the text of its index is none")
    except ArtifactError:
        raise
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise ArtifactError(
            f"{reader.path}: what it says of the original files cannot be used: {error}. Decode "
            "its tensors by name, with --tensor."
        ) from error
    return shards, index


def _original(reader: ZpzReader, name: str, header: bytes) -> _Shard:
    slices = parse_header(header)
    for tensor, piece in slices.items():
        if reader.info(tensor) != (piece.dtype, piece.shape):
            raise ValueError(f"tensor {tensor!r} is another than in {name!r}")
    return _Shard(name, header, list(slices))


def _paths(
    out: Path, shards: list[_Shard], index: tuple[str, str] | None, force: bool
) -> list[Path]:
    """Return the file of each shard, and of the index, and make the folder that they need."""
    if len(shards) == 1 and index is None:
        paths = [out / shards[0].name if out.is_dir() else out]
    else:
        paths = [out / name for name in (*(s.name for s in shards), *(index[:1] if index else ()))]
    for path in paths:
        if path.is_dir() or (path.exists() and not force):
            raise InputError(f"{path} exists already. Choose another name, or give --force.")
    with _told(paths[0]):
        paths[0].parent.mkdir(parents=True, exist_ok=True)
    return paths


@contextmanager
def _whole_file(path: Path | None) -> Iterator[BinaryIO]:
    """Open a file that appears when it is whole; what is written to None is dropped."""
    if path is None:
        with open(os.devnull, "wb") as nothing:
            yield nothing
        return
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}")
    try:
        with _told(path):
            with temporary.open("xb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


@contextmanager
def _told(path: Path) -> Iterator[None]:
    """Turn what the disk refuses into an error that says what to do."""
    try:
        yield
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else str(error)
        raise ZoopressError(
            f"{path} cannot be written: {reason}. Make room, or choose another place with --out."
        ) from error
