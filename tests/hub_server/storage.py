"""Repositories in memory: content-addressed blobs, immutable commits, branches and tags."""

import fnmatch
import hashlib
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timezone
from functools import cached_property
from itertools import pairwise
from pathlib import Path, PurePosixPath
from types import MappingProxyType
from typing import Literal

from hub_server import git_objects

# What the Hub writes into a new model repository, shortened.
GITATTRIBUTES = "".join(
    f"*.{ending} filter=lfs diff=lfs merge=lfs -text\n"
    for ending in ("7z", "bin", "gz", "h5", "npy", "npz", "onnx", "pt", "pth", "safetensors", "zip")
).encode()

Gated = Literal["auto", "manual", False]


class HubError(Exception):
    """An answer other than success: status, `X-Error-Message` and, where it has one, the code."""

    def __init__(
        self, status: int, message: str, code: str | None = None, commit: str | None = None
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.code, self.commit = status, message, code, commit


@dataclass(frozen=True)
class Blob:
    """A file's content. Of a large file, git itself keeps only a pointer."""

    content: bytes
    lfs: bool

    @cached_property
    def sha256(self) -> str:
        return hashlib.sha256(self.content).hexdigest()

    @cached_property
    def pointer(self) -> bytes:
        return git_objects.lfs_pointer(self.sha256, len(self.content))

    @cached_property
    def oid(self) -> str:
        return git_objects.blob_id(self.pointer if self.lfs else self.content)

    @property
    def etag(self) -> str:
        return self.sha256 if self.lfs else self.oid


@dataclass(frozen=True)
class Commit:
    """An immutable tree with its parent."""

    files: Mapping[str, Blob]
    parent: str | None
    title: str
    message: str
    author: str
    date: datetime

    @cached_property
    def trees(self) -> dict[str, str]:
        return git_objects.tree_ids({path: blob.oid for path, blob in self.files.items()})

    @cached_property
    def id(self) -> str:
        text = f"{self.title}\n\n{self.message}" if self.message else self.title
        seconds = int(self.date.timestamp())
        return git_objects.commit_id(self.trees[""], self.parent, self.author, seconds, text)


@dataclass
class Change:
    """What one commit does, in this order: copies and deletions, then additions."""

    title: str
    message: str = ""
    parent: str | None = None
    additions: dict[str, Blob] = field(default_factory=dict)
    deletions: list[str] = field(default_factory=list)
    folder_deletions: list[str] = field(default_factory=list)
    copies: list[tuple[str, str, str | None]] = field(default_factory=list)  # from, to, revision


@dataclass
class Repo:
    """A model repository."""

    id: str
    private: bool = False
    gated: Gated = False
    granted: set[str] = field(default_factory=set)
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    commits: dict[str, Commit] = field(default_factory=dict)
    large_objects: dict[str, bytes] = field(default_factory=dict)
    created: datetime = field(default_factory=lambda: now())

    @property
    def namespace(self) -> str | None:
        name = self.id.removeprefix("datasets/")
        return name.split("/")[0] if "/" in name else None

    def resolve(self, revision: str) -> Commit:
        """Return the commit that a branch, a tag or a full hash names."""
        for short, prefix in ((self.branches, "refs/heads/"), (self.tags, "refs/tags/")):
            name = revision.removeprefix(prefix)
            if name in short:
                return self.commits[short[name]]
        if revision in self.commits:
            return self.commits[revision]
        raise HubError(404, f"Invalid rev id: {revision}", "RevisionNotFound")

    def history(self, revision: str) -> list[Commit]:
        """Return commits from `revision` back, as far as they are kept."""
        commits = [self.resolve(revision)]
        while (parent := commits[-1].parent) in self.commits:
            commits.append(self.commits[parent])
        return commits

    def last_change(self, revision: str, path: str) -> Commit:
        """Return the newest commit that changed a file or something below a folder."""
        history = self.history(revision)

        def state(commit: Commit) -> object:
            blob = commit.files.get(path)
            return blob.oid if blob else commit.trees.get(path)

        for commit, parent in pairwise(history):
            if state(commit) != state(parent):
                return commit
        return history[-1]

    def apply(self, change: Change, branch: str, author: str) -> Commit:
        """Commit to a branch, wholly or not at all."""
        if branch.removeprefix("refs/heads/") not in self.branches:
            raise HubError(404, f"Invalid rev id: {branch}", "RevisionNotFound")
        branch = branch.removeprefix("refs/heads/")
        head = self.commits[self.branches[branch]]
        if change.parent is not None and not head.id.startswith(change.parent.lower()):
            raise HubError(412, "A commit has happened since. Please refresh and try again.")
        files = dict(head.files)
        for source, target, revision in change.copies:
            origin = self.resolve(revision).files if revision else head.files
            if source not in origin:
                raise HubError(404, f'"{source}" does not exist', "EntryNotFound")
            files[target] = origin[source]
        for path in change.deletions:
            if path not in files:
                raise HubError(404, "A file with this name doesn't exist", "EntryNotFound")
            del files[path]
        for folder in change.folder_deletions:
            inside = [path for path in files if path.startswith(folder.rstrip("/") + "/")]
            if not inside:
                raise HubError(404, "A folder with this name doesn't exist", "EntryNotFound")
            for path in inside:
                del files[path]
        files.update(change.additions)
        folders = {str(parent) for path in files for parent in PurePosixPath(path).parents}
        if both := folders & set(files):
            raise HubError(400, f'"{min(both)}" cannot be a file and a folder')
        return self._record(files, head.id, change, branch, author)

    def start(self, files: Mapping[str, Blob], author: str) -> Commit:
        """Make the first commit."""
        return self._record(files, None, Change("initial commit"), "main", author)

    def _record(
        self,
        files: Mapping[str, Blob],
        parent: str | None,
        change: Change,
        branch: str,
        author: str,
    ) -> Commit:
        commit = Commit(
            MappingProxyType(dict(sorted(files.items()))),
            parent,
            change.title,
            change.message,
            author,
            now(),
        )
        for blob in commit.files.values():
            if blob.lfs:
                self.large_objects[blob.sha256] = blob.content
        self.commits[commit.id] = commit
        self.branches[branch] = commit.id
        return commit


@dataclass(frozen=True)
class UploadRules:
    """Which files are large files: by size, and by `.gitattributes` where that is asked for.

    Those larger than `part_size`, if that is set, are sent in parts of so many bytes.
    """

    threshold: int = 10_000_000
    follow_gitattributes: bool = False
    part_size: int | None = None

    def is_large(self, path: str, size: int, gitattributes: bytes = b"") -> bool:
        if size >= self.threshold:
            return True
        return self.follow_gitattributes and matches(path, lfs_patterns(gitattributes))


def lfs_patterns(gitattributes: bytes) -> list[str]:
    lines = gitattributes.decode(errors="replace").splitlines()
    return [line.split()[0] for line in lines if re.search(r"\sfilter=lfs\b", line)]


def ignore_patterns(gitignore: str) -> list[str]:
    lines = (line.strip() for line in gitignore.splitlines())
    return [line for line in lines if line and not line.startswith("#")]


def matches(path: str, patterns: Iterable[str]) -> bool:
    """Say whether a git pattern fits: on the name, the path, or a folder above."""
    parts = path.split("/")
    above = ["/".join(parts[:count]) for count in range(1, len(parts))]
    for pattern in patterns:
        candidates = above if pattern.endswith("/") else [path, *above]
        bare = pattern.strip("/")
        if any(
            fnmatch.fnmatchcase(candidate, bare)
            or ("/" not in bare and fnmatch.fnmatchcase(candidate.split("/")[-1], bare))
            for candidate in candidates
        ):
            return True
    return False


def make_blobs(
    files: Mapping[str, bytes | str | Path],
    rules: UploadRules,
    gitattributes: bytes = b"",
    large: Collection[str] | None = None,
) -> dict[str, Blob]:
    """Read files given as content or as paths; `large` names those to keep as large files."""
    blobs = {}
    for path, given in files.items():
        if isinstance(given, Path):
            content = given.read_bytes()
        else:
            content = given.encode() if isinstance(given, str) else bytes(given)
        is_large = (
            rules.is_large(path, len(content), gitattributes) if large is None else path in large
        )
        blobs[path] = Blob(content, lfs=is_large and len(content) > 0)
    return blobs


def now() -> datetime:
    return datetime.now(timezone.utc)


def timestamp(moment: datetime) -> str:
    return moment.strftime("%Y-%m-%dT%H:%M:%S.") + f"{moment.microsecond // 1000:03d}Z"
