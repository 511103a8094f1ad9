"""What the Hub client's cache holds of a repository, whoever fetched it.

HF_HUB_CACHE/models--org--name/
    blobs/ETAG                     contents; an ETag is git's SHA-1 or, of large files, SHA-256
    refs/NAME                      which commit a branch or tag was last
    snapshots/COMMIT/PATH          links to blobs, or copies where there are no links
    trees/COMMIT.json              all files of a commit, where a client of today listed them
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import uuid
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from zoopress.errors import HubError
from zoopress.hub.remote_file import RemoteFile

_COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True)
class CachedSnapshot:
    """A place in the cache.

    Attributes:
        cache: the whole cache's folder.
        commit: of the repository.
        inside: the folder in the repository, "" for its top.
    """

    cache: Path
    commit: str
    inside: str


def snapshot_of(folder: Path) -> CachedSnapshot | None:
    """Return which snapshot of a cache a folder is, or lies in; None if it is no cache's."""
    parts = folder.absolute().parts
    for at in range(len(parts) - 1, 1, -1):
        named = parts[at - 1] == "snapshots" and parts[at - 2].startswith("models--")
        if named and _COMMIT.fullmatch(parts[at]):
            return CachedSnapshot(Path(*parts[: at - 2]), parts[at], "/".join(parts[at + 1 :]))
    return None


def check_cached(folder: Path, names: Iterable[str]) -> None:
    """Compare files in a cache with the digests that their blobs are named by; remove wrong ones.

    Nothing is compared elsewhere, or where the cache holds copies.

    Raises:
        HubError: if one differs.
    """
    if snapshot_of(folder) is None:
        return
    for name in names:
        path = folder / name
        blob = _blob(path)
        if blob is not None and not _is_named_by(path, blob.name):
            with suppress(OSError):
                path.unlink()
                blob.unlink()
            raise HubError(
                f"{path}: differs from the digest that the Hub stated, and was removed. Load the "
                "model again; if that does not help, something between here and there changes "
                "files: try another network or proxy."
            )


def listed_tree(root: Path, commit: str) -> dict[str, RemoteFile] | None:
    """Return all files of a commit, as another client of the Hub listed them; None if none did."""
    try:
        files = json.loads((root / "trees" / f"{commit}.json").read_bytes())["files"]
        return {
            name: RemoteFile(int(entry["lfs_size"]), f"sha256:{entry['lfs_sha256']}")
            if entry.get("lfs_sha256")
            else RemoteFile(int(entry["size"]), f"git:{entry['blob_id']}")
            for name, entry in files.items()
        }
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return None


def files_on_disk(root: Path, commit: str) -> dict[str, RemoteFile]:
    """Return the files of a commit that are in the cache; there may be more of it on the Hub."""
    folder = root / "snapshots" / commit
    return {
        path.relative_to(folder).as_posix(): RemoteFile(path.stat().st_size, _digest(path))
        for path in _files(folder)
    }


def note_revision(root: Path, revision: str, commit: str) -> None:
    """Note which commit a branch or tag is, so that others find it without the Hub."""
    path = root / "refs" / revision
    with suppress(OSError):  # a cache that cannot be written to
        if path.is_file() and path.read_text(encoding="ascii") == commit:
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f"{path.name}.{uuid.uuid4().hex[:8]}.tmp")
        part.write_text(commit, encoding="ascii")
        os.replace(part, path)


def _files(folder: Path) -> Iterator[Path]:
    return (path for path in sorted(folder.rglob("*")) if path.is_file())


def _blob(path: Path) -> Path | None:
    """Return what a link of the cache leads to."""
    with suppress(OSError, RuntimeError):
        target = path.resolve()
        if path.is_symlink() and target.parent.name == "blobs" and target.is_file():
            return target
    return None


def _digest(path: Path) -> str:
    blob = _blob(path)
    name = blob.name if blob is not None else ""
    if re.fullmatch(r"[0-9a-f]{64}", name):
        return f"sha256:{name}"
    return f"git:{name}" if _COMMIT.fullmatch(name) and _is_git(path, name) else ""


def _is_git(path: Path, name: str) -> bool:
    """Tell whether an ETag of 40 digits is git's; some servers' is plain SHA-1."""
    return hashlib.sha1(path.read_bytes(), usedforsecurity=False).hexdigest() != name


def _is_named_by(path: Path, name: str) -> bool:
    digest = _digest(path)
    return not digest or RemoteFile(path.stat().st_size, digest).matches(path)
