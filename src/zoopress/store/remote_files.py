"""Files of a shared store, through fsspec: written whole, created once, tried again.

What can go wrong on the way becomes `UnreachableError`, besides a file that is not there
(FileNotFoundError) and a disk of this machine that is full.
"""

from __future__ import annotations

import random
import re
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, TypeVar
from urllib.parse import urlsplit

from zoopress.errors import InputError, StoreError
from zoopress.optional import import_failure
from zoopress.store.local import FULL

T = TypeVar("T")
WHOLE = frozenset({"s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "memory"})
"""Protocols whose files appear whole or not at all; elsewhere they are written aside and moved."""
ON_DISK = frozenset({"file", "local", "memory"})
PERMANENT = (
    *(PermissionError, FileExistsError, FileNotFoundError, NotADirectoryError),
    *(ImportError, NotImplementedError, TypeError),
)
BLOCK = 4 << 20
MANY = 1000
"""How many files one request names."""


class UnreachableError(StoreError):
    """A shared store does not answer, or does not let us."""


class Remote(NamedTuple):
    """A file of a shared store."""

    bytes: int
    modified: float
    """Seconds since 1970, by the clock of the store."""


@dataclass(frozen=True)
class Retry:
    """How often and how long what failed is tried again; the n-th pause is 2ⁿ times the first."""

    attempts: int = 3
    pause_s: float = 0.5


def is_url(place: str) -> bool:
    """Tell an fsspec URL from a path."""
    return re.match(r"[a-z][a-z0-9+.-]*://", place, re.IGNORECASE) is not None


def check_url(url: str) -> str:
    """Return a URL, without slashes at its end, that holds no password.

    A URL is passed on to other processes, kept by schedulers and shown in messages.

    Raises:
        InputError: if it holds one.
    """
    scheme, _, rest = url.partition("://")
    before, at, after = rest.rpartition("@")
    # Azure writes a container before the @. A secret may hold slashes.
    if at and (":" in before or scheme in ("s3", "s3a", "gs", "gcs")) and scheme not in ON_DISK:
        raise InputError(
            f"The store's URL {scheme}://…@{after} holds credentials, which other processes would "
            "see and schedulers would keep. Give them in the way of that storage instead: for S3 "
            "with AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY or a profile, for others in fsspec's "
            "own configuration."
        )
    return url.rstrip("/")


class RemoteFiles:
    """Files below a URL, named by paths relative to it.

    Args:
        url: what fsspec knows, without credentials.
        retry: how often what failed is tried again.
    """

    def __init__(self, url: str, retry: Retry | None = None) -> None:
        self.url, self.retry = check_url(url), retry or Retry()
        self._whole = urlsplit(self.url).scheme.lower() in WHOLE

    @cached_property
    def _opened(self) -> tuple[Any, str]:
        from fsspec.core import url_to_fs

        try:
            # What another machine has just written must be seen: no listing is remembered.
            system, root = url_to_fs(self.url, use_listings_cache=False)
        except (ImportError, ValueError) as error:
            raise UnreachableError(
                f"Cannot open the store at {self.url}: {_reason(error, self.url)}."
            ) from error
        return system, root.rstrip("/")

    def read(self, path: str) -> bytes:
        """Return a file's content.

        Raises:
            FileNotFoundError: if it is not there.
            UnreachableError: if the store does not answer.
        """
        return self._try("read", path, lambda system, full: bytes(system.cat_file(full)))

    def read_many(self, paths: Sequence[str]) -> Iterator[tuple[str, bytes | None]]:
        """Yield path and content of files, None of those that are gone."""
        for start in range(0, len(paths), MANY):
            part = paths[start : start + MANY]

            def read(system: Any, full: str, part: Sequence[str] = part) -> dict[str, Any]:
                found: dict[str, Any] = system.cat(
                    [f"{full}/{path}" for path in part], on_error="return"
                )
                for problem in found.values():
                    gone = isinstance(problem, FileNotFoundError)
                    if isinstance(problem, Exception) and not gone:
                        raise problem  # what cannot be read now must not be taken for gone
                return found

            found = self._try("read", "", read)
            by_name = {name.rpartition("/")[2]: content for name, content in found.items()}
            for path in part:
                content = by_name.get(path.rpartition("/")[2])
                yield path, content if isinstance(content, bytes) else None

    def blocks(self, path: str) -> Iterator[bytes]:
        """Yield a file's content in blocks."""
        stream = self._try("read", path, lambda system, full: system.open(full, "rb"))
        with stream:
            while block := self._try("read", path, lambda *_: stream.read(BLOCK)):
                yield block

    def write(self, path: str, content: bytes) -> None:
        """Write a file, which appears whole or not at all."""

        def put(system: Any, full: str) -> None:
            system.pipe_file(full, content)

        self._write(path, put)

    def upload(self, file: Path, path: str) -> None:
        """Copy a file of this machine, which appears whole or not at all."""

        def put(system: Any, full: str) -> None:
            system.put_file(str(file), full)

        self._write(path, put)

    def download(self, path: str, file: Path) -> None:
        """Copy a file to this machine.

        Raises:
            FileNotFoundError: if it is not there.
            OSError: if this machine's disk is full.
        """
        self._try("read", path, lambda system, full: system.get_file(full, str(file)), local=True)

    def create(self, path: str, content: bytes) -> bool:
        """Write a file that is not there yet, and tell whether that was so.

        Of two that try at once, one succeeds where the storage can tell: S3, Google Cloud, a
        folder. Elsewhere both may.
        """

        def make(system: Any, full: str) -> bool:
            try:
                if getattr(system, "async_impl", False):
                    system.pipe_file(full, content, mode="create")
                    return True
                system.makedirs(full.rpartition("/")[0], exist_ok=True)
                with system.open(full, "xb") as stream:
                    stream.write(content)
                return True
            except FileExistsError:
                return False

        return self._try("write to", path, make)

    def find(self, path: str) -> Remote | None:
        """Return size and time of a file, None if it is not there."""
        try:
            return self._try("read", path, lambda system, full: _remote(system.info(full)))
        except FileNotFoundError:
            return None

    def list(self, folder: str) -> dict[str, Remote]:
        """Return the files below a folder, by path."""

        def look(system: Any, full: str) -> dict[str, Remote]:
            start = len(full) - len(folder)
            found = system.find(full, detail=True)
            return {name[start:]: _remote(info) for name, info in found.items()}

        return self._try("list", folder, look)

    def remove(self, paths: Iterable[str]) -> None:
        """Remove files; those that are gone already are no error."""
        paths = list(paths)
        for start in range(0, len(paths), MANY):
            part = paths[start : start + MANY]

            def drop(system: Any, full: str, part: Sequence[str] = part) -> None:
                if getattr(system, "async_impl", False):
                    system.rm([f"{full}/{path}" for path in part])
                    return
                for path in part:
                    try:
                        system.rm_file(f"{full}/{path}")
                    except FileNotFoundError:
                        continue

            self._try("remove from", "", drop)

    def move(self, path: str, to: str) -> None:
        """Move a file that is there."""

        def rename(system: Any, full: str) -> None:
            root = full[: len(full) - len(path)]
            self._make_parent(system, root + to)
            system.mv(full, root + to)

        self._try("write to", path, rename)

    def _write(self, path: str, put: Callable[[Any, str], None]) -> None:
        def write(system: Any, full: str) -> None:
            if self._whole:
                put(system, full)
                return
            root = full[: len(full) - len(path)]
            aside = f"{root}incoming/{uuid.uuid4().hex}"
            self._make_parent(system, aside)
            put(system, aside)
            self._make_parent(system, full)
            system.mv(aside, full)

        self._try("write to", path, write)

    def _make_parent(self, system: Any, full: str) -> None:
        if not self._whole:
            system.makedirs(full.rpartition("/")[0], exist_ok=True)

    def _try(self, action: str, path: str, work: Callable[[Any, str], T], local: bool = False) -> T:
        system, root = self._opened
        attempt = 0
        while True:
            attempt += 1
            try:
                return work(system, f"{root}/{path}" if path else root)
            except Exception as error:  # each storage has errors of its own
                if action == "read" and isinstance(error, FileNotFoundError | NotADirectoryError):
                    raise FileNotFoundError(path) from error
                if local and isinstance(error, OSError) and error.errno in FULL:
                    raise
                if attempt >= self.retry.attempts or isinstance(error, PERMANENT):
                    reason = f"{type(error).__name__}: {error}".rstrip(". ")
                    raise UnreachableError(
                        f"Cannot {action} the store at {self.url}: {reason}. Check that the "
                        "bucket or folder exists, the network, and the rights to read, write and "
                        "list."
                    ) from error
                time.sleep(self.retry.pause_s * 2**attempt * (0.5 + random.random() / 2))


def _remote(info: dict[str, Any]) -> Remote:
    """Read what a storage says of a file; each names the time in its own way."""
    names = ("mtime", "LastModified", "last_modified", "updated", "modified", "created")
    modified = next((info[name] for name in names if info.get(name) is not None), None)
    if isinstance(modified, str):
        modified = datetime.fromisoformat(modified.replace("Z", "+00:00"))
    if isinstance(modified, datetime):
        modified = modified.timestamp()
    # Of an unknown age: young, so that nothing is removed by mistake.
    return Remote(int(info["size"] or 0), time.time() if modified is None else float(modified))


def _reason(error: Exception, url: str) -> str:
    """Say why fsspec cannot open a URL; it calls a library missing that is broken, too."""
    from fsspec.registry import known_implementations

    known = known_implementations.get(urlsplit(url).scheme.lower(), {})
    package = str(known.get("class", "")).partition(".")[0]
    cause = error.__cause__
    if not isinstance(error, ImportError) or cause is None or package in ("", "fsspec"):
        return str(error).rstrip(".")
    extra = "'zoopress[s3]'" if package == "s3fs" else package
    needed = f"{urlsplit(url).scheme}:// needs {package}"
    return import_failure(cause, package, needed, f"pip install {extra}").rstrip(".")
