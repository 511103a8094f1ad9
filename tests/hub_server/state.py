"""All that one Hub knows: users, repositories, collections; with the interface for tests."""

import hashlib
import re
import secrets
import threading
from collections.abc import Collection as Names, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Literal

from hub_server.messages import Request
from hub_server.storage import (
    GITATTRIBUTES,
    Change,
    Commit,
    Gated,
    HubError,
    Repo,
    UploadRules,
    make_blobs,
    now,
)

Files = Mapping[str, bytes | str | Path]


@dataclass(frozen=True)
class User:
    """An account with one token."""

    name: str
    token: str
    orgs: tuple[str, ...] = ()
    role: Literal["read", "write"] = "write"

    def belongs_to(self, namespace: str | None) -> bool:
        return namespace == self.name or namespace in self.orgs


@dataclass
class Collection:
    """A list of models."""

    slug: str
    title: str
    owner: str
    items: list[str]
    private: bool = False
    description: str | None = None
    updated: datetime = field(default_factory=now)


class HubState:
    """What the server serves. Tests fill and inspect it from their own thread."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.reset()

    def reset(self) -> None:
        """Forget everything."""
        with self.lock:
            self.rules = UploadRules()
            self.page_size: int | None = None  # None: the Hub's own, 1000 or 50 by endpoint
            self.repos: dict[str, Repo] = {}
            self.moved: dict[str, str] = {}
            self.users: dict[str, User] = {}
            self.collections: dict[str, Collection] = {}
            self.uploads: set[str] = set()  # announced; each "repository/sha256"
            self.parts: dict[str, bytes] = {}  # of uploads not yet put together

    # Accounts

    def add_user(
        self,
        name: str,
        token: str | None = None,
        orgs: Sequence[str] = (),
        role: Literal["read", "write"] = "write",
    ) -> User:
        """Add an account; the same name again adds another token."""
        user = User(name, token or f"hf_{secrets.token_hex(17)}", tuple(orgs), role)
        self.users[user.token] = user
        return user

    def user_of(self, request: Request) -> User | None:
        """Return who asks; `None` is anybody."""
        if request.token is None:
            return None
        if request.token not in self.users:
            raise HubError(401, "Invalid credentials in Authorization header")
        return self.users[request.token]

    # Repositories

    def create_repo(
        self,
        repo_id: str,
        files: Files | None = None,
        *,
        private: bool = False,
        gated: bool | Gated = False,
        large: Names[str] | None = None,
        gitattributes: bool = False,
    ) -> Repo:
        """Make a repository with one commit; `large` names the LFS files, else the rules decide.

        The Hub puts a `.gitattributes` into every new repository; here it is left out unless asked
        for, so that tests see the files that they wrote.
        """
        with self.lock:
            if repo_id in self.repos:
                raise ValueError(f"{repo_id} exists")
            kind: Gated = ("auto" if gated else False) if isinstance(gated, bool) else gated
            repo = Repo(repo_id, private, kind)
            first = {".gitattributes": GITATTRIBUTES} if gitattributes else {}
            blobs = make_blobs({**first, **(files or {})}, self.rules, GITATTRIBUTES, large)
            repo.start(blobs, repo.namespace or "huggingface")
            self.repos[repo_id] = repo
            self.moved.pop(repo_id, None)
            return repo

    def commit(
        self,
        repo_id: str,
        files: Files | None = None,
        *,
        delete: Iterable[str] = (),
        message: str = "Update",
        branch: str = "main",
        large: Names[str] | None = None,
    ) -> str:
        """Commit to a branch, as somebody else would; return the commit's hash."""
        with self.lock:
            repo = self.repos[repo_id]
            attributes = repo.resolve(branch).files.get(".gitattributes")
            content = attributes.content if attributes else b""
            additions = make_blobs(files or {}, self.rules, content, large)
            change = Change(message, additions=additions, deletions=list(delete))
            return repo.apply(change, branch, repo.namespace or "huggingface").id

    def files(self, repo_id: str, rev: str = "main") -> dict[str, bytes]:
        with self.lock:
            commit = self.repos[repo_id].resolve(rev)
            return {path: blob.content for path, blob in commit.files.items()}

    def commits(self, repo_id: str, rev: str = "main") -> list[Commit]:
        """Return commits, newest first."""
        with self.lock:
            return self.repos[repo_id].history(rev)

    def head(self, repo_id: str, rev: str = "main") -> str:
        return self.repos[repo_id].resolve(rev).id

    def tags(self, repo_id: str) -> dict[str, str]:
        return dict(self.repos[repo_id].tags)

    def branches(self, repo_id: str) -> dict[str, str]:
        return dict(self.repos[repo_id].branches)

    def tag(self, repo_id: str, name: str, rev: str = "main") -> None:
        self.repos[repo_id].tags[name] = self.head(repo_id, rev)

    def branch(self, repo_id: str, name: str, rev: str = "main") -> None:
        self.repos[repo_id].branches[name] = self.head(repo_id, rev)

    def delete_tag(self, repo_id: str, name: str) -> None:
        del self.repos[repo_id].tags[name]

    def delete_branch(self, repo_id: str, name: str) -> None:
        del self.repos[repo_id].branches[name]

    def delete_revision(self, repo_id: str, commit: str) -> None:
        """Let a commit be gone, as after a squash. What names it by tag or branch goes as well."""
        with self.lock:
            repo = self.repos[repo_id]
            del repo.commits[commit]
            repo.tags = {name: target for name, target in repo.tags.items() if target != commit}
            repo.branches = {
                name: target for name, target in repo.branches.items() if target != commit
            }

    def delete_repo(self, repo_id: str) -> None:
        with self.lock:
            del self.repos[repo_id]

    def rename(self, old: str, new: str) -> None:
        """Rename a repository; the old name redirects."""
        with self.lock:
            repo = self.repos.pop(old)
            repo.id = new
            self.repos[new] = repo
            self.moved = {name: new if to == old else to for name, to in self.moved.items()}
            self.moved.pop(new, None)
            self.moved[old] = new

    def grant(self, repo_id: str, user: str) -> None:
        """Let a user download from a gated repository."""
        self.repos[repo_id].granted.add(user)

    # Collections

    def add_collection(
        self,
        title: str,
        owner: str,
        items: Sequence[str] = (),
        *,
        slug: str | None = None,
        private: bool = False,
        description: str | None = None,
    ) -> Collection:
        """Add a list of models; its slug is made as the Hub makes it unless given."""
        if slug is None:
            words = re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")
            slug = f"{owner}/{words}-{hashlib.sha256(f'{owner}/{title}'.encode()).hexdigest()[:24]}"
        collection = Collection(slug, title, owner, list(items), private, description)
        self.collections[slug] = collection
        return collection

    # Who may do what

    def readable(self, repo: Repo, user: User | None) -> bool:
        return not repo.private or (user is not None and user.belongs_to(repo.namespace))

    def find(self, repo_id: str, user: User | None) -> Repo:
        """Return a repository that the user may see. The Hub hides those that he may not."""
        repo = self.repos.get(repo_id)
        if repo is not None and self.readable(repo, user):
            return repo
        if user is None:
            raise HubError(401, "Invalid username or password.", "RepoNotFound")
        raise HubError(404, "Repository not found", "RepoNotFound")

    def find_for_writing(self, repo_id: str, user: User | None) -> Repo:
        repo = self.find(repo_id, user)
        if user is None:
            raise HubError(401, "Invalid username or password.", "RepoNotFound")
        if user.role != "write":
            raise HubError(403, "Forbidden: you must use a write token to write to a repository")
        if not user.belongs_to(repo.namespace):
            raise HubError(403, "Forbidden: you don't have write access to this repository")
        return repo

    def check_gate(self, repo: Repo, user: User | None) -> None:
        """Refuse to hand out files of a gated repository. Its metadata are public."""
        if not repo.gated:
            return
        if user is None:
            raise HubError(
                401,
                f"Access to model {repo.id} is restricted. You must have access to it and be"
                " authenticated to access it. Please log in.",
                "GatedRepo",
            )
        if user.name not in repo.granted and not user.belongs_to(repo.namespace):
            raise HubError(
                403,
                f"Access to model {repo.id} is restricted and you are not in the authorized list.",
                "GatedRepo",
            )
