"""The repository that a model goes to: what it holds already, and whether that may be replaced."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zoopress.artifacts.manifest import MANIFEST, Base, Manifest, parse_manifest
from zoopress.errors import ArtifactError, HubError
from zoopress.hub.address import parse_address
from zoopress.hub.client import Hub, RemoteModel
from zoopress.hub.download import fetch
from zoopress.publishing.exports import RECORD, recorded_files

README = "README.md"
ATTRIBUTES = ".gitattributes"
_OWN = frozenset({README, ATTRIBUTES})
_MOST_SHOWN = 3


@dataclass(frozen=True)
class Target:
    """What is at a place on the Hub before a push.

    Attributes:
        remote: the branch that is pushed to, or the main one; None if there is no repository.
        tagged: the commit of the tag that is asked for, None if there is none.
        removed: files that are no part of what shall be there.
    """

    remote: RemoteModel | None
    tagged: str | None
    removed: tuple[str, ...] = ()


def look_at_target(
    hub: Hub,
    repo_id: str,
    branch: str,
    tag: str | None,
    private: bool | None,
    base: Base,
    wanted: Mapping[str, Path | bytes],
    replace: bool,
) -> Target:
    """Return what a repository holds.

    Args:
        hub: where it is.
        repo_id: its name.
        branch: the branch that is pushed to.
        tag: the tag that is asked for.
        private: whether it has to be private.
        base: what the model that is pushed was made of.
        wanted: what the repository shall hold, by path.
        replace: whether another model may be replaced.

    Raises:
        HubError: if it holds another model, or is not as private as was asked for.
    """
    found = hub.find(repo_id)
    if found is None:
        return Target(None, None)
    if branch != "main":
        found = hub.find(repo_id, branch) or found
    tagged = hub.find(repo_id, tag) if tag else None
    if private and not found.private:
        raise HubError(
            f"{repo_id} is public, and 'private' was asked for; nothing was sent. Make it private "
            "in its settings on the Hub, or choose another name."
        )
    before = _manifest(hub, found)
    if not replace:
        _refuse_another(hub, repo_id, found, before, base)
    if replace:
        stale = found.files.keys() - {ATTRIBUTES}
    else:
        stale = before.files.keys() & found.files.keys() if before else set()
        if before is not None and RECORD in found.files:
            stale |= recorded_files(_record(hub, found)) & found.files.keys()
    removed = tuple(sorted(stale - wanted.keys()))
    return Target(found, tagged.commit if tagged else None, removed)


def exports_before(hub: Hub, repo_id: str, branch: str) -> dict[str, Any]:
    """Return what a repository says of the files beside its model; nothing if it has none."""
    found = hub.find(repo_id)
    if found is not None and branch != "main":
        found = hub.find(repo_id, branch)
    return {} if found is None or RECORD not in found.files else _record(hub, found)


def _record(hub: Hub, remote: RemoteModel) -> dict[str, Any]:
    address = parse_address(f"{remote.repo_id}@{remote.commit}")
    got = fetch(hub, address, lambda names: [RECORD], whole=False)
    try:
        record = json.loads((got.folder / RECORD).read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return record if isinstance(record, dict) else {}


def _refuse_another(
    hub: Hub, repo_id: str, found: RemoteModel, before: Manifest | None, base: Base
) -> None:
    """Refuse to replace a model other than this one: a name is easily mistyped."""
    strange = sorted(found.files.keys() - _OWN)
    if strange and MANIFEST not in found.files:
        more = ", …" * (len(strange) > _MOST_SHOWN)
        raise HubError(
            f"{repo_id} holds another model ({', '.join(strange[:_MOST_SHOWN])}{more}) "
            "that zoopress did not publish; nothing was sent. Choose another name or another "
            "branch; or, if it shall be replaced, its files removed, say so with --replace."
        )
    if before is None:
        return
    differences = [
        f"{what} {old!r}, not {new!r}"
        for what, old, new in (
            ("the original", _original(before.base), _original(base)),
            ("the card", before.base.name, base.name),
        )
        if old and new and old != new and not (what != "the card" and _renamed(hub, old, new))
    ]
    if differences:
        raise HubError(
            f"{repo_id} holds another model that zoopress published: {' and '.join(differences)}. "
            "Nothing was sent. Check the repository's name; or, if that model shall be replaced, "
            "say so with --replace."
        )


def _manifest(hub: Hub, remote: RemoteModel) -> Manifest | None:
    """Return what a repository's manifest says, None if it has none that can be read."""
    if MANIFEST not in remote.files:
        return None
    address = parse_address(f"{remote.repo_id}@{remote.commit}")
    try:
        got = fetch(hub, address, lambda names: [MANIFEST], whole=False)
        return parse_manifest(got.folder / MANIFEST)
    except ArtifactError:
        return None  # another version of the format: leave what cannot be told


def _original(base: Base) -> str:
    """Return the repository of the original, "" if it is none of the Hub's."""
    if base.base_model:
        return base.base_model
    place = base.source.removeprefix("hub:").partition("@")[0]
    return place if base.source.startswith("hub:") else ""


def _renamed(hub: Hub, old: str, new: str) -> bool:
    """Tell whether two names are of one repository, which was renamed."""
    found = hub.find(old)
    return found is not None and found.repo_id == new
