"""The store as files below a URL, which machines share.

    URL/
        zoopress-store.json     the version of this layout
        blobs/ab/SHA256         a file of a result; equal files are one
        entries/ab/KEY.json     a result: its record, and its files' names, sizes and digests
        used/ab/KEY             empty; its time is that of the result's last use, to the day
        leases/KEY              who computes a key now, see lease.py
        incoming/…              being written, where files do not appear whole by themselves
        quarantine/…            blobs and entries that were not what they should be

A result is there when its entry is; that is one file, written after all its blobs. Blobs are named
by what they hold, so two writers of one key cannot mix their files, and what is read is compared
with its name.
"""

from __future__ import annotations

import json
import logging
import time
import uuid
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from functools import cached_property
from pathlib import Path

from zoopress.store.entry import RECORD, Entry, unseal
from zoopress.store.files import file_digest
from zoopress.store.lease import Timing, leased
from zoopress.store.remote_files import RemoteFiles, UnreachableError

log = logging.getLogger("zoopress.store")
LAYOUT = "zoopress-store.json"
VERSION = 1
DAY_S = 86400.0
BLOB_GRACE_S = DAY_S
"""Blobs without an entry are kept as long as this: an upload may be under way."""


class SharedTier:
    """Results below a URL.

    Args:
        files: how to reach them.
        timing: of leases.
    """

    def __init__(self, files: RemoteFiles, timing: Timing | None = None) -> None:
        self._files, self._timing = files, timing or Timing()
        self.url = files.url

    @cached_property
    def files(self) -> RemoteFiles:
        """The files, once the store was asked whether it is one.

        Raises:
            UnreachableError: if it does not answer, or is of another version.
        """
        try:
            found = json.loads(self._files.read(LAYOUT)).get("version")
        except FileNotFoundError:
            found = VERSION
            self._files.write(LAYOUT, json.dumps({"version": VERSION}).encode())
        except (ValueError, AttributeError):
            found = "unreadable"
        if found != VERSION:
            raise UnreachableError(
                f"The store at {self.url} has the layout {found!r}; this version of zoopress knows "
                f"{VERSION}. Update zoopress, or choose another --store."
            )
        return self._files

    def read_entry(self, key: str) -> str | None:
        """Return the text of a key's entry, None if there is none; a damaged one is set aside.

        Raises:
            UnreachableError: if the store does not answer.
        """
        try:
            text = self.files.read(entry_path(key))
            unseal(key, text)
        except FileNotFoundError:
            return None
        except ValueError:
            self.set_aside(entry_path(key))
            return None
        return text.decode()

    def download(self, key: str, text: str, folder: Path) -> bool:
        """Download the files of an entry and compare them with their digests.

        Args:
            key: whose entry.
            text: of the entry.
            folder: an empty folder for the files.

        Returns:
            Whether all are right. What is not is set aside, the entry with it, so that the next to
            compute this key puts it right.

        Raises:
            UnreachableError: if the store does not answer.
            OSError: if this machine's disk is full.
        """
        right = True
        for name, file in unseal(key, text).files.items():
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            # Each: a damaged blob that stayed would be taken for one that need not be uploaded.
            right &= self._download(file["sha256"], target)
        if not right:
            self.set_aside(entry_path(key))
        return right

    def publish(self, entry: Entry) -> None:
        """Upload a result: its blobs, unless they are there, and then its entry.

        Raises:
            UnreachableError: if the store does not answer.
        """
        text = (entry.path / RECORD).read_bytes()
        for name, file in unseal(entry.key, text).files.items():
            path = blob_path(file["sha256"])
            there = self.files.find(path)
            # One that is about to be collected, having no entry, is made young again.
            if (
                there is None
                or there.bytes != file["bytes"]
                or time.time() - there.modified > BLOB_GRACE_S / 2
            ):
                self.files.upload(entry.path / name, path)
        self.files.write(entry_path(entry.key), text)

    def touch(self, key: str) -> None:
        """Note that a result was used now.

        Raises:
            UnreachableError: if the store does not answer, or cannot be written.
        """
        self.files.write(use_path(key), b"")

    def lease(self, key: str, waiting: Callable[[], None]) -> AbstractContextManager[None]:
        """Return what holds the right to compute a key; see `leased`."""
        return leased(self.files, lease_path(key), waiting, self._timing)

    def set_aside(self, path: str) -> None:
        """Move a damaged file away, so that the next writer puts a right one in its place."""
        log.warning("Damaged, and set aside: %s in the store at %s", path, self.url)
        with suppress(UnreachableError):  # read-only, or another machine was faster
            self.files.move(path, f"quarantine/{path.rpartition('/')[2]}.{uuid.uuid4().hex[:8]}")

    def _download(self, sha256: str, target: Path) -> bool:
        """Fetch a blob; one that is damaged each time it is read is set aside."""
        path = blob_path(sha256)
        for _ in range(2):  # the damage may have happened on the way
            try:
                self.files.download(path, target)
            except FileNotFoundError:
                return False
            if file_digest(target) == sha256:
                return True
        self.set_aside(path)
        return False


def entry_path(key: str) -> str:
    """Return the path of a key's entry."""
    return f"entries/{key[:2]}/{key}.json"


def blob_path(sha256: str) -> str:
    """Return the path of a file of a result."""
    return f"blobs/{sha256[:2]}/{sha256}"


def use_path(key: str) -> str:
    """Return the path of the mark of a key's last use."""
    return f"used/{key[:2]}/{key}"


def lease_path(key: str) -> str:
    """Return the path of a key's lease."""
    return f"leases/{key}"
