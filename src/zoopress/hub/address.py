"""Addresses of models on the Hub."""

from __future__ import annotations

import re
from dataclasses import dataclass

from zoopress.errors import InputError

_PART = r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,94}[A-Za-z0-9])?"
_REPO = re.compile(rf"{_PART}(?:/{_PART})?")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_REVISION = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+/-]{0,254}")


@dataclass(frozen=True)
class Address:
    """A repository, or a file or folder in it, at a revision.

    Attributes:
        repo_id: "org/name", or "name" of the Hub's oldest repositories.
        inside: path of a file or folder in it, "" for all of it.
        revision: branch, tag or commit; None for the main branch.
    """

    repo_id: str
    inside: str = ""
    revision: str | None = None

    @property
    def pinned(self) -> bool:
        """Whether the revision is a commit, which never changes."""
        return self.revision is not None and _COMMIT.fullmatch(self.revision) is not None


def parse_address(text: str) -> Address:
    """Parse `org/name`, `org/name@revision` or `org/name/FILE_OR_FOLDER@revision`.

    A leading `hub:` or the address of a page of the Hub is understood, too.

    Raises:
        InputError: if it is none of these.
    """
    place = re.sub(r"^(hub:|https?://[^/]+/(?:models/)?)", "", text.strip())
    place = re.sub(r"/(?:tree|blob|resolve)/([^/@]+)((?:/[^@]*)?)$", r"\2@\1", place).rstrip("/")
    location, _, revision = place.partition("@")
    parts = location.split("/")
    repo_id, inside = "/".join(parts[:2]), "/".join(parts[2:])
    if not _REPO.fullmatch(repo_id) or "--" in repo_id or ".." in parts or "" in parts:
        raise InputError(
            f"{text!r} is no address of a model on the Hub. It should look like 'org/name', "
            "'org/name@revision' or 'org/name/FILE_OR_FOLDER@revision'."
        )
    if ("@" in place and not _REVISION.fullmatch(revision)) or ".." in revision:
        raise InputError(f"{text!r}: {revision!r} is no branch, tag or commit.")
    return Address(repo_id, inside, revision or None)


def looks_like_address(text: str) -> bool:
    """Tell whether a text is written as an address rather than as a path."""
    if text.startswith((".", "/", "~")) or "\\" in text:
        return False
    try:
        return parse_address(text).inside == ""
    except InputError:
        return False
