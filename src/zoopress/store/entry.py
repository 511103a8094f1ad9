"""One finished result: its record, and the sizes and digests of its files.

    record.json   {"record": what was measured,
                   "files": {NAME: {"bytes": …, "sha256": …}, …},
                   "sha256": of the key and all that}
    artifact/     the model, see artifact.py

The same text is an entry of a shared store, whose files lie elsewhere. So an entry that was moved
to another key, or changed in any letter that means something, is known to be damaged.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from zoopress.store.files import digest, file_digest

RECORD = "record.json"
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Entry:
    """A finished result."""

    key: str
    path: Path
    record: dict[str, Any]

    @property
    def artifact(self) -> Path:
        return self.path / "artifact"


@dataclass(frozen=True)
class Sealed:
    """What an entry's text says, once it is known to be what was written for its key."""

    record: dict[str, Any]
    files: Mapping[str, Mapping[str, Any]]
    """Bytes and SHA-256 by name."""


def seal(key: str, record: Mapping[str, Any], folder: Path) -> str:
    """Return the text of an entry, for a record and the files below a folder."""
    files = {
        file.relative_to(folder).as_posix(): {
            "bytes": file.stat().st_size,
            "sha256": file_digest(file),
        }
        for file in sorted(folder.rglob("*"))
        if file.is_file()
    }
    content: dict[str, Any] = {"record": dict(record), "files": files}
    content["sha256"] = digest({"key": key, **content})
    return json.dumps(content, indent=1, allow_nan=False)


def unseal(key: str, text: str | bytes) -> Sealed:
    """Read an entry's text.

    Raises:
        ValueError: if it is not what was written for this key.
    """
    try:
        content = json.loads(text)
        if content.pop("sha256") != digest({"key": key, **content}):
            raise ValueError("the digest differs")
        record, files = content["record"], content["files"]
        for name, file in files.items():
            parts = PurePosixPath(name).parts
            if not parts or parts[0] == "/" or ".." in parts or "\\" in name or "\0" in name:
                raise ValueError(f"{name!r} is no file inside the entry")
            if not _SHA256.fullmatch(file["sha256"]) or not isinstance(file["bytes"], int):
                raise ValueError(f"{name!r} has no digest or no size")
    except (LookupError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"no entry: {error}") from error
    return Sealed(record, files)


def is_damaged(folder: Path, files: Mapping[str, Mapping[str, Any]]) -> bool:
    """Tell whether a folder's files differ from what an entry says of them."""
    for name, expected in files.items():
        file = folder / name
        if not file.is_file() or file.stat().st_size != expected["bytes"]:
            return True
        if file_digest(file) != expected["sha256"]:
            return True
    return False
