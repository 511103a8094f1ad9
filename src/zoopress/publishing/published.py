"""What was published of a run: `published.json` in its folder, a list, newest last."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from zoopress.errors import ArtifactError
from zoopress.store import write_atomic

PUBLISHED = "published.json"


@dataclass(frozen=True)
class PublishedRecord:
    """One version on the Hub.

    Attributes:
        repo_id: where it is.
        url: of its page.
        commit: of the Hub's repository.
        tag: of that commit, if it was given one.
        artifact_sha256: of the artifact's zoopress.json.
        git_commit: the commit that reproduces it, None if none is known.
        git_repository: of that commit.
        source_revision: of the original.
    """

    repo_id: str
    url: str
    commit: str
    tag: str | None
    artifact_sha256: str
    git_commit: str | None
    git_repository: str | None
    source_revision: str

    def as_dict(self) -> dict[str, Any]:
        """Return plain data."""
        return asdict(self)


def read_published(run: Path) -> list[PublishedRecord]:
    """Return what was published of a run, oldest first.

    Raises:
        ArtifactError: if the file is there and cannot be read.
    """
    path = run / PUBLISHED
    if not path.is_file():
        return []
    names = [field.name for field in fields(PublishedRecord)]
    try:
        items = json.loads(path.read_bytes())
        return [PublishedRecord(**{name: item[name] for name in names}) for item in items]
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise ArtifactError(
            f"{path}: is no list of what was published ({type(error).__name__}: {error}). Take it "
            "from git, or delete it: publishing again writes it anew."
        ) from error


def add_published(run: Path, record: PublishedRecord) -> None:
    """Add a record, in one step; what is there already stays as it is.

    Raises:
        ArtifactError: if the file is there and cannot be read.
        OSError: if it cannot be written.
    """
    records = read_published(run)
    if record not in records:
        content = [item.as_dict() for item in (*records, record)]
        write_atomic(run / PUBLISHED, json.dumps(content, indent=2) + "\n")


def last_published(
    run: Path, repo_id: str, artifact_sha256: str, source_revision: str
) -> PublishedRecord | None:
    """Return the newest record of a model in a repository, None if it was not published there."""
    for record in reversed(read_published(run)):
        about = (record.repo_id, record.artifact_sha256, record.source_revision)
        if about == (repo_id, artifact_sha256, source_revision):
            return record
    return None
