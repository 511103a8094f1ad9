"""Where a compressed model comes from: source → stages → metrics → git commit → Hub commits.

It is read from a run's folder, from an artifact alone, or from what a repository on the Hub holds.
What none of these says is None, and never guessed.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from zoopress.artifacts.manifest import MANIFEST, Manifest, parse_manifest, read_manifest
from zoopress.errors import ArtifactError, HubError, InputError
from zoopress.hub.address import Address, looks_like_address, parse_address
from zoopress.plugins import Plugins, load_plugins
from zoopress.provenance import LOCK, lock_names, versioned_state
from zoopress.publishing.published import read_published
from zoopress.results import Report
from zoopress.store import file_digest

_RAN_WITH = frozenset({"technique", "distribution", "version", "seed", "claims", "touched"})


@dataclass(frozen=True)
class GitCommit:
    """The commit that reproduces a model.

    Attributes:
        commit: its name.
        repository: the address of the remote that has it, None if that is unknown.
        uncommitted_changes: whether files differed from the commit when it ran.
        locked: whether DVC's lock at that commit names this artifact; None if that cannot be
            told, since the commit is not in the repository at hand.
    """

    commit: str
    repository: str | None
    uncommitted_changes: bool
    locked: bool | None


@dataclass(frozen=True)
class Lineage:
    """Where a compressed model comes from.

    Attributes:
        place: the folder or address that was asked about.
        artifact_sha256: of its zoopress.json, which has the digests of all other files.
        source: `name`, `source`, `revision`, `base_model`, `license` and `size_bytes` of the
            original.
        recipe: its name, None if unknown.
        stages: each with `technique`, `distribution`, `version`, `seed`, `config`, `touched`, what
            it `claims`, and `figures`, None if unknown.
        metrics: of the result, None if unknown.
        git: None if unknown.
        hub: where it was published, oldest first: `repo_id`, `url`, `commit` and `tag`; None if
            unknown.
    """

    place: str
    artifact_sha256: str
    source: dict[str, Any]
    recipe: str | None
    stages: list[dict[str, Any]]
    metrics: dict[str, Any] | None
    git: GitCommit | None
    hub: list[dict[str, Any]] | None

    def as_dict(self) -> dict[str, Any]:
        """Return plain data."""
        return asdict(self)


def find_lineage(place: str, revision: str | None = None) -> Lineage:
    """Find out where a compressed model comes from.

    Args:
        place: a run's folder, an artifact's folder, or "org/name" or "org/name@revision" on the
            Hub; a folder that exists comes first.
        revision: branch, tag or commit on the Hub.

    Raises:
        InputError: if it is none of these.
        ArtifactError: if it is damaged.
        HubError: if the Hub cannot be asked.
    """
    folder = Path(place)
    if folder.exists():
        if revision is not None:
            raise InputError(f"'revision' is for models on the Hub, and {place!r} is here.")
        return _of_folder(folder)
    if not looks_like_address(place):
        raise InputError(
            f"{place}: there is no such folder. Give one that `zoopress run` wrote, an artifact, "
            "or a repository on the Hub as org/name."
        )
    address = parse_address(place)
    if revision is not None and address.revision not in (None, revision):
        raise InputError(f"{place!r} and revision {revision!r} name two revisions; give one.")
    return _of_hub(Address(address.repo_id, "", revision or address.revision))


def _of_folder(folder: Path) -> Lineage:
    run = folder if (folder / "artifact").is_dir() else folder.absolute().parent
    artifact = run / "artifact" if run is folder else folder
    if not (artifact / MANIFEST).is_file():
        raise InputError(
            f"{folder}: is neither a folder that `zoopress run` wrote, with artifact/ and "
            f"report.json in it, nor an artifact, with {MANIFEST} in it."
        )
    manifest, sha256 = read_manifest(artifact), file_digest(artifact / MANIFEST)
    report = _report(run, sha256)
    records = [item for item in read_published(run) if item.artifact_sha256 == sha256]
    figures = git = None
    if report is not None:
        # As it is published, so that both places say the same.
        from zoopress.publishing.card_metadata import lineage_data

        figures = lineage_data(report)
        git = _commit(run, sha256, report, records[-1].git_commit if records else None)
    keys = ("repo_id", "url", "commit", "tag")
    hub = [{key: getattr(item, key) for key in keys} for item in records]
    return _lineage(str(folder), sha256, manifest, figures, git, hub if report else None)


def _report(run: Path, artifact_sha256: str) -> Report | None:
    """Return the report on an artifact, None if there is none, or one on another artifact."""
    path = run / "report.json"
    if not path.is_file():
        return None
    try:
        report = Report.from_dict(json.loads(path.read_bytes()))
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise ArtifactError(
            f"{path}: cannot be read ({type(error).__name__}: {error}). Run the recipe again; "
            "finished stages are in the store."
        ) from error
    return report if report.artifact_sha256 == artifact_sha256 else None


def _commit(run: Path, sha256: str, report: Report, published: str | None) -> GitCommit | None:
    """Return the commit that a page names or would name."""
    state = versioned_state(run, sha256)
    made = report.made_with
    commit = published or state.get("commit") or made.get("commit")
    if commit is None:
        return None
    repository = state.get("repository") or made.get("repository")
    changed = commit == made.get("commit") and bool(made.get("changed"))
    return GitCommit(commit, repository, changed, lock_names(run, commit, sha256))


def _of_hub(address: Address) -> Lineage:
    from huggingface_hub import ModelCard

    from zoopress.hub.client import Hub
    from zoopress.hub.download import fetch
    from zoopress.publishing.publish import README

    hub = Hub()

    def wanted(names: Collection[str]) -> list[str]:
        if MANIFEST not in names:
            raise ArtifactError(
                f"{address.repo_id} has no {MANIFEST}, so it is not a model that zoopress "
                "compressed; nothing is known of its lineage."
            )
        return [name for name in (MANIFEST, README) if name in names]

    got = fetch(hub, address, wanted, whole=False)
    manifest, sha256 = parse_manifest(got.folder / MANIFEST), file_digest(got.folder / MANIFEST)
    figures: Any = None
    if README in got.names:
        try:
            page = ModelCard((got.folder / README).read_text(encoding="utf-8"))
            figures = page.data.get("zoopress")
        except Exception as error:  # whatever a page that was edited by hand makes of a parser
            raise HubError(
                f"{address.repo_id} at {got.commit}: the metadata of {README} cannot be read "
                f"({type(error).__name__}). Publish it again with `zoopress push`."
            ) from error
    if not isinstance(figures, dict) or figures.get("artifact_sha256") != sha256:
        figures = None  # it says nothing, or speaks of another artifact
    git = None
    commit = str((figures or {}).get("git_commit") or "")
    if figures and re.fullmatch("[0-9a-f]{40,64}", commit):
        repository, changed = figures.get("git_repository"), figures.get("uncommitted_changes")
        locked = lock_names(Path.cwd(), commit, sha256)
        git = GitCommit(commit, repository and str(repository), changed is True, locked)
    url = f"{hub.api.endpoint}/{address.repo_id}"
    tag = None if address.revision in (None, got.commit, "main") else address.revision
    here = {"repo_id": address.repo_id, "url": url, "commit": got.commit, "tag": tag}
    place = f"{address.repo_id}@{address.revision}" if address.revision else address.repo_id
    return _lineage(place, sha256, manifest, figures, git, [here])


def _lineage(
    place: str,
    sha256: str,
    manifest: Manifest,
    figures: Mapping[str, Any] | None,
    git: GitCommit | None,
    hub: list[dict[str, Any]] | None,
) -> Lineage:
    known = figures or {}
    plugins = load_plugins()
    measured = _aligned(known.get("stages"), manifest)
    return Lineage(
        place=place,
        artifact_sha256=sha256,
        source=manifest.base.model_dump(mode="json"),
        recipe=known.get("recipe"),
        stages=[_stage(*pair, plugins) for pair in zip(manifest.lineage, measured, strict=True)],
        metrics=known.get("metrics"),
        git=git,
        hub=hub,
    )


def _aligned(measured: Any, manifest: Manifest) -> list[Any]:
    """Return what was measured after each stage of a lineage, None of those it says nothing of.

    A report on what was made of a compressed model has the last stages alone.
    """
    count = len(manifest.lineage)
    if not isinstance(measured, list) or not 0 < len(measured) <= count:
        return [None] * count
    ran = [stage.get("technique") for stage in manifest.lineage[-len(measured) :]]
    said = [stage.get("technique") if isinstance(stage, Mapping) else None for stage in measured]
    if said != ran:
        return [None] * count
    return [None] * (count - len(measured)) + measured


def stage_config(ran: Mapping[str, Any], plugins: Plugins) -> dict[str, Any]:
    """Return the config of a stage of a manifest, with the defaults that are left out there.

    Without them where the technique is not installed in the version that ran: another's may differ.
    """
    config = {key: value for key, value in ran.items() if key not in _RAN_WITH}
    recovery = config.pop("recovery", None)
    if isinstance(recovery, Mapping):
        whose = {key: ran.get(key) for key in ("distribution", "version")}
        inner = {key: value for key, value in recovery.items() if key != "recovery"}
        technique = {"technique": recovery.get("technique")}
        recovery = {**technique, **stage_config({**inner, **whose}, plugins)}
        config["recovery"] = recovery
    name = ran.get("technique")
    if not isinstance(name, str) or name not in plugins.techniques:
        return config
    origin = plugins.technique_origin(name)
    if (origin.distribution, origin.version) != (ran.get("distribution"), ran.get("version")):
        return config
    own = {key: value for key, value in config.items() if key != "recovery"}
    try:
        spelled = plugins.techniques[name].config_type.model_validate(own).model_dump(mode="json")
    except ValidationError:  # a stranger's manifest may say anything
        return config
    return {**spelled, **({} if recovery is None else {"recovery": recovery})}


def _stage(ran: Mapping[str, Any], measured: Any, plugins: Plugins) -> dict[str, Any]:
    """Return what the manifest says of a stage, with what was measured after it."""
    known = measured if isinstance(measured, Mapping) else {}
    figures = {key: value for key, value in known.items() if key != "technique"}
    return {
        **{key: ran.get(key) for key in ("technique", "distribution", "version", "seed")},
        "config": stage_config(ran, plugins),
        "touched": ran.get("touched"),
        "claims": ran.get("claims"),
        "figures": figures or None,
    }


def lineage_lines(lineage: Lineage) -> list[str]:
    """Return a lineage as lines for people."""
    source = lineage.source
    lines = [
        f"{lineage.place}  artifact {lineage.artifact_sha256}",
        "",
        f"source    {source['name']} from {source['source']}",
        f"          revision {source['revision']}, {source['size_bytes']:,} bytes",
    ]
    for position, stage in enumerate(lineage.stages, start=1):
        config = ", ".join(f"{key}: {json.dumps(v)}" for key, v in stage["config"].items())
        origin = f"{stage['distribution']} {stage['version']}"
        lines.append(f"stage {position:<4}{stage['technique']} ({origin})  {config}".rstrip())
        lines.append(f"          {_figures(stage['figures'])}")
    lines.append(f"metrics   {_figures(lineage.metrics)}")
    lines += _git_lines(lineage.git)
    if lineage.hub is None:
        lines.append("Hub       unknown: there is no report beside this artifact")
    elif not lineage.hub:
        lines.append("Hub       not published from here")
    for item in lineage.hub or ():
        tag = f" ({item['tag']})" if item["tag"] else ""
        lines.append(f"Hub       {item['url']} at {item['commit']}{tag}")
    # A stranger's page must not steer the terminal.
    return ["".join(c if c.isprintable() else " " for c in line) for line in lines]


def _figures(figures: Any) -> str:
    if not isinstance(figures, Mapping) or not figures:
        return "unknown"
    return ", ".join(f"{key} {value}" for key, value in figures.items())


def _git_lines(git: GitCommit | None) -> list[str]:
    if git is None:
        return ["git       unknown"]
    lock = {
        True: f"{LOCK} at that commit names this artifact",
        False: f"no {LOCK} at that commit names this artifact",
        None: f"whether {LOCK} names this artifact is unknown here: the repository is not at hand",
    }[git.locked]
    changed = ["          with changes that were not committed"] if git.uncommitted_changes else []
    return [
        f"git       {git.commit} of {git.repository or 'a repository without a known address'}",
        *changed,
        f"          {lock}",
    ]
