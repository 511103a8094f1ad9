"""List, check and collect the results in a folder."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from itertools import islice
from pathlib import Path

from filelock import Timeout

from zoopress.store.collect import Collected, Policy, Stored, choose, total_bytes
from zoopress.store.entry import RECORD
from zoopress.store.local import LocalTier
from zoopress.store.users import removal_lock, used_keys

BATCH = 64
"""How many entries are renamed away while registration waits: some milliseconds."""
LEFTOVER_AGE_S = 7 * 86400.0
"""Checkpoints of dead runs are kept so long unless an age was asked for: a run may go on."""


def list_local(tier: LocalTier) -> Iterator[Stored]:
    """Yield all results, in no order. Records are read, the files beside them are not."""
    now = time.time()
    for folder in _scan(tier.root / "entries"):
        for path in _scan(folder):
            try:
                with (path / RECORD).open("rb") as stream:
                    used = os.fstat(stream.fileno()).st_mtime
                    text = stream.read()
                content = json.loads(text)
                size = len(text) + sum(file["bytes"] for file in content["files"].values())
                record = dict(content["record"])
            except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
                size, used, record = _bytes_below(path), _modified(path), {}
            yield Stored(path.name, max(0.0, now - used), {path.name: size}, record)


def check_local(tier: LocalTier) -> Iterator[tuple[str, bool]]:
    """Compare every file with its record; yields keys and whether all is right.

    What is damaged is set aside, and computed again when it is needed.
    """
    for folder in _scan(tier.root / "entries"):
        for path in _scan(folder):
            if path.is_dir():  # not removed since
                yield path.name, tier.verify(path.name) is not None


def collect_local(tier: LocalTier, policy: Policy, dry_run: bool = False) -> Collected:
    """Remove results, and leftovers of the dead; never what a living run uses.

    Raises:
        StoreError: if the folder cannot be written.
    """
    if not tier.root.is_dir():
        return Collected()
    with tier.errors("collect garbage in"):
        if not dry_run:
            (tier.root / "locks").mkdir(exist_ok=True)
        leftovers = _clear(tier, policy.max_age_s, dry_run)
        stored = list(list_local(tier))
        used = used_keys(tier)
        unsent = frozenset(path.name for path in _scan(tier.root / "unsent"))
        chosen = choose(stored, replace(policy, keep=policy.keep | used | unsent))
        removed = chosen if dry_run else list(_remove(tier, chosen))
        if not dry_run:
            for path in _scan(tier.root / "locks"):
                with _held(tier, path.stem):
                    pass  # which removes the lock
    gone = {one.key for one in removed}
    left = [one for one in stored if one.key not in gone]
    return Collected(
        removed=sorted(gone),
        removed_bytes=total_bytes(removed),
        left=len(left),
        left_bytes=total_bytes(left),
        reachable=sum(one.key in policy.keep for one in left),
        in_use=sum(one.key in used for one in left),
        leftovers=leftovers,
    )


def _remove(tier: LocalTier, chosen: Sequence[Stored]) -> Iterator[Stored]:
    """Remove those of the chosen that are still unused; yields them."""
    (tier.root / "trash").mkdir(exist_ok=True)
    trash = Path(tempfile.mkdtemp(dir=tier.root / "trash"))
    rest = iter(chosen)
    while batch := list(islice(rest, BATCH)):
        with removal_lock(tier):
            used = used_keys(tier)
            for one in batch:
                is_free = one.key not in used and tier.seconds_unused(one.key) >= one.seconds_unused
                with _held(tier, one.key) as held:
                    if is_free and held:
                        with suppress(FileNotFoundError):  # another collection was faster
                            os.rename(tier.path(one.key), trash / one.key)
                            yield one
        for path in _scan(trash):
            shutil.rmtree(path, ignore_errors=True)
    shutil.rmtree(trash, ignore_errors=True)


def _clear(tier: LocalTier, max_age_s: float | None, dry_run: bool) -> int:
    """Remove what the dead left; returns how many pieces that are, without locks."""
    age_s = LEFTOVER_AGE_S if max_age_s is None else max_age_s
    cleared = 0
    for path, name in _leftovers(tier, age_s):
        with _held(tier, name) as held:
            if not held:
                continue
            cleared += 1
            if dry_run:
                continue
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)
    return cleared


def _leftovers(tier: LocalTier, age_s: float) -> Iterator[tuple[Path, str | None]]:
    """Yield what is worthless, with the lock under which that is certain."""
    now = time.time()
    for kind in ("quarantine", "trash"):
        for path in _scan(tier.root / kind):
            yield path, None
    for path in _scan(tier.root / "staging"):
        yield path, path.name
    for path in _scan(tier.root / "checkpoints"):
        if now - max(map(_modified, (path, *path.rglob("*")))) > age_s:
            yield path, path.name
    for path in _scan(tier.root / "hashes"):
        if now - _modified(path) > age_s:
            yield path, None
    for path in _scan(tier.root / "unsent"):
        if not tier.path(path.name).exists():
            yield path, path.name


@contextmanager
def _held(tier: LocalTier, name: str | None) -> Iterator[bool]:
    """Hold a lock and remove its file, unless another holds it or nothing can be written.

    Whoever waits for a lock file that is removed under him notices, and makes another: filelock
    looks whether the file that it locked still has a name.
    """
    if name is None:
        yield True
        return
    lock = tier.key_lock(name)
    try:
        lock.acquire(timeout=0)
    except (Timeout, OSError):
        yield False
        return
    try:
        yield True
    finally:
        with suppress(OSError):
            os.unlink(lock.lock_file)
        lock.release()


def _scan(folder: Path) -> Iterator[Path]:
    """Yield what is in a folder; nothing if it is not there."""
    try:
        with os.scandir(folder) as found:
            names = [entry.name for entry in found]
    except (FileNotFoundError, NotADirectoryError):
        return
    for name in names:
        yield folder / name


def _modified(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return time.time()  # gone, or not to be read: nothing that is old


def _bytes_below(folder: Path) -> int:
    total = 0
    for path in folder.rglob("*"):
        with suppress(OSError):
            total += path.lstat().st_size
    return total
