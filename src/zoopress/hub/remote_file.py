"""A file on the Hub, as the Hub describes it."""

from __future__ import annotations

import hashlib
import io
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class RemoteFile:
    """What the Hub says of a file.

    Attributes:
        size: bytes.
        digest: "sha256:…" of files in large file storage, else "git:…", git's SHA-1 of a blob;
            "" if the server tells none.
    """

    size: int
    digest: str

    def matches(self, content: Path | bytes) -> bool:
        """Tell whether a file, or what shall become one, is this one."""
        size = len(content) if isinstance(content, bytes) else content.stat().st_size
        if size != self.size:
            return False
        kind = self.digest.partition(":")[0]
        hasher = hashlib.sha256()
        if kind == "git":
            hasher = hashlib.sha1(f"blob {size}\0".encode(), usedforsecurity=False)
        with io.BytesIO(content) if isinstance(content, bytes) else content.open("rb") as stream:
            while block := stream.read(1 << 20):
                hasher.update(block)
        return f"{kind}:{hasher.hexdigest()}" == self.digest

    def contradicts(self, content: Path | bytes) -> bool:
        """Tell whether a file cannot be this one; without a digest, only its size is known."""
        size = len(content) if isinstance(content, bytes) else content.stat().st_size
        return size != self.size or (bool(self.digest) and not self.matches(content))
