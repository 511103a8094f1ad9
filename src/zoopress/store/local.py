"""The store as a folder that any number of processes of one machine share.

ROOT/
    entries/ab/abcdef…/         one finished result; appears by one rename, never changes;
                                the time of its record.json is that of its last use
    locks/abcdef….lock          held while a result is computed; the kernel frees it on kill -9
    staging/abcdef…/XXXX/       being written; worthless once its lock is free
    checkpoints/abcdef…/        what a long stage saved of itself
    quarantine/abcdef….XXXX/    entries whose files did not match their record
    hashes/                     digests of source files by path, size and time
    users/                      the keys that each living run uses, see users.py
    trash/                      entries that are being removed, see collect.py
    unsent/abcdef…              results that a shared store has not got yet
    shared-store                the URL that this folder stands in front of, once it answered
"""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from zoopress.errors import StoreError, os_words
from zoopress.store.entry import RECORD, Entry, is_damaged, seal, unseal
from zoopress.store.files import digest, file_digest, sync, write_atomic

BRIEF_S = 0.25
"""Collection holds the lock of a key it looks at for no longer; that is no other run."""
FULL = frozenset({errno.ENOSPC, errno.EDQUOT})


class LocalTier:
    """Results in a folder.

    Args:
        root: the folder; made when first written to.
        name: what messages call the store.
    """

    def __init__(self, root: Path, name: str | None = None) -> None:
        self.root = root
        self.name = name or str(root)

    def find(self, key: str) -> Entry | None:
        """Return the result of a key, or None, and note that it was used now.

        Every file is checked against the record; an entry that was damaged since it was written is
        set aside in `quarantine/` and counts as not there.
        """
        entry = self.verify(key)
        if entry is not None:
            with suppress(OSError):  # a store that cannot be written only forgets
                os.utime(entry.path / RECORD)
        return entry

    def verify(self, key: str) -> Entry | None:
        """Do as `find`, but let it count as no use."""
        path = self.path(key)
        if not path.is_dir():
            return None
        try:
            sealed = unseal(key, (path / RECORD).read_bytes())
            damaged = is_damaged(path, sealed.files)
        except (OSError, ValueError):
            damaged = True
        if damaged:
            with suppress(OSError, StoreError):  # read-only, or another process was faster
                os.rename(path, self._make_folder("quarantine", f"{key[:32]}.") / "entry")
            return None
        return Entry(key, path, sealed.record)

    def path(self, key: str) -> Path:
        """Return where the result of a key is, or would be."""
        return self.root / "entries" / key[:2] / key

    def seconds_unused(self, key: str) -> float:
        """Return how long ago the result of a key was last used; infinite if it is not there."""
        try:
            return max(0.0, time.time() - (self.path(key) / RECORD).stat().st_mtime)
        except OSError:
            return float("inf")

    def key_lock(self, name: str) -> FileLock:
        """Return the lock of a key, or of another name."""
        return FileLock(self.root / "locks" / f"{name}.lock")

    @contextmanager
    def locked(self, name: str, waiting: Callable[[], None] = lambda: None) -> Iterator[None]:
        """Hold the lock of a key, or of another name.

        Args:
            name: what to hold.
            waiting: called once if another process holds it.

        Raises:
            StoreError: if the store cannot be written.
        """
        lock = self.key_lock(name)
        with self.errors("lock"):
            (self.root / "locks").mkdir(parents=True, exist_ok=True)
            try:
                lock.acquire(timeout=BRIEF_S)
            except Timeout:
                waiting()
                lock.acquire()
        try:
            yield
        finally:
            lock.release()

    def make_staging(self, key: str) -> Path:
        """Return an empty folder to write a result into, which becomes its entry."""
        return self._make_folder(f"staging/{key}", "")

    def sweep(self, key: str) -> None:
        """Remove what a killed run of this key, whose lock we hold, left half-written."""
        shutil.rmtree(self.root / "staging" / key, ignore_errors=True)

    def checkpoint(self, key: str) -> Path:
        """Return a folder for what a long stage saves of itself."""
        with self.errors("write to"):
            folder = self.root / "checkpoints" / key
            folder.mkdir(parents=True, exist_ok=True)
            return folder

    def commit(self, key: str, staging: Path, record: Mapping[str, Any]) -> Entry:
        """Make what was staged the result of a key, in one step that cannot be half done."""
        with self.errors("write to"):
            return self.adopt(key, staging, seal(key, record, staging))

    def adopt(self, key: str, staging: Path, text: str) -> Entry:
        """Make files and the text that describes them the result of a key.

        Where locks do not hold, as on some network file systems, another process may have finished
        the same key; whose result came first stays.
        """
        with self.errors("write to"):
            (staging / RECORD).write_text(text, encoding="utf-8")
            for item in (*staging.rglob("*"), staging):
                sync(item)
            target = self.path(key)
            target.parent.mkdir(parents=True, exist_ok=True)
            staging.chmod(0o755)
            try:
                os.rename(staging, target)
            except OSError as error:
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                    raise
                first = self.find(key)
                if first is not None:
                    shutil.rmtree(staging, ignore_errors=True)
                    return first
                os.rename(staging, target)  # what was there was damaged, and is set aside now
            sync(target.parent)
        shutil.rmtree(self.root / "staging" / key, ignore_errors=True)
        shutil.rmtree(self.root / "checkpoints" / key, ignore_errors=True)
        return Entry(key, target, unseal(key, text).record)

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

    def _make_folder(self, kind: str, prefix: str) -> Path:
        with self.errors("write to"):
            parent = self.root / kind
            parent.mkdir(parents=True, exist_ok=True)
            return Path(tempfile.mkdtemp(prefix=prefix, dir=parent))

    @contextmanager
    def errors(self, action: str) -> Iterator[None]:
        """Turn an error of the file system into one that says what to do."""
        try:
            yield
        except OSError as error:
            raise self.explained(action, error) from error

    def is_ours(self, error: OSError) -> bool:
        """Tell whether an error met while a claim is held is about the store."""
        if error.errno in (*FULL, errno.EROFS):
            return True
        names = [
            os.fsdecode(n) for n in (error.filename, error.filename2) if isinstance(n, str | bytes)
        ]
        return any(Path(name).is_relative_to(self.root) for name in names)

    def explained(self, action: str, error: OSError) -> StoreError:
        """Return an error that says what could not be done and what to do."""
        remedy = "Choose another folder with --store or ZOOPRESS_STORE."
        if error.errno in FULL:
            remedy = (
                "Free space on that disk, with `zoopress store gc` for example, and run the same "
                "command again; or choose another folder with --store."
            )
        return StoreError(
            f"Cannot {action} the store at {self.name}: {os_words(error)}"
            + (f" ({error.filename})" if error.filename else "")
            + f". Finished stages are safe. {remedy}"
        )
