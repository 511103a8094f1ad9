"""Compressed models on the Hub: find them, and fetch what loading them needs."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import TypedDict

from zoopress.artifacts.manifest import MANIFEST, PICKLES, parse_manifest
from zoopress.errors import ArtifactError, InputError
from zoopress.hub.address import Address, looks_like_address, parse_address
from zoopress.hub.client import Hub
from zoopress.hub.download import Listing, fetch, note_whole
from zoopress.hub.legal_files import LEGAL_FILE


class HubOptions(TypedDict, total=False):
    """How to fetch a model from the Hub, by the names that its other libraries use.

    Attributes:
        token: another than that of the environment; False for none.
        cache_dir: another cache than that of the environment.
        subfolder: where in the repository the model is.
        local_files_only: whether to take it from the cache alone, and make no request.
    """

    token: str | bool | None
    cache_dir: str | Path | None
    subfolder: str
    local_files_only: bool


def find_artifact(
    place: str | Path,
    revision: str | None = None,
    options: HubOptions | None = None,
    whole: bool = False,
) -> Path:
    """Return the folder of an artifact: a local one, or one fetched from the Hub.

    Args:
        place: a folder, or "org/name", "org/name@revision" or "hub:org/name"; with "hub:", a
            folder in the repository may follow, "hub:org/name/FOLDER@revision". A folder that
            exists comes first.
        revision: branch, tag or commit, for a place on the Hub.
        options: how to fetch it.
        whole: whether to fetch what loading does not need, too: the page, licences.

    Raises:
        ArtifactError: if it is not there, or is no artifact of zoopress.
        HubError: if it cannot be fetched.
    """
    text, options = str(place), options or {}
    subfolder = (options.get("subfolder") or "").strip("/")
    explicit = not isinstance(place, Path) and text.startswith("hub:")
    local = isinstance(place, Path) or (Path(text).exists() and not explicit)
    if local or not (explicit or looks_like_address(text)):
        if revision is not None:
            raise InputError(f"'revision' is for models on the Hub, and {text!r} is a folder.")
        return Path(text) / subfolder
    address = parse_address(text)
    if revision is not None:
        if address.revision not in (None, revision):
            raise InputError(f"{text!r} and revision {revision!r} name two revisions; give one.")
        revised = parse_address(f"{address.repo_id}@{revision}").revision
        address = replace(address, revision=revised)
    if subfolder:
        if address.inside and address.inside != subfolder:
            raise InputError(f"{text!r} and subfolder {subfolder!r} name two folders; give one.")
        inside = parse_address(f"{address.repo_id}/{subfolder}").inside
        address = replace(address, inside=inside)
    hub = Hub(options.get("token"), options.get("cache_dir"), bool(options.get("local_files_only")))
    return fetch_artifact(address, hub, whole)


def fetch_artifact(address: Address, hub: Hub | None = None, whole: bool = False) -> Path:
    """Fetch an artifact's files from the Hub, verified, and return their folder.

    Args:
        address: where it is; `inside` is its folder in the repository.
        hub: where from.
        whole: whether to fetch what loading does not need, too: the page, licences. Pickles never.

    Raises:
        ArtifactError: if the repository holds none, or not all of it.
        HubError: if it cannot be fetched.
    """
    hub = hub or Hub()
    inside = address.inside.strip("/")
    start = f"{inside}/" if inside else ""
    place = f"{address.repo_id}/{inside}".rstrip("/")

    def manifest_only(names: Listing) -> list[str]:
        if start + MANIFEST not in names and names.complete:
            folders = sorted(str(PurePosixPath(n).parent) for n in names if n.endswith(MANIFEST))
            there = f" It has one in {', '.join(folders[:5])}: name that." if folders else ""
            raise ArtifactError(
                f"{place} has no {MANIFEST}, so it is not a model that zoopress "
                "compressed. Load it with the library that it is made for; to compress it, give "
                f"`hub:{place}` as a card's source.{there}"
            )
        return [start + MANIFEST]

    first = fetch(hub, address, manifest_only, whole=False)
    manifest = parse_manifest(first.folder / inside / MANIFEST)

    def all_listed(names: Listing) -> list[str]:
        wanted = [start + name for name in manifest.files]
        missing = sorted(set(wanted) - names.keys())
        if missing and names.complete:
            raise ArtifactError(
                f"{place} at {first.commit}: {MANIFEST} lists {missing[0]!r}, which the "
                "repository lacks. Its publication was cut off or changed by hand; ask its owner "
                "to publish it again, or take an earlier revision."
            )
        others = [
            name
            for name in names
            if name.startswith(start) and PurePosixPath(name).suffix.lower() not in PICKLES
        ]
        return [start + MANIFEST, *wanted, *(others if whole else ())]

    fetch(hub, Address(address.repo_id, "", first.commit), all_listed)
    note_whole(hub, address, first.commit)
    return first.folder / inside


def copy_artifact(folder: Path, target: Path, names: Iterable[str]) -> None:
    """Copy an artifact out of the cache, with its page and licences, in one step at the end.

    Args:
        folder: where it is.
        target: a folder that does not exist.
        names: its files.

    Raises:
        InputError: if it cannot be written there.
    """
    beside = (path.name for path in folder.iterdir() if path.is_file())
    legal = (name for name in beside if name == "README.md" or LEGAL_FILE.fullmatch(name))
    part = target.with_name(f".{target.name}.part")
    try:
        shutil.rmtree(part, ignore_errors=True)
        for name in dict.fromkeys((*names, *sorted(legal))):
            (part / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(folder / name, part / name)
        # One rename at the end, so that a folder of this name is always whole.
        part.rename(target)
    except OSError as error:
        shutil.rmtree(part, ignore_errors=True)
        raise InputError(
            f"{target}: cannot be written ({error}). It is in the cache, whole: {folder}."
        ) from error
