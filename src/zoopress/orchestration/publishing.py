"""Publish many runs: each that passed its gates, none of the others, and none stops another."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from string import Formatter
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from zoopress.errors import InputError, ZoopressError
from zoopress.hub.client import Hub
from zoopress.plugins import Plugins
from zoopress.progress import Reporter
from zoopress.publishing.against_published import MARGIN
from zoopress.publishing.publish import PushOptions, push
from zoopress.publishing.release import Release, open_release
from zoopress.yaml_source import read_yaml, validate

_FIELDS = ("card", "recipe")


def check_pattern(repo: str) -> str:
    """Return a pattern of repositories' names if it is one.

    Raises:
        ValueError: if it has other fields than {card} and {recipe}.
    """
    try:
        parts = list(Formatter().parse(repo))
    except ValueError as error:
        raise ValueError(f"{repo!r} is no pattern: {error}") from error
    for _, name, form, conversion in parts:
        if name is not None and (name not in _FIELDS or form or conversion):
            raise ValueError(
                f"{repo!r}: {{{name}}} is no field. There are {{card}} and {{recipe}}, as in "
                "'my-org/{card}-{recipe}'"
            )
    return repo


class PublishSection(BaseModel):
    """The section `publish` of params.yaml: where results go."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    repo: str = Field(description="repositories on the Hub, as my-org/{card}-{recipe}")
    private: bool | None = Field(default=None, description="whether new repositories are private")
    allow_low_quality: bool = Field(
        default=False, description="whether models that are unlike their original are published"
    )
    install: str | None = Field(
        default=None,
        description="what pip takes to install zoopress, for the pages: zoopress if it is on the "
        "index, or git+https://…; where it came from on this machine by default",
    )
    allow_worse: bool = Field(
        default=False, description="whether a better model that is published is replaced"
    )
    worse_margin: float = Field(
        default=MARGIN,
        ge=0,
        description="how much worse than the published one's a figure may be, as a share of the "
        "original's",
    )

    _check_repo = field_validator("repo")(check_pattern)


class _ParamsFile(BaseModel):
    publish: PublishSection | None = None


def read_publish_section(params: Path) -> PublishSection | None:
    """Return what params.yaml says of publishing, None if nothing.

    Raises:
        InputError: naming file, line and key.
    """
    return validate(_ParamsFile, read_yaml(params, InputError), InputError).publish


@dataclass(frozen=True)
class Publication:
    """How publishing one run ended.

    Attributes:
        folder: of the run.
        repo_id: where to; None if not even that could be told.
        state: "unchanged" if the Hub held all of it already.
        reason: why it failed.
        url: of its page.
        commit: on the Hub.
    """

    folder: str
    repo_id: str | None
    state: Literal["published", "unchanged", "failed"]
    reason: str | None = None
    url: str | None = None
    commit: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """Return plain data."""
        return asdict(self)


def publish_runs(
    folders: Sequence[Path],
    repo: str,
    options: PushOptions,
    plugins: Plugins,
    reporter: Reporter | None = None,
) -> Iterator[Publication]:
    """Publish every run that may be published, and tell of the others why not.

    Args:
        folders: that `zoopress run` wrote.
        repo: where to, with {card} and {recipe} in the places of their names.
        options: the same for all.
        plugins: for their gates.
        reporter: where progress goes; nowhere by default.

    Raises:
        InputError: if `repo` is malformed, or two runs would go to one repository.
    """
    try:
        check_pattern(repo)
    except ValueError as error:
        raise InputError(str(error)) from error
    opened = [(folder, *_open(folder, repo, plugins)) for folder in folders]
    _check_distinct([(folder, repo_id) for folder, repo_id, _ in opened if repo_id])
    return _publish(opened, options, reporter or Reporter())


def _publish(
    opened: Sequence[tuple[Path, str | None, Release | str]],
    options: PushOptions,
    reporter: Reporter,
) -> Iterator[Publication]:
    hub = Hub()
    for folder, repo_id, release in opened:
        if isinstance(release, str) or repo_id is None:
            yield Publication(str(folder), repo_id, "failed", str(release))
            continue
        try:
            with reporter.step(f"publishing {repo_id}"):
                done = push(hub, release, repo_id, options)
        except ZoopressError as error:
            yield Publication(str(folder), repo_id, "failed", str(error))
            continue
        state: Literal["published", "unchanged"] = "published" if done.changed else "unchanged"
        yield Publication(str(folder), done.repo_id, state, None, done.url, done.commit)


def _open(folder: Path, repo: str, plugins: Plugins) -> tuple[str | None, Release | str]:
    """Return where a run goes and what there is to publish, or why nothing."""
    try:
        release = open_release(folder, plugins)
    except ZoopressError as error:
        return None, str(error)
    card, recipe = release.report.card["name"], release.report.recipe["name"]
    return repo.format(card=card, recipe=recipe), release


def _check_distinct(places: Sequence[tuple[Path, str]]) -> None:
    seen: dict[str, Path] = {}
    for folder, repo_id in places:
        if repo_id in seen:
            raise InputError(
                f"{seen[repo_id]} and {folder} would both be published to {repo_id}, and each "
                "would replace the other. Let the name tell them apart, as my-org/{card}-{recipe}."
            )
        seen[repo_id] = folder
