"""The store: finished stage results on disk, found by what they were computed from.

    ROOT/
        entries/ab/abcdef…/         one finished result; appears by one rename, never changes
            record.json             what was measured, size and SHA-256 of every other file, and
                                    the SHA-256 of all that
            artifact/               the model, see artifact.py
        locks/abcdef….lock          held while a result is computed; the kernel frees it on kill -9
        staging/abcdef….XXXX/       being written; worthless once its lock is free
        checkpoints/abcdef…/        what a long stage saved of itself
        quarantine/abcdef….XXXX/    entries whose files did not match their record
        hashes/                     digests of source files by path, size and time

A key is the SHA-256 of all that a result depends on. Failed results are never stored.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from zoopress.errors import StoreError

RECORD = "record.json"


def default_root() -> Path:
    """Return $ZOOPRESS_STORE, or the user's cache folder."""
    from platformdirs import user_cache_path

    return Path(os.environ.get("ZOOPRESS_STORE") or user_cache_path("zoopress") / "store")


def digest(value: Any) -> str:
    """Return the SHA-256 of plain data, independent of the order of its keys."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def file_digest(path: Path) -> str:
    """Return the SHA-256 of a file."""
    with path.open("rb") as stream:
        hasher = hashlib.sha256()
        while block := stream.read(1 << 20):
            hasher.update(block)
        return hasher.hexdigest()


@dataclass(frozen=True)
class Entry:
    """A finished result."""

    key: str
    path: Path
    record: dict[str, Any]

    @property
    def artifact(self) -> Path:
        return self.path / "artifact"


@dataclass
class Claim:
    """The right to compute one key; others who want it wait."""

    key: str
    store: Store
    entry: Entry | None
    """Set if the result is there already, or once it is committed."""
    _staging: Path | None = None

    @property
    def staging(self) -> Path:
        """An empty folder to write the result into."""
        if self._staging is None:
            self._staging = self.store._make_folder("staging", f"{self.key[:32]}.")
        return self._staging

    @property
    def checkpoint(self) -> Path:
        """A folder that outlives a killed run of this key; removed when the key is committed."""
        folder = self.store.root / "checkpoints" / self.key
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def commit(self, record: Mapping[str, Any]) -> Entry:
        """Make what was staged the result of this key, in one step that cannot be half done.

        Args:
            record: plain data to keep beside the files.

        Raises:
            StoreError: if the disk is full or the store cannot be written.
        """
        self.entry = self.store._commit(self.key, self.staging, dict(record))
        self._staging = None
        shutil.rmtree(self.store.root / "checkpoints" / self.key, ignore_errors=True)
        return self.entry


class Store:
    """Content-addressed results in a folder that any number of processes share.

    Args:
        root: the folder; made when first written to.
    """

    def __init__(self, root: Path | None = None) -> None:
        self.root = (root or default_root()).expanduser().absolute()

    def find(self, key: str) -> Entry | None:
        """Return the result of a key, or None.

        Every file is checked against the record; an entry that was damaged since it was written is
        set aside in `quarantine/` and counts as not there.
        """
        path = self._entry_path(key)
        if not path.is_dir():
            return None
        try:
            content = json.loads((path / RECORD).read_text(encoding="utf-8"))
            intact = content.pop("sha256") == digest({"key": key, **content})
            damaged = not intact or _is_damaged(path, content["files"])
        except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
            damaged = True
        if damaged:
            self._set_aside(key, path)
            return None
        return Entry(key, path, content["record"])

    @contextmanager
    def claim(self, key: str, waiting: Callable[[], None] = lambda: None) -> Iterator[Claim]:
        """Hold a key's lock; on entry, `claim.entry` says whether there is nothing left to do.

        Args:
            key: what to compute.
            waiting: called once if another process holds the key.

        Raises:
            StoreError: if the store cannot be written.
        """
        with self._errors("lock"):
            (self.root / "locks").mkdir(parents=True, exist_ok=True)
        lock = FileLock(self.root / "locks" / f"{key}.lock")
        with self._errors("lock"):
            try:
                lock.acquire(timeout=0)
            except Timeout:
                waiting()
                lock.acquire()
        try:
            self._sweep(key)
            claim = Claim(key, self, self.find(key))
            try:
                yield claim
            except OSError as error:
                if self._is_ours(error):
                    raise self._explained("write to", error) from error
                raise
            finally:
                if claim._staging is not None:
                    shutil.rmtree(claim._staging, ignore_errors=True)
        finally:
            lock.release()

    def hash_file(self, path: Path) -> str:
        """Return a file's SHA-256, remembered by its path, size, inode and time of change."""
        stat = path.stat()
        identity = digest(
            [str(path.resolve()), stat.st_size, stat.st_ino, stat.st_mtime_ns, stat.st_ctime_ns]
        )
        cache = self.root / "hashes" / identity
        with suppress(OSError):
            remembered = cache.read_text(encoding="ascii")
            if len(remembered) == 64:
                return remembered
        value = file_digest(path)
        with suppress(OSError):  # a store that cannot be written only forgets
            cache.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(cache, value)
        return value

    def _entry_path(self, key: str) -> Path:
        return self.root / "entries" / key[:2] / key

    def _make_folder(self, kind: str, prefix: str) -> Path:
        with self._errors("write to"):
            parent = self.root / kind
            parent.mkdir(parents=True, exist_ok=True)
            return Path(tempfile.mkdtemp(prefix=prefix, dir=parent))

    def _commit(self, key: str, staging: Path, record: dict[str, Any]) -> Entry:
        with self._errors("write to"):
            files = {
                file.relative_to(staging).as_posix(): {
                    "bytes": file.stat().st_size,
                    "sha256": file_digest(file),
                }
                for file in sorted(staging.rglob("*"))
                if file.is_file()
            }
            content: dict[str, Any] = {"record": record, "files": files}
            content["sha256"] = digest({"key": key, **content})
            text = json.dumps(content, indent=1, allow_nan=False)
            (staging / RECORD).write_text(text, encoding="utf-8")
            for item in (*staging.rglob("*"), staging):
                _sync(item)
            target = self._entry_path(key)
            target.parent.mkdir(parents=True, exist_ok=True)
            staging.chmod(0o755)
            os.rename(staging, target)
            _sync(target.parent)
        return Entry(key, target, json.loads(text)["record"])

    def _sweep(self, key: str) -> None:
        """Remove what a killed run of this key, whose lock we now hold, left half-written."""
        for leftover in (self.root / "staging").glob(f"{key[:32]}.*"):
            shutil.rmtree(leftover, ignore_errors=True)

    def _set_aside(self, key: str, path: Path) -> None:
        with suppress(OSError, StoreError):  # read-only store, or another process was faster
            os.rename(path, self._make_folder("quarantine", f"{key[:32]}.") / "entry")

    @contextmanager
    def _errors(self, action: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise self._explained(action, error) from error

    def _is_ours(self, error: OSError) -> bool:
        """Tell whether an error met while a claim is held is about the store."""
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
            return True
        names = [
            os.fsdecode(n) for n in (error.filename, error.filename2) if isinstance(n, str | bytes)
        ]
        return any(Path(name).is_relative_to(self.root) for name in names)

    def _explained(self, action: str, error: OSError) -> StoreError:
        remedy = "Choose another folder with --store or ZOOPRESS_STORE."
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            remedy = "Free space on that disk, or choose another folder with --store."
        return StoreError(
            f"Cannot {action} the store at {self.root}: {error.strerror or error}"
            + (f" ({error.filename})" if error.filename else "")
            + f". Finished stages are safe. {remedy}"
        )


def write_atomic(path: Path, text: str) -> None:
    """Write a text file so that readers see the old content or the new, never a part."""
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        os.chmod(name, 0o644)
        os.replace(name, path)
    except BaseException:
        with suppress(OSError):
            os.unlink(name)
        raise


def _is_damaged(path: Path, files: Mapping[str, Mapping[str, Any]]) -> bool:
    """Tell whether a folder's files differ from their record."""
    for name, expected in files.items():
        file = path / name
        if not file.is_file() or file.stat().st_size != expected["bytes"]:
            return True
        if file_digest(file) != expected["sha256"]:
            return True
    return False


def _sync(path: Path) -> None:
    """Force a file or folder to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
