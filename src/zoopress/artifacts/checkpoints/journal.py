"""What a killed encode has finished, so that the next one goes on from there.

    model.zpz.part           the file as far as it is written
    model.zpz.part.journal   a line of JSON that identifies the input, then one for each tensor:
                             its index entry, where its bytes end, and their CRC-32
    model.zpz.part.lock      held by whoever writes these

A line is written after the bytes that it speaks of, and these are compared with it before they are
relied on; so it does not matter what of either a crash of the machine lost.
"""

from __future__ import annotations

import json
import os
import time
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from zoopress.coding.zpz.index import Entry, encoded_name, read_index, write_index
from zoopress.coding.zpz.writer import HEAD
from zoopress.errors import InputError

_SYNC_SECONDS = 5.0
_BLOCK_BYTES = 1 << 20


class Journal:
    """The unfinished file, which a `ZpzWriter` writes to, and its journal.

    Args:
        out: the file that is to be written.
        what: plain data that identifies input, program and options.
        names: of all tensors, in the order of the file.

    Attributes:
        entries: the tensors that are written, by name, in order.
        discarded: whether there was an unfinished file of another input, which is gone.
    """

    def __init__(self, out: Path, what: dict[str, Any], names: Sequence[str]) -> None:
        self._out, self._part, self._path = out, _beside(out, "part"), _beside(out, "part.journal")
        self.entries: dict[str, Entry] = {}
        first = json.dumps(what, sort_keys=True)
        lines = _lines(self._path)
        self.discarded = lines[:1] not in ([], [first])
        self._file: BinaryIO = self._part.open("r+b" if self._part.exists() else "w+b")
        self._end = 0
        kept = [first]
        if lines[:1] == [first]:
            kept += self._recover(lines[1:], names)
        self._file.seek(self._end)
        self._file.truncate()
        self._crc = 0
        self._journal = self._path.open("w", encoding="utf-8")
        self._journal.writelines(f"{line}\n" for line in kept)
        self._journal.flush()
        self._synced = time.monotonic()

    def write(self, data: bytes) -> int:
        """Write to the end of the file."""
        self._crc = zlib.crc32(data, self._crc)
        self._end += len(data)
        return self._file.write(data)

    def add(self, name: str, entry: Entry) -> None:
        """Note a tensor that was just written."""
        self._file.flush()
        index = write_index([(encoded_name(name), entry)], b"").hex()
        line = json.dumps({"index": index, "end": self._end, "crc": self._crc})
        self._journal.write(f"{line}\n")
        self._journal.flush()
        self._crc = 0
        if time.monotonic() - self._synced > _SYNC_SECONDS:
            self.sync()

    def sync(self) -> None:
        """Force what is written to disk."""
        for file in (self._file, self._journal):
            file.flush()
            os.fsync(file.fileno())
        self._synced = time.monotonic()

    def finish(self) -> None:
        """Give the file, which is whole, its name."""
        self.sync()
        self.close()
        os.replace(self._part, self._out)
        self._path.unlink()

    def close(self) -> None:
        """Leave everything to the next run."""
        self._journal.close()
        self._file.close()

    def _recover(self, lines: Sequence[str], names: Sequence[str]) -> Iterator[str]:
        """Take over the tensors whose lines and bytes are whole; yield their lines."""
        for line, name in zip(lines, names, strict=False):
            try:
                noted = json.loads(line)
                size = noted["end"] - self._end
                stored = size if self._end else size - len(HEAD)
                index = bytes.fromhex(noted["index"])
                entries = read_index(index, stored, 1 << 62, names_coders=False).entries
                whole = list(entries) == [name] and self._crc_of(size) == noted["crc"]
            except (ValueError, KeyError, TypeError):
                whole = False
            if not whole:
                return
            self.entries[name] = entries[name]
            self._end = noted["end"]
            yield line

    def _crc_of(self, size: int) -> int | None:
        """Return the CRC-32 of the next bytes of the file; None if there are fewer."""
        self._file.seek(self._end)
        crc = 0
        while size and (block := self._file.read(min(size, _BLOCK_BYTES))):
            crc = zlib.crc32(block, crc)
            size -= len(block)
        return None if size else crc


@contextmanager
def locked(out: Path) -> Iterator[None]:
    """Hold the right to write a file.

    Raises:
        InputError: if another process has it.
    """
    from filelock import FileLock, Timeout

    path = _beside(out, "part.lock")
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise InputError(
            f"Another process is writing {out} (it holds {path}). Wait for it, or choose another "
            "name with --out."
        ) from None
    try:
        yield
    finally:
        path.unlink(missing_ok=True)  # while it is held: who waits then notices
        lock.release()


def _beside(out: Path, ending: str) -> Path:
    return out.with_name(f"{out.name}.{ending}")


def _lines(path: Path) -> list[str]:
    """Return the whole lines of a journal."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").split("\n")[:-1]
    except FileNotFoundError:
        return []
