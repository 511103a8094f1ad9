"""Compressed models on the Hub: find them, and fetch what loading them needs."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from zoopress.artifacts.manifest import MANIFEST, parse_manifest
from zoopress.errors import ArtifactError, InputError
from zoopress.hub.address import Address, looks_like_address, parse_address
from zoopress.hub.client import Hub
from zoopress.hub.download import fetch


def find_artifact(place: str | Path, revision: str | None = None) -> Path:
    """Return the folder of an artifact: a local one, or one fetched from the Hub.

    Args:
        place: a folder, or "org/name", "org/name@revision" or "hub:org/name". A folder that exists
            comes first.
        revision: branch, tag or commit, for a place on the Hub.

    Raises:
        ArtifactError: if it is not there, or is no artifact of zoopress.
        HubError: if it cannot be fetched.
    """
    text = str(place)
    if isinstance(place, Path) or Path(text).exists() or not looks_like_address(text):
        if revision is not None:
            raise InputError(f"'revision' is for models on the Hub, and {text!r} is a folder.")
        return Path(text)
    address = parse_address(text)
    if revision is not None:
        if address.revision not in (None, revision):
            raise InputError(f"{text!r} and revision {revision!r} name two revisions; give one.")
        address = parse_address(f"{address.repo_id}@{revision}")
    return fetch_artifact(address)


def fetch_artifact(address: Address, hub: Hub | None = None) -> Path:
    """Fetch an artifact's files from the Hub, verified, and return their folder.

    Raises:
        ArtifactError: if the repository holds none, or not all of it.
        HubError: if it cannot be fetched.
    """
    hub = hub or Hub()

    def manifest_only(names: Collection[str]) -> list[str]:
        if MANIFEST not in names:
            raise ArtifactError(
                f"{address.repo_id} has no {MANIFEST}, so it is not a model that zoopress "
                "compressed. Load it with the library that it is made for; to compress it, give "
                f"`hub:{address.repo_id}` as a card's source."
            )
        return [MANIFEST]

    first = fetch(hub, address, manifest_only)
    manifest = parse_manifest(first.folder / MANIFEST)

    def all_listed(names: Collection[str]) -> list[str]:
        missing = sorted(manifest.files.keys() - set(names))
        if missing:
            raise ArtifactError(
                f"{address.repo_id} at {first.commit}: {MANIFEST} lists {missing[0]!r}, which the "
                "repository lacks. Its publication was cut off or changed by hand; ask its owner "
                "to publish it again, or take an earlier revision."
            )
        return [MANIFEST, *manifest.files]

    return fetch(hub, Address(address.repo_id, "", first.commit), all_listed).folder
