"""Which results a repository refers to, in its working tree and in all of its history.

Every `report.json` names the store keys that it came from. Any SHA-256 in such a file counts, so
that a report of another version, or one with a merge conflict, keeps what it names as well.
"""

from __future__ import annotations

import logging
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

from zoopress.errors import InputError

log = logging.getLogger("zoopress.store")
REPORT = "report.json"
_KEY = re.compile(rb"\b[0-9a-f]{64}\b")


def reachable_keys(folder: Path) -> frozenset[str]:
    """Return the store keys that a folder and, if it is under git, its repository refer to.

    Args:
        folder: a repository, a folder in one, or any other folder with results.

    Raises:
        InputError: if the folder is not there, or git fails: then nothing is known to be garbage.
    """
    if not folder.is_dir():
        raise InputError(
            f"{folder} is no folder, so what it refers to is not known; nothing was removed."
        )
    found = set(_in_folder(folder))
    top = repository_of(folder)
    if top is not None:
        found.update(_in_folder(top), _in_history(top))
    return frozenset(key.decode() for key in found)


def repository_of(folder: Path) -> Path | None:
    """Return the top folder of the git repository that a folder is in, None if it is in none."""
    for candidate in (folder.absolute(), *folder.absolute().parents):
        if (candidate / ".git").exists():
            return candidate
    return None


def _in_folder(folder: Path) -> Iterator[bytes]:
    for parent, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        if REPORT in files:
            yield from _KEY.findall((Path(parent) / REPORT).read_bytes())


def _in_history(top: Path) -> Iterator[bytes]:
    """Yield keys in all versions of all reports, on all branches and tags and staged."""
    if _git(top, "rev-parse", "--is-shallow-repository").strip() == b"true":
        log.warning("%s is a shallow clone; older reports than it has keep nothing.", top)
    blobs: dict[bytes, None] = {}
    for line in _git(top, "rev-list", "--all", "--objects").splitlines():
        blob, _, path = line.partition(b" ")
        if path.rpartition(b"/")[2] == REPORT.encode():
            blobs[blob] = None
    for line in _git(top, "ls-files", "--stage", "-z", "--", f"*{REPORT}").split(b"\0"):
        if line:
            blobs[line.split()[1]] = None
    if blobs:
        content = _git(top, "cat-file", "--batch", stdin=b"\n".join(blobs) + b"\n")
        yield from _KEY.findall(content)


def _git(top: Path, *arguments: str, stdin: bytes = b"") -> bytes:
    try:
        done = subprocess.run(
            ["git", "-C", str(top), *arguments], input=stdin, capture_output=True, check=False
        )
    except OSError as error:
        raise InputError(f"Cannot run git in {top}: {error}. Nothing was removed.") from error
    if done.returncode:
        raise InputError(
            f"git {arguments[0]} failed in {top}: {done.stderr.decode(errors='replace').strip()}. "
            "What its history refers to is not known, so nothing was removed."
        )
    return done.stdout
