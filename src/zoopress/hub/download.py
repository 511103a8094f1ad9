"""Fetch files of a model into the Hub client's cache, and compare every one with its digest.

    HF_HUB_CACHE/models--org--name/
        blobs/, refs/, snapshots/, …   the client's own, see cached.py
        zoopress/COMMIT.json           what the Hub said of the files of a commit
        zoopress/COMMIT.verified.json  which of them were compared, at which size and time
        zoopress/refs/NAME             which commit a branch or tag was last

The client checks sizes alone. A commit never changes, so what is known of one needs no request.
"""

from __future__ import annotations

import glob
import json
import sys
from collections.abc import Callable, Collection, Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Any, NoReturn
from urllib.parse import quote

from zoopress.errors import HubError
from zoopress.hub.address import Address
from zoopress.hub.cached import files_on_disk, listed_tree, note_revision
from zoopress.hub.client import Hub, RemoteFile, log
from zoopress.store import write_atomic

Choose = Callable[["Listing"], Iterable[str]]


class Listing(dict[str, RemoteFile]):
    """Files of a commit by name.

    Attributes:
        complete: whether these are all; not where another program fetched some, and the Hub cannot
            be asked.
    """

    complete = True


@dataclass(frozen=True)
class Snapshot:
    """Files of a commit, on disk and verified.

    Attributes:
        folder: where they are; files that were not asked for may be missing.
        commit: of the repository.
        names: of those that were asked for.
    """

    folder: Path
    commit: str
    names: tuple[str, ...]


def fetch(hub: Hub, address: Address, choose: Choose, whole: bool = True) -> Snapshot:
    """Make files of a repository available on disk, each verified.

    Args:
        hub: where from.
        address: which repository and revision; `inside` is not looked at.
        choose: picks names among all the repository's files.
        whole: whether these are all that a library needs of the model. Then others find them
            under the revision's name, offline too.

    Raises:
        HubError: if they cannot be had whole.
        Whatever `choose` raises.
    """
    cache = _Cache(hub, address.repo_id)
    commit, files = _listing(hub, address, cache)
    names = tuple(dict.fromkeys(choose(files)))
    for name in names:
        if name not in files and not files.complete:
            _refuse_offline(hub, address, commit, [n for n in names if n not in files])
        if name not in files or not _is_plain(name):
            raise HubError(f"{address.repo_id} at {commit} has no file {name!r}.")
    folder = cache.root / "snapshots" / commit
    for last in (False, True):
        missing = [name for name in names if not (folder / name).is_file()]
        if missing:
            _download(hub, address, commit, missing)
        wrong = cache.unverified(commit, folder, {name: files[name] for name in names})
        if not wrong:
            if whole:
                note_whole(hub, address, commit)
            return Snapshot(folder, commit, names)
        for name in wrong:
            _remove(folder / name)
        if hub.offline or last:
            break
        log.warning("%s: wrong bytes in %s; fetching again", address.repo_id, ", ".join(wrong))
    raise HubError(
        f"{address.repo_id} at {commit}: {', '.join(wrong)} differ from the digests that the Hub "
        "states, and were removed. Something between here and there changes or cuts off files: "
        "try another network or proxy."
    )


def note_whole(hub: Hub, address: Address, commit: str) -> None:
    """Note that a revision is a commit whose files are in the cache, for all who look there."""
    if not address.pinned:
        note_revision(_Cache(hub, address.repo_id).root, address.revision or "main", commit)


def _listing(hub: Hub, address: Address, cache: _Cache) -> tuple[str, Listing]:
    """Return a revision's commit and files, without a request if they are known for good."""
    if address.pinned or hub.offline:
        commit = address.revision if address.pinned else cache.resolve(address.revision or "main")
        known = cache.known(commit, hub.offline) if commit else None
        if commit and known is not None:
            return commit, known
    if hub.offline:
        raise HubError(
            f"{hub.why_offline} forbids requests, and {address.repo_id} at "
            f"{address.revision or 'main'} is not in the cache ({cache.root}). Run it once "
            f"{hub.online_again}."
        )
    model = hub.model(address.repo_id, address.revision)
    cache.remember(address.revision or "main", model.commit, model.files)
    return model.commit, Listing(model.files)


class _Cache:
    """What is known of one repository."""

    def __init__(self, hub: Hub, repo_id: str) -> None:
        self.root = hub.cache / f"models--{repo_id.replace('/', '--')}"
        self.own = self.root / "zoopress"

    def resolve(self, revision: str) -> str | None:
        """Return the commit that a branch or tag was when it was last asked for, by whomever."""
        found = []
        for path in (self.own / "refs" / quote(revision, safe=""), self.root / "refs" / revision):
            with suppress(OSError):
                found.append((path.stat().st_mtime_ns, path.read_text(encoding="ascii").strip()))
        return max(found)[1] if found else None

    def known(self, commit: str, offline: bool) -> Listing | None:
        """Return the files of a commit; offline, at least those that are here."""
        recorded = _read_json(self.own / f"{commit}.json")
        with suppress(TypeError, AttributeError):
            if recorded:
                return Listing({name: RemoteFile(**each) for name, each in recorded.items()})
        if not offline:
            return None
        if (tree := listed_tree(self.root, commit)) is not None:
            return Listing(tree)
        found = Listing(files_on_disk(self.root, commit))
        found.complete = False
        return found or None

    def remember(self, revision: str, commit: str, files: dict[str, RemoteFile]) -> None:
        """Note a commit's files, and that a revision is this commit."""
        with suppress(OSError):  # a cache that cannot be written to is only asked again
            (self.own / "refs").mkdir(parents=True, exist_ok=True)
            write_atomic(self.own / f"{commit}.json", _json(_plain_data(files)))
            if revision != commit:
                write_atomic(self.own / "refs" / quote(revision, safe=""), commit)

    def unverified(self, commit: str, folder: Path, files: dict[str, RemoteFile]) -> list[str]:
        """Compare files with their digests, those alone that changed since; return the wrong."""
        note = self.own / f"{commit}.verified.json"
        verified = _read_json(note)
        wrong, changed = [], False
        for name, expected in files.items():
            path = folder / name
            with suppress(OSError):
                state = path.stat()
                stamp = [state.st_size, state.st_mtime_ns, state.st_ino]
                if verified.get(name) == stamp:
                    continue
                if not expected.contradicts(path):
                    verified[name], changed = stamp, True
                    continue
            wrong.append(name)
        if changed:
            with suppress(OSError):
                self.own.mkdir(parents=True, exist_ok=True)
                write_atomic(note, _json(verified))
        return wrong


def _download(hub: Hub, address: Address, commit: str, names: Collection[str]) -> None:
    if hub.offline:
        _refuse_offline(hub, address, commit, names)
    hub.call(
        f"fetching {address.repo_id}",
        lambda: hub.api.snapshot_download(
            address.repo_id,
            revision=commit,
            allow_patterns=[glob.escape(name) for name in names],
            cache_dir=hub.cache,
            tqdm_class=_bar(),
        ),
        address.repo_id,
        commit,
    )


def _refuse_offline(hub: Hub, address: Address, commit: str, names: Collection[str]) -> NoReturn:
    raise HubError(
        f"{hub.why_offline} forbids requests, and the cache lacks {', '.join(sorted(names))} of "
        f"{address.repo_id} at {commit}. Run it once {hub.online_again}."
    )


def _bar() -> Any:
    """Return the class of the client's progress bars: silent where nobody watches."""
    from huggingface_hub import utils

    client_bar: Any = utils.tqdm  # type: ignore[attr-defined]

    class Bar(client_bar):  # type: ignore[misc]
        def __init__(self, *arguments: Any, **options: Any) -> None:
            if not sys.stderr.isatty():
                options["disable"] = True
            super().__init__(*arguments, **options)

    return Bar


def _remove(path: Path) -> None:
    """Remove a file of a snapshot and the blob it leads to."""
    with suppress(OSError):
        target = path.resolve()
        path.unlink()
        if target != path:
            target.unlink()


def _is_plain(name: str) -> bool:
    parts = PurePosixPath(name).parts
    return "/".join(parts) == name and ".." not in parts and "\\" not in name


def _plain_data(files: dict[str, RemoteFile]) -> dict[str, Any]:
    return {name: asdict(file) for name, file in files.items()}


def _read_json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _json(data: dict[str, Any]) -> str:
    return json.dumps(data, separators=(",", ":"))
