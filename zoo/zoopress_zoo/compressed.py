"""Compressed models as sources: a run's folder, an artifact's, and one on the Hub."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import replace
from pathlib import Path

from zoopress.artifacts.card_model import artifact_files, listed_files
from zoopress.artifacts.manifest import MANIFEST, Manifest, parse_manifest
from zoopress.errors import ArtifactError, SourceError
from zoopress.hub.address import Address
from zoopress.hub.client import Hub
from zoopress.hub.download import Snapshot, fetch
from zoopress.publishing.licenses import LEGAL_FILE
from zoopress.sources import SourceFiles


def find_artifact(folder: Path) -> Path | None:
    """Return the artifact that a folder is or, as that of a run, holds; None if there is none."""
    if (folder / MANIFEST).is_file():
        return folder
    inside = folder / "artifact"
    is_run = (inside / MANIFEST).is_file() and not (folder / "config.json").is_file()
    return inside if is_run else None


def local_files(folder: Path, revision: str) -> SourceFiles:
    """Return the files of an artifact on disk.

    Raises:
        SourceError: if it is damaged or of another version.
    """
    legal = (path.name for path in folder.iterdir() if LEGAL_FILE.fullmatch(path.name))
    return artifact_files(folder, revision, tuple(sorted(legal)))


def manifest_name(names: Collection[str], inside: str) -> str | None:
    """Return the name of the manifest of a repository's compressed model, None if it has none.

    Args:
        names: all of its files.
        inside: the folder of the repository that is meant, "" for the top.
    """
    name = f"{inside.strip('/')}/{MANIFEST}".lstrip("/")
    return name if name in names else None


def remote_files(
    hub: Hub,
    address: Address,
    snapshot: Snapshot,
    wanted: Callable[[SourceFiles, str], bool] = lambda files, name: True,
) -> SourceFiles:
    """Return the files of an artifact on the Hub, and fetch those that are wanted.

    Args:
        hub: where from.
        address: of its repository, and the folder in that.
        snapshot: of the commit, with the manifest.
        wanted: tells of each file whether to fetch it.

    Raises:
        HubError: if they cannot be had.
        SourceError: if the repository lacks one, or the manifest is damaged.
    """
    inside = address.inside.strip("/")
    start = f"{inside}/" if inside else ""
    folder = snapshot.folder / inside
    try:
        manifest: Manifest = parse_manifest(folder / MANIFEST)
    except ArtifactError as error:
        raise SourceError(f"{address.repo_id} at {snapshot.commit}: {error}") from error
    files = listed_files(manifest, folder, snapshot.commit)

    def choose(names: Collection[str]) -> list[str]:
        nonlocal files
        here = {name.removeprefix(start) for name in names if name.startswith(start)}
        missing = sorted(set(files.all) - here)
        if missing:
            raise SourceError(
                f"{address.repo_id} at {snapshot.commit}: {MANIFEST} lists {missing[0]!r}, which "
                "the repository lacks. Its publication was cut off or changed by hand; ask its "
                "owner to publish it again, or take an earlier revision."
            )
        legal = {name for name in here if LEGAL_FILE.fullmatch(name)}
        files = replace(files, others=(*files.others, *sorted(legal - set(files.others))))
        return [start + name for name in files.all if wanted(files, name)]

    fetch(hub, Address(address.repo_id, "", snapshot.commit), choose)
    return files
