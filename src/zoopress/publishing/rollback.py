"""Bring back an earlier version of a published model: one commit on top, nothing is rewritten.

The files of the earlier version are fetched and compared with their digests before anything is
sent; the large ones are on the Hub already and are not sent again. After the commit the Hub's
digests are compared with the earlier version's.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zoopress.artifacts.manifest import MANIFEST
from zoopress.errors import HubError, InputError
from zoopress.hub.address import parse_address
from zoopress.hub.client import Hub, RemoteModel, log, status_of
from zoopress.hub.download import fetch
from zoopress.publishing.against_published import ROLLED_BACK
from zoopress.results.figures import mapping

_KEPT = ".gitattributes"
"""The Hub's own; without it large files would be stored as small ones."""
_MOST_CONFLICTS = 5


@dataclass(frozen=True)
class RolledBack:
    """What a rollback did.

    Attributes:
        repo_id: of the repository.
        url: of its page.
        was: the commit that was the newest.
        to: the commit whose files are back.
        commit: the newest now.
        changed: files that were put back or removed; empty if there was nothing to do.
    """

    repo_id: str
    url: str
    was: str
    to: str
    commit: str
    changed: tuple[str, ...]


def roll_back(
    hub: Hub, repo: str, to: str | None = None, branch: str = "main", dry_run: bool = False
) -> RolledBack:
    """Put the files of an earlier version on top of a branch.

    Args:
        hub: where it is published.
        repo: the repository.
        to: a tag or commit; by default the newest commit that holds another model.
        branch: which is put back.
        dry_run: find out what would be done; change nothing.

    Raises:
        HubError: if there is no such version, it holds no compressed model, or the Hub does not
            take it; then it holds either all of it or what it held before.
    """
    address = parse_address(repo)
    if address.inside or address.revision:
        raise InputError(f"{repo!r}: give the repository alone, as 'org/name', and --to REVISION.")
    if hub.offline:
        raise HubError("HF_HUB_OFFLINE forbids requests. Unset it to roll back.")
    for _ in range(_MOST_CONFLICTS):
        now = hub.model(address.repo_id, branch)
        then = hub.model(now.repo_id, to) if to else _before(hub, now, branch)
        if MANIFEST not in then.files:
            raise HubError(
                f"{now.repo_id} at {to or then.commit} holds no {MANIFEST}, so no compressed model "
                "that could be brought back. Choose another --to; `zoopress lineage "
                f"{now.repo_id}` shows where a version comes from."
            )
        changed = _changed(now, then)
        commit: str | None = now.commit
        if changed and not dry_run:
            commit = _commit(hub, now, then, changed, branch)
        if commit is not None:
            break
        log.warning("%s: another commit came first; comparing again", now.repo_id)
    else:
        raise HubError(
            f"{now.repo_id}: another commit came first {_MOST_CONFLICTS} times. Somebody else "
            "writes to it at the same time; try again when they are done."
        )
    if changed and not dry_run:
        _verify(hub.model(now.repo_id, commit), then)
    url = f"{hub.api.endpoint}/{now.repo_id}"
    return RolledBack(now.repo_id, url, now.commit, then.commit, commit, changed)


def _before(hub: Hub, now: RemoteModel, branch: str) -> RemoteModel:
    """Return the newest version that holds another model than the branch does now."""
    commits = hub.call(
        f"asking what was committed to {now.repo_id}",
        lambda: hub.api.list_repo_commits(now.repo_id, revision=branch),
        now.repo_id,
    )
    for commit in commits[1:]:
        then = hub.model(now.repo_id, commit.commit_id)
        if MANIFEST in then.files and then.files[MANIFEST] != now.files.get(MANIFEST):
            return then
    raise HubError(
        f"{now.repo_id} holds no version before the one on {branch!r} ({now.commit[:12]}) with "
        "another model, so there is nothing to roll back to."
    )


def _changed(now: RemoteModel, then: RemoteModel) -> tuple[str, ...]:
    names = (now.files.keys() | then.files.keys()) - {_KEPT}
    return tuple(sorted(n for n in names if now.files.get(n) != then.files.get(n)))


def _commit(
    hub: Hub, now: RemoteModel, then: RemoteModel, changed: tuple[str, ...], branch: str
) -> str | None:
    """Make the commit; None if another came first."""
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete

    back = [name for name in changed if name in then.files]
    address = parse_address(f"{now.repo_id}@{then.commit}")
    folder: Path = fetch(hub, address, lambda _: back).folder
    taken = str(mapping(now.card.get("zoopress")).get("artifact_sha256") or "unknown")

    def work() -> str | None:
        # The client notes its progress in the operations, so every attempt has new ones.
        operations: list[Any] = [CommitOperationAdd(name, str(folder / name)) for name in back]
        operations += [CommitOperationDelete(name) for name in changed if name not in then.files]
        try:
            made = hub.api.create_commit(
                now.repo_id,
                operations,
                commit_message=f"Roll back to {then.commit[:12]}",
                commit_description=f"{ROLLED_BACK}{taken}, at {now.commit}.",
                revision=branch,
                parent_commit=now.commit,
            )
        except Exception as error:
            if status_of(error) == 412:
                return None
            raise
        return str(made.oid)

    return hub.call(f"rolling {now.repo_id} back", work, now.repo_id, branch)


def _verify(held: RemoteModel, then: RemoteModel) -> None:
    wrong = _changed(held, then)
    if wrong:
        raise HubError(
            f"{held.repo_id} at {held.commit}: differs from {then.commit} in {', '.join(wrong)} "
            "after it was rolled back. Roll back again; if that does not help, delete these files "
            "on the Hub first."
        )
