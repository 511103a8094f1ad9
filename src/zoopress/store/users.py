"""Which results living runs use, so that collection leaves them alone.

    ROOT/
        gc.lock             held for moments: while a run registers, while results are removed
        users/XXXX.lock     held as long as a run lives; the kernel frees it on kill -9
        users/XXXX.keys     the keys that it uses, a line each; written when the lock is held

Registration and removal exclude each other: a run is registered before a result is removed, and
kept, or after it, and then does not find the result.
"""

from __future__ import annotations

import errno
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from zoopress.store.local import LocalTier

READ_ONLY = frozenset({errno.EROFS, errno.EACCES, errno.EPERM})


def removal_lock(tier: LocalTier) -> FileLock:
    """Return the lock that registration and removal take for moments."""
    return FileLock(tier.root / "gc.lock")


@contextmanager
def registered(tier: LocalTier, keys: Iterable[str]) -> Iterator[None]:
    """Keep results from being collected while this process lives and this context is open.

    From a store that cannot be written nothing is removed here, so there nobody need register.

    Raises:
        StoreError: if the disk is full.
    """
    name = tier.root / "users" / uuid.uuid4().hex
    # Another thread than the one that registers may be the one that ends.
    lock = FileLock(name.with_suffix(".lock"), thread_local=False)
    with tier.errors("register a run in"):
        try:
            name.parent.mkdir(parents=True, exist_ok=True)
            with removal_lock(tier):
                lock.acquire()
                name.with_suffix(".keys").write_text("\n".join(keys), encoding="ascii")
        except OSError as error:
            _end(lock)
            if error.errno not in READ_ONLY:
                raise
    try:
        yield
    finally:
        _end(lock)


def used_keys(tier: LocalTier) -> set[str]:
    """Return the keys that living runs use, and forget the dead ones."""
    used: set[str] = set()
    for path in (tier.root / "users").glob("*.lock"):
        lock = FileLock(path)
        try:
            lock.acquire(timeout=0)
        except (Timeout, OSError):
            with suppress(FileNotFoundError):  # it ended just now, or has yet to write them
                used.update(path.with_suffix(".keys").read_text(encoding="ascii").split())
        else:
            _end(lock)
    return used


def _end(lock: FileLock) -> None:
    """Remove a run's files and give its lock free.

    Whoever waits for a lock file that is removed under him notices, and makes another.
    """
    if lock.is_locked:
        for path in (Path(lock.lock_file).with_suffix(".keys"), Path(lock.lock_file)):
            with suppress(OSError):
                path.unlink()
        lock.release()
