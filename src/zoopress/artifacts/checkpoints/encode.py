"""Encode a checkpoint into a `.zpz` file, slice by slice; go on where a killed run stopped."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, cast

from zoopress.artifacts.checkpoints.journal import Journal, locked
from zoopress.artifacts.checkpoints.safetensors_file import Checkpoint, open_checkpoint
from zoopress.coding.entropy_coder import NamedCoder
from zoopress.coding.named import choose_coder
from zoopress.coding.zpz.index import encoded_name
from zoopress.coding.zpz.writer import ZpzWriter
from zoopress.errors import InputError, ZoopressError
from zoopress.progress import Reporter

if TYPE_CHECKING:
    from zoopress.coding.coder import Coder
    from zoopress.plugins import Plugins


@dataclass(frozen=True)
class Encoded:
    """What was done.

    Attributes:
        tensors: how many there are.
        resumed: how many of these an earlier run had finished.
        original_bytes: of the checkpoint's files.
        bytes: of the file that was written.
    """

    tensors: int
    resumed: int
    original_bytes: int
    bytes: int


def encode_checkpoint(
    path: Path,
    out: Path,
    *,
    coder: str = "auto",
    threads: int | None = None,
    force: bool = False,
    reporter: Reporter | None = None,
    plugins: Plugins | None = None,
) -> Encoded:
    """Encode a safetensors file, or a folder with one or with shards and their index.

    `decode_checkpoint` gives back files that are identical to the last byte. Memory stays below a
    few megabytes a thread, whatever the size of a tensor.

    Args:
        path: the checkpoint.
        out: the `.zpz` file; it appears when it is whole.
        coder: of all chunks: "auto", or a registered name.
        threads: by default one for each core.
        force: whether to replace a file that is there.
        reporter: is told how far it is.
        plugins: where coders are found; everything installed by default.

    Raises:
        InputError: if `out` is there, or another process is writing it.
        PluginError: if no plugin registers the coder.
        SourceError: if a file is damaged, missing, or changes while it is read.
        ZoopressError: if `out` cannot be written; the next run goes on from there.
    """
    reporter = reporter or Reporter()
    chosen = choose_coder(coder, plugins)
    if out.is_dir() or (out.exists() and not force):
        raise InputError(f"{out} exists already. Choose another name, or give --force.")
    with open_checkpoint(path) as checkpoint, _told(out), locked(out):
        names = sorted(checkpoint.places, key=encoded_name)
        journal = Journal(out, _identity(checkpoint, chosen), names)
        try:
            return _encode(checkpoint, out, journal, names, chosen, threads, reporter)
        finally:
            journal.close()


def _encode(
    checkpoint: Checkpoint,
    out: Path,
    journal: Journal,
    names: list[str],
    coder: Coder,
    threads: int | None,
    reporter: Reporter,
) -> Encoded:
    resumed = len(journal.entries)
    if journal.discarded:
        reporter.warn(f"{out}.part was of another checkpoint or version; it starts anew.")
    elif resumed:
        reporter.line(f"{resumed} of {len(names)} tensors are encoded already.")
    total = sum(file.size for file in checkpoint.files.values())
    done = sum(entry.decoded_bytes for entry in journal.entries.values())
    title = f"Encoding {out.name}"
    with reporter.step(title, closing_line=False) as progress:
        name = ""

        def advance(size: int) -> None:
            nonlocal done
            done += size
            progress(name, done / total)

        writer = ZpzWriter(cast(BinaryIO, journal), coder, threads, journal.entries)
        for name, entry in writer.write(names[resumed:], checkpoint.source, advance):
            journal.add(name, entry)
        for file in checkpoint.files.values():
            file.check_unchanged()
        writer.finish(_note(checkpoint))
        journal.finish()
    return Encoded(len(names), resumed, total, out.stat().st_size)


def _identity(checkpoint: Checkpoint, coder: Coder) -> dict[str, object]:
    files = [
        [name, *file.identity, sha256(file.header).hexdigest()]
        for name, file in checkpoint.files.items()
    ]
    by: object = coder
    if isinstance(coder, NamedCoder):
        by = [coder.name, coder.distribution, coder.version]
    return {"zoopress": version("zoopress"), "coder": by, "files": files}


def _note(checkpoint: Checkpoint) -> bytes:
    """Return what gives back the files as they were, beside the tensors."""
    files = [[name, file.header.decode()] for name, file in checkpoint.files.items()]
    return json.dumps({"files": files, "index": checkpoint.index}, ensure_ascii=False).encode()


@contextmanager
def _told(out: Path) -> Iterator[None]:
    """Turn what the disk refuses into an error that says what to do."""
    try:
        yield
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else str(error)
        raise ZoopressError(
            f"{out} cannot be written: {reason}. What is finished is kept in {out.name}.part; make "
            "room, and the same command goes on from there."
        ) from error
