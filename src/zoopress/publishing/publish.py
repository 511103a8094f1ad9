"""Publish a compressed model: one commit that has all of it, or none.

What a repository holds is compared with what shall be in it by digest, so the same model again
makes no commit, and a push that broke anywhere is repeated by the same command: large files that
arrived are not sent again. After the commit, the Hub's digests are compared once more.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from zoopress.artifacts.manifest import MANIFEST, Base
from zoopress.errors import HubError, InputError
from zoopress.hub.address import parse_address
from zoopress.hub.client import Hub, RemoteModel, log, status_of
from zoopress.provenance import COMMIT_KEYS, versioned_state
from zoopress.publishing.against_published import MARGIN, refuse_worse
from zoopress.publishing.base_on_hub import (
    base_info,
    check_recorded_license,
    find_base,
    legal_texts,
)
from zoopress.publishing.exports import Exports
from zoopress.publishing.licenses import check_license
from zoopress.publishing.model_card import render_model_card
from zoopress.publishing.published import PUBLISHED, PublishedRecord, add_published, last_published
from zoopress.publishing.release import Release, refuse_low_quality
from zoopress.publishing.target import README as README, exports_before, look_at_target

_MOST_CONFLICTS = 5


@dataclass(frozen=True)
class PushOptions:
    """How to publish.

    Attributes:
        private: whether a new repository is private; None for the Hub's default.
        branch: the branch to commit to.
        tag: a tag for the commit, None for none.
        message: of the commit.
        template: file of a template for the model card, see docs/model-card.md.
        permission: where the owner of the original allows what its licence does not.
        allow_low_quality: whether to publish a model that is unlike its original.
        replace: whether to replace another model that the repository holds.
        install: what pip takes to install zoopress, for the page; None for where it came from here.
        allow_worse: whether to replace a better model, or bring back one that was rolled back.
        worse_margin: how much worse it may be all the same, as a share of the original's figure.
        exports: what goes beside it for those who have no zoopress.
    """

    private: bool | None = None
    branch: str = "main"
    tag: str | None = None
    message: str | None = None
    template: Path | None = None
    permission: str | None = None
    allow_low_quality: bool = False
    replace: bool = False
    install: str | None = None
    allow_worse: bool = False
    worse_margin: float = MARGIN
    exports: Exports = field(default_factory=Exports)


@dataclass(frozen=True)
class PushPlan:
    """What a push would do.

    Attributes:
        repo_id: where to.
        contents: what the repository shall hold, by path: files, or text to be written.
        exists: whether the repository is there.
        parent: the commit that the push goes on top of.
        added, changed, removed, same: paths.
        upload_bytes: of what is added and changed.
    """

    repo_id: str
    contents: Mapping[str, Path | bytes]
    exists: bool
    parent: str | None
    added: tuple[str, ...]
    changed: tuple[str, ...]
    removed: tuple[str, ...]
    same: tuple[str, ...]
    upload_bytes: int

    @property
    def readme(self) -> str:
        """The model card."""
        content = self.contents[README]
        assert isinstance(content, bytes)
        return content.decode()

    @property
    def nothing(self) -> bool:
        """Whether the repository holds all of it already."""
        return self.exists and not (self.added or self.changed or self.removed)


@dataclass(frozen=True)
class Published:
    """Where a model is now."""

    repo_id: str
    url: str
    commit: str
    tag: str | None
    changed: bool
    """Whether there was anything to commit."""


def plan_push(hub: Hub, release: Release, repo_id: str, options: PushOptions) -> PushPlan:
    """Find out what a push would do; changes nothing.

    Raises:
        GateError: if the model is unlike its original, or worse than the one that it would
            replace, and the options do not allow it.
        HubError: if it must not be done, or the Hub cannot be asked.
    """
    if hub.offline:
        raise HubError("HF_HUB_OFFLINE forbids requests. Unset it to publish.")
    if not options.allow_low_quality:
        refuse_low_quality(release.report)
    repo_id = _full_name(hub, repo_id)
    report = naming_commit(release, repo_id).report
    base = find_base(hub, report)
    legal = legal_texts(hub, base, release.manifest)
    carried = sorted({*release.manifest.files, *legal})
    info = base_info(base) if base else None
    if base is None:
        check_recorded_license(report, options.permission)
    kept = _kept_to_owner(hub, repo_id, base, options)
    check_license(report.card, carried, info, options.permission, repo_id, kept)
    exports = options.exports.with_figures_of(exports_before(hub, repo_id, options.branch))
    readme = render_model_card(
        report,
        repo_id,
        options.template,
        options.permission,
        carried,
        install=options.install,
        exports=exports,
    )
    wanted = {**_contents(release, readme), **exports.files, **legal}
    plan = _compare(hub, repo_id, wanted, options, release.manifest.base)
    if plan.exists and not plan.nothing and not options.allow_worse:
        refuse_worse(hub, report, repo_id, options.branch, options.worse_margin)
    return plan


def push(hub: Hub, release: Release, repo_id: str, options: PushOptions) -> Published:
    """Publish a compressed model, and note in its run's `published.json` where it is.

    Raises:
        HubError: if it must not be published, or the Hub does not take it; then it holds either
            all of it or what it held before.
    """
    plan = plan_push(hub, release, repo_id, options)
    repo_id, release = plan.repo_id, naming_commit(release, plan.repo_id)
    if not plan.exists:
        hub.call(
            f"making {repo_id}",
            lambda: hub.api.create_repo(repo_id, private=options.private, exist_ok=True),
            repo_id,
        )
    if options.branch != "main":
        hub.call(
            f"making the branch {options.branch}",
            lambda: hub.api.create_branch(repo_id, branch=options.branch, exist_ok=True),
            repo_id,
        )
    if not plan.exists or options.branch != "main":
        plan = _compare(hub, repo_id, plan.contents, options, release.manifest.base)
    for _ in range(_MOST_CONFLICTS):
        made = None if plan.nothing else _commit(hub, release, plan, options)
        if plan.nothing or made is not None:
            break
        log.warning("%s: another commit came first; comparing again", repo_id)
        plan = _compare(hub, repo_id, plan.contents, options, release.manifest.base)
    else:
        raise HubError(
            f"{repo_id}: another commit came first {_MOST_CONFLICTS} times. Somebody else writes "
            "to it at the same time; try again when they are done."
        )
    commit = made or plan.parent
    assert commit is not None, "nothing to do, in a repository without a commit"
    _verify(hub, repo_id, commit, plan.contents)
    if options.tag is not None:
        _tag(hub, repo_id, options.tag, commit)
    url = f"{hub.api.endpoint}/{repo_id}"
    done = Published(repo_id, url, commit, options.tag, made is not None)
    _record(release, done)
    return done


def _record(release: Release, done: Published) -> None:
    """Note beside the run where it was published; the model is there, whether that works or not."""
    report, run = release.report, release.folder.absolute().parent
    made = {} if report.made_with.get("changed") else report.made_with
    record = PublishedRecord(
        repo_id=done.repo_id,
        url=done.url,
        commit=done.commit,
        tag=done.tag,
        artifact_sha256=report.artifact_sha256,
        git_commit=made.get("commit"),
        git_repository=made.get("repository"),
        source_revision=report.revision,
    )
    try:
        add_published(run, record)
    except OSError as error:
        log.warning(
            "%s: published, but %s cannot be written: %s", done.repo_id, run / PUBLISHED, error
        )


def naming_commit(release: Release, repo_id: str) -> Release:
    """Return a release whose report names the commit that reproduces it, as far as one is known.

    First the commit that the same model was published with in that repository, so that publishing
    it again changes nothing; then the one that has it in DVC's lock; else where it was run.
    """
    report, run = release.report, release.folder.absolute().parent
    before = last_published(run, repo_id, report.artifact_sha256, report.revision)
    if before is not None and before.git_commit is not None:
        named = {"commit": before.git_commit}
        if before.git_repository:
            named["repository"] = before.git_repository
    else:
        named = versioned_state(run, report.artifact_sha256)
    if not named:
        return release
    others = {key: value for key, value in report.made_with.items() if key not in COMMIT_KEYS}
    return replace(release, report=replace(report, made_with={**others, **named}))


def _kept_to_owner(hub: Hub, repo_id: str, base: RemoteModel | None, options: PushOptions) -> bool:
    """Tell whether only those will see the model who have the original anyway.

    That is so in a private repository of the original's owner; and, where the original is not on
    the Hub, in a private one of whoever publishes.
    """
    found = hub.find(repo_id)
    private = found.private if found is not None else bool(options.private)
    owner, _, _ = repo_id.partition("/")
    return private and (base is None or base.repo_id.partition("/")[0] == owner)


def _compare(
    hub: Hub,
    repo_id: str,
    wanted: Mapping[str, Path | bytes],
    options: PushOptions,
    base: Base,
) -> PushPlan:
    """Compare what a repository holds with what it shall hold."""
    target = look_at_target(
        hub,
        repo_id,
        options.branch,
        options.tag,
        options.private,
        base,
        wanted,
        options.replace,
    )
    remote, tagged = target.remote, target.tagged
    files = remote.files if remote else {}
    added = [path for path in wanted if path not in files]
    changed = [path for path in wanted if path in files and not files[path].matches(wanted[path])]
    plan = PushPlan(
        repo_id=repo_id,
        contents=wanted,
        exists=remote is not None,
        parent=remote.commit if remote else None,
        added=tuple(added),
        changed=tuple(changed),
        removed=target.removed,
        same=tuple(path for path in wanted if path not in {*added, *changed}),
        upload_bytes=sum(_size(wanted[path]) for path in (*added, *changed)),
    )
    if tagged is not None and not (plan.nothing and tagged == plan.parent):
        raise HubError(
            f"{repo_id} has a tag {options.tag!r} already, for commit {tagged[:12]}, which holds "
            "something else. A version never changes: choose another tag."
        )
    return plan


def _full_name(hub: Hub, repo_id: str) -> str:
    address = parse_address(repo_id)
    if address.inside or address.revision:
        raise InputError(f"{repo_id!r}: give the repository alone, as 'org/name'.")
    if "/" in address.repo_id:
        return address.repo_id
    user = hub.call("asking who you are", hub.api.whoami)
    return f"{user['name']}/{address.repo_id}"


def _contents(release: Release, readme: str) -> dict[str, Path | bytes]:
    """Return everything that the repository shall hold, by path."""
    names = (MANIFEST, *sorted(release.manifest.files))
    return {README: readme.encode(), **{name: release.folder / name for name in names}}


def _commit(hub: Hub, release: Release, plan: PushPlan, options: PushOptions) -> str | None:
    """Make the commit; None if another came first."""
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete

    last, card = release.report.last, release.report.card
    original = (
        "compressed model that it was made of" if release.report.first_original else "original"
    )
    title = options.message or f"{card['name']} compressed by {release.report.recipe['name']}"
    about = (
        f"{release.report.compression_ratio:.2f} times smaller, cosine "
        f"{last.fidelity.cosine:.4f} to the {original} at revision {release.report.revision}."
    )

    def work() -> str | None:
        # The client notes its progress in the operations, so every attempt has new ones.
        operations: list[Any] = [
            CommitOperationAdd(path, str(content) if isinstance(content, Path) else content)
            for path, content in plan.contents.items()
            if path in plan.added or path in plan.changed
        ]
        operations += [CommitOperationDelete(path) for path in plan.removed]
        try:
            made = hub.api.create_commit(
                plan.repo_id,
                operations,
                commit_message=title,
                commit_description=about,
                revision=options.branch,
                parent_commit=plan.parent,
            )
        except Exception as error:
            if status_of(error) == 412:
                return None
            raise
        return str(made.oid)

    _quiet_bars()
    return hub.call(f"publishing {plan.repo_id}", work, plan.repo_id, options.branch)


def _quiet_bars() -> None:
    """Leave out the client's progress bars where nobody watches."""
    from huggingface_hub import utils

    if not sys.stderr.isatty():
        utils.disable_progress_bars()  # type: ignore[attr-defined]


def _verify(hub: Hub, repo_id: str, commit: str, wanted: Mapping[str, Path | bytes]) -> None:
    """Compare what the Hub holds with what was sent."""
    held = hub.model(repo_id, commit).files
    wrong = [p for p, content in wanted.items() if p not in held or held[p].contradicts(content)]
    if wrong:
        raise HubError(
            f"{repo_id} at {commit}: the Hub holds other bytes than were sent of "
            f"{', '.join(sorted(wrong))}. Push again; if that does not help, delete these files "
            "on the Hub first."
        )


def _tag(hub: Hub, repo_id: str, tag: str, commit: str) -> None:
    """Tag a commit; that a tag of this name is not another commit's was checked before."""
    hub.call(
        f"tagging {repo_id}",
        lambda: hub.api.create_tag(repo_id, tag=tag, revision=commit, exist_ok=True),
        repo_id,
    )
    target = hub.model(repo_id, tag).commit
    if target != commit:
        raise HubError(
            f"{repo_id}: the tag {tag!r} is on {target}, not on {commit}, which was just "
            "published. Somebody else made it in between; choose another tag and push again."
        )


def _size(content: Path | bytes) -> int:
    return content.stat().st_size if isinstance(content, Path) else len(content)
