"""List, check and collect the results below a URL."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from zoopress.store.collect import Collected, Policy, Stored, choose, total_bytes
from zoopress.store.entry import Sealed, unseal
from zoopress.store.remote_files import Remote
from zoopress.store.shared import BLOB_GRACE_S, SharedTier, blob_path, entry_path, use_path


def list_shared(tier: SharedTier) -> Iterator[Stored]:
    """Yield all results, in no order. Entries are read, blobs are not.

    Raises:
        UnreachableError: if the store does not answer.
    """
    yield from _read(tier, tier.files.list("entries"), tier.files.list("used"))


def check_shared(tier: SharedTier) -> Iterator[tuple[str, bool]]:
    """Read every blob and compare it with its name; yields keys and whether all is right.

    What is damaged is set aside, and computed again when it is needed.

    Raises:
        UnreachableError: if the store does not answer.
    """
    intact: dict[str, bool] = {}

    def is_intact(sha256: str) -> bool:
        if sha256 not in intact:
            intact[sha256] = _has_digest(tier, sha256)
        return intact[sha256]

    for path, text in tier.files.read_many(list(tier.files.list("entries"))):
        key = _key(path)
        if text is None:
            continue  # removed since
        sealed = _unsealed(key, text)
        files = {} if sealed is None else sealed.files
        blobs = [is_intact(file["sha256"]) for file in files.values()]  # each, to set all aside
        right = sealed is not None and all(blobs)
        if not right:
            tier.set_aside(path)
        yield key, right


def collect_shared(
    tier: SharedTier, policy: Policy, dry_run: bool = False, blob_grace_s: float = BLOB_GRACE_S
) -> Collected:
    """Remove results, blobs that belong to none, and leftovers; never a key that is leased.

    Args:
        tier: of the shared store.
        policy: what may stay.
        dry_run: whether to remove nothing.
        blob_grace_s: how old a blob or another leftover must be: uploads may be under way.

    Raises:
        UnreachableError: if the store does not answer.
    """
    files = tier.files
    now = time.time()

    def is_old(file: Remote) -> bool:
        return now - file.modified > blob_grace_s

    leases = files.list("leases")
    leased = frozenset(_key(path) for path, file in leases.items() if not is_old(file))
    entries, used = files.list("entries"), files.list("used")
    stored = list(_read(tier, entries, used))
    chosen = choose(stored, replace(policy, keep=policy.keep | leased))
    if not dry_run and chosen:
        # What another machine has used since we looked stays.
        since = {_key(path): file.modified for path, file in files.list("used").items()}
        before = {_key(path): file.modified for path, file in used.items()}
        chosen = [one for one in chosen if since.get(one.key) == before.get(one.key)]
        files.remove(entry_path(one.key) for one in chosen)
        files.remove(use_path(one.key) for one in chosen if one.key in since)
    gone = {one.key for one in chosen}
    left = [one for one in stored if one.key not in gone]

    # Entries that came since we looked name blobs as well, all of them younger than the grace.
    needed = {name for one in left for name in one.contents}
    present = {one.key for one in left}
    garbage = [
        path
        for path, file in files.list("blobs").items()
        if is_old(file) and _key(path) not in needed
    ]
    garbage += [path for path, file in files.list("incoming").items() if is_old(file)]
    garbage += [path for path, file in leases.items() if is_old(file)]
    known = present | gone
    garbage += [path for path, file in used.items() if is_old(file) and _key(path) not in known]
    garbage += files.list("quarantine")
    if not dry_run:
        files.remove(garbage)
    return Collected(
        removed=sorted(gone),
        removed_bytes=total_bytes(stored) - total_bytes(left),
        left=len(left),
        left_bytes=total_bytes(left),
        reachable=sum(one.key in policy.keep for one in left),
        in_use=sum(one.key in leased for one in left),
        leftovers=len(garbage),
    )


def _read(
    tier: SharedTier, entries: Mapping[str, Remote], used: Mapping[str, Remote]
) -> Iterator[Stored]:
    now = time.time()
    for path, text in tier.files.read_many(list(entries)):
        key = _key(path)
        if text is None:
            continue  # removed since
        sealed = _unsealed(key, text)
        files = {} if sealed is None else sealed.files
        use = used.get(use_path(key))
        last = max(entries[path].modified, use.modified if use else 0.0)
        contents = {file["sha256"]: int(file["bytes"]) for file in files.values()}
        contents[path] = len(text)
        record: dict[str, Any] = {} if sealed is None else sealed.record
        yield Stored(key, max(0.0, now - last), contents, record)


def _unsealed(key: str, text: bytes) -> Sealed | None:
    try:
        return unseal(key, text)
    except ValueError:
        return None


def _has_digest(tier: SharedTier, sha256: str) -> bool:
    """Tell whether a blob is what its name says; set it aside if not."""
    hasher = hashlib.sha256()
    try:
        for block in tier.files.blocks(blob_path(sha256)):
            hasher.update(block)
    except FileNotFoundError:
        return False
    if hasher.hexdigest() == sha256:
        return True
    tier.set_aside(blob_path(sha256))
    return False


def _key(path: str) -> str:
    return path.rpartition("/")[2].removesuffix(".json")
