"""One store, whether it is a folder or a folder in front of a URL."""

from __future__ import annotations

import logging
import os
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zoopress.store.entry import Entry
from zoopress.store.files import digest
from zoopress.store.lease import Timing
from zoopress.store.local import LocalTier
from zoopress.store.remote_files import RemoteFiles, Retry, UnreachableError, is_url
from zoopress.store.shared import DAY_S, SharedTier
from zoopress.store.users import registered

log = logging.getLogger("zoopress.store")
AWAY_S = 300.0
"""How long a shared store that did not answer is left alone."""


def default_place() -> str:
    """Return $ZOOPRESS_STORE, or the user's cache folder."""
    from platformdirs import user_cache_path

    return os.environ.get("ZOOPRESS_STORE") or str(user_cache_path("zoopress") / "store")


def local_copy_of(url: str) -> Path:
    """Return the folder of this machine that stands in front of a URL.

    It lies in $ZOOPRESS_STORE_CACHE, or in the user's cache folder.
    """
    from platformdirs import user_cache_path

    parent = os.environ.get("ZOOPRESS_STORE_CACHE") or user_cache_path("zoopress") / "shared"
    readable = re.sub(r"[^A-Za-z0-9]+", "-", url.partition("://")[2]).strip("-")[:40]
    return Path(parent) / f"{readable}-{digest(url)[:12]}"


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
            self._staging = self.store.local.make_staging(self.key)
        return self._staging

    @property
    def checkpoint(self) -> Path:
        """A folder that outlives a killed run of this key; removed when the key is committed."""
        return self.store.local.checkpoint(self.key)

    def commit(self, record: Mapping[str, Any]) -> Entry:
        """Make what was staged the result of this key, in one step that cannot be half done.

        Args:
            record: plain data to keep beside the files.

        Raises:
            StoreError: if the disk is full or the store cannot be written.
        """
        self.entry = self.store._commit(self.key, self.staging, record)
        self._staging = None
        return self.entry


class Store:
    """Content-addressed results that processes share, and machines if the place is a URL.

    With a URL, results are computed into and used from a folder of this machine. What is not there
    is fetched, and what was computed is uploaded. While the shared store does not answer, work goes
    on and is kept here; it is uploaded when it is found the next time.

    Args:
        place: a folder, made when first written to, or a URL that fsspec knows; $ZOOPRESS_STORE or
            the user's cache folder by default.
        timing: of the leases of a shared store.
        retry: how often what failed at a shared store is tried again.

    Raises:
        InputError: if a URL holds credentials.
    """

    def __init__(
        self,
        place: str | Path | None = None,
        timing: Timing | None = None,
        retry: Retry | None = None,
    ) -> None:
        address = str(place or default_place())
        self.shared: SharedTier | None = None
        if is_url(address):
            files = RemoteFiles(address, retry)
            self.shared = SharedTier(files, timing)
            self.address = files.url
            folder = local_copy_of(self.address).expanduser().absolute()
            self.local = LocalTier(folder, f"{self.address} (here in {folder})")
        else:
            folder = Path(address).expanduser().absolute()
            self.address = str(folder)
            self.local = LocalTier(folder)
        self._away_until = {"read": 0.0, "write": 0.0}

    @property
    def root(self) -> Path:
        """The folder of this machine."""
        return self.local.root

    def find(self, key: str) -> Entry | None:
        """Return the result of a key, or None.

        Every file is checked against the record; an entry that was damaged since it was written is
        set aside and counts as not there.

        Raises:
            StoreError: if a shared store has never answered, or what it has cannot be written here.
        """
        unused_s = self.local.seconds_unused(key) if self.shared else 0.0
        entry = self.local.find(key)
        if self.shared is None:
            return entry
        if entry is None:
            return self._fetch(key)
        if self._unsent(key).exists():
            self._send(entry)
        elif not 0 < unused_s < DAY_S:
            self._touch(key)
        return entry

    @contextmanager
    def claim(self, key: str, waiting: Callable[[], None] = lambda: None) -> Iterator[Claim]:
        """Hold the right to compute a key; `claim.entry` says whether there is nothing left to do.

        Args:
            key: what to compute.
            waiting: called once if another process or machine holds the key.

        Raises:
            StoreError: if the store cannot be written.
        """
        with self.local.locked(key, waiting), ExitStack() as stack:
            self.local.sweep(key)
            claim = Claim(key, self, self.find(key))
            if claim.entry is None and self.shared is not None and self._can("write"):
                stack.enter_context(self.shared.lease(key, waiting))
                claim.entry = self.find(key)
            try:
                yield claim
            except OSError as error:
                if self.local.is_ours(error):
                    raise self.local.explained("write to", error) from error
                raise
            finally:
                if claim._staging is not None:
                    self.local.sweep(key)

    def using(self, keys: Iterable[str]) -> AbstractContextManager[None]:
        """Return a context in which these results are not collected, while this process lives.

        Raises:
            StoreError: on entry, if the disk is full.
        """
        return registered(self.local, keys)

    def hash_file(self, path: Path) -> str:
        """Return a file's SHA-256, remembered by its path, size, inode and time of change."""
        return self.local.hash_file(path)

    def _commit(self, key: str, staging: Path, record: Mapping[str, Any]) -> Entry:
        if self.shared is None:
            return self.local.commit(key, staging, record)
        with self.local.errors("write to"):
            self._unsent(key).parent.mkdir(parents=True, exist_ok=True)
            self._unsent(key).touch()
        entry = self.local.commit(key, staging, record)
        self._send(entry)
        return entry

    def _fetch(self, key: str) -> Entry | None:
        """Take a result from the shared store into the folder of this machine."""
        assert self.shared is not None
        if not self._can("read"):
            return None
        try:
            text = self.shared.read_entry(key)
            self._remember_that_it_answered()
            return None if text is None else self._download(key, text)
        except UnreachableError as error:
            if not (self.root / "shared-store").exists():
                raise  # nothing is computed yet, and the address may be wrong
            self._leave_alone("read", "write")
            log.warning("%s Working without it; what is computed is kept here.", error)
            return None

    def _download(self, key: str, text: str) -> Entry | None:
        assert self.shared is not None
        fetching = f"fetch-{key}"
        with self.local.locked(fetching), self.local.errors("write to"):
            entry = self.local.find(key)  # another process may have fetched it
            if entry is not None:
                return entry
            staging = self.local.make_staging(fetching)
            try:
                if not self.shared.download(key, text, staging):
                    return None
                entry = self.local.adopt(key, staging, text)
            finally:
                self.local.sweep(fetching)
        self._touch(key)
        return entry

    def _send(self, entry: Entry) -> None:
        """Upload a result; if that fails, it is uploaded when it is found the next time."""
        assert self.shared is not None
        if not self._can("write"):
            return
        try:
            self.shared.publish(entry)
        except UnreachableError as error:
            self._leave_alone("write")
            what_now = "The result is safe here, and is uploaded when it is used the next time."
            log.warning("%s %s", error, what_now)
        else:
            self._unsent(entry.key).unlink(missing_ok=True)

    def _touch(self, key: str) -> None:
        assert self.shared is not None
        if self._can("write"):
            try:
                self.shared.touch(key)
            except UnreachableError:  # read-only, perhaps: it only forgets
                self._leave_alone("write")

    def _can(self, action: str) -> bool:
        """Tell whether the shared store is worth another try; it may let us read, not write."""
        return time.monotonic() >= self._away_until[action]

    def _leave_alone(self, *actions: str) -> None:
        self._away_until.update(dict.fromkeys(actions, time.monotonic() + AWAY_S))

    def _unsent(self, key: str) -> Path:
        return self.root / "unsent" / key

    def _remember_that_it_answered(self) -> None:
        marker = self.root / "shared-store"
        if not marker.exists():
            with suppress(OSError):
                marker.write_text(f"{self.address}\n", encoding="utf-8")
