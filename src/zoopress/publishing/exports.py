"""Files for those who have no zoopress, beside a published model: made, compared and timed.

A repository that has some lists them in `zoopress-exports.json`, by which a later push knows what
to replace or to remove, and does not publish figures anew that only differ by the machine's mood.
"""

from __future__ import annotations

import copy
import json
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zoopress.errors import DeploymentError, InputError
from zoopress.store import file_digest

if TYPE_CHECKING:
    from torch import nn

    from zoopress.artifacts.opened import Opened
    from zoopress.cards import Card
    from zoopress.exporters import Exporter, Use
    from zoopress.plugins import Plugins
    from zoopress.publishing.release import Release

RECORD = "zoopress-exports.json"
_SAMPLES = 8
_SECONDS = 1.0
_MOST_ROUNDS = 100


@dataclass(frozen=True)
class Beside:
    """What an exporter wrote to be published.

    Attributes:
        exporter: its registered name.
        files: path in the repository → file here.
        uses: how the files are opened, given the repository's name.
        size_bytes: of all different files.
        difference: of the outputs from the artifact's, relative to the largest; None if they were
            not compared.
        bound: how large that may be.
        notes: what a user should know of it.
        timings: for each batch size, "batch_size", "ms_p50", and "eager_ms_p50" of the artifact.
    """

    exporter: str
    files: Mapping[str, Path]
    uses: Callable[[str], Sequence[Use]]
    size_bytes: int
    difference: float | None
    bound: float
    notes: tuple[str, ...] = ()
    timings: Sequence[Mapping[str, float]] = ()


@dataclass(frozen=True)
class Exports:
    """All of what goes beside a model.

    Attributes:
        artifact_sha256: of the manifest of the artifact that they were made of.
        made: what each exporter wrote.
        machine: where they were timed.
    """

    artifact_sha256: str | None = None
    made: tuple[Beside, ...] = ()
    machine: Mapping[str, Any] = field(default_factory=dict)

    @property
    def files(self) -> dict[str, Path | bytes]:
        """Return what a repository shall hold of them, by path."""
        if not self.made:
            return {}
        found: dict[str, Path | bytes] = {p: f for each in self.made for p, f in each.files.items()}
        return {**found, RECORD: self.record()}

    def record(self) -> bytes:
        """Return the list of them that the repository has."""
        made = [
            {
                "exporter": each.exporter,
                "files": _digests(each),
                "size_bytes": each.size_bytes,
                "difference": each.difference,
                "bound": each.bound,
                "notes": list(each.notes),
                "timings": [dict(row) for row in each.timings],
            }
            for each in self.made
        ]
        content = {"artifact_sha256": self.artifact_sha256, "machine": self.machine, "made": made}
        return (json.dumps(content, indent=2, sort_keys=True) + "\n").encode()

    def with_figures_of(self, before: Mapping[str, Any]) -> Exports:
        """Return these with the timings of an earlier record, if that is of the same files."""
        try:
            known = {each["exporter"]: each for each in before["made"]}
            same = before["artifact_sha256"] == self.artifact_sha256 and all(
                known[each.exporter]["files"] == _digests(each) for each in self.made
            )
            if not same or len(known) != len(self.made):
                return self
            made = tuple(replace(e, timings=known[e.exporter]["timings"]) for e in self.made)
            return replace(self, made=made, machine=before["machine"])
        except (KeyError, TypeError):  # another version's
            return self


def recorded_files(record: Mapping[str, Any]) -> set[str]:
    """Return the paths that a record lists, and its own."""
    try:
        return {RECORD, *(str(path) for each in record["made"] for path in each["files"])}
    except (KeyError, TypeError):
        return {RECORD}


def make_exports(
    names: Sequence[str], release: Release, card: Card | None, folder: Path, plugins: Plugins
) -> Exports:
    """Let exporters write a release's artifact, all of them or none.

    Args:
        names: of registered exporters; a hyphen stands for an underscore.
        release: what is to be published.
        card: of whose data the outputs are compared and timed.
        folder: an empty folder for the files.
        plugins: what is registered.

    Raises:
        InputError: if two write a file of one name, or one that the artifact has.
        PluginError: if no plugin registers one of them.
        DeploymentError: if one refuses the model, fails, writes something else, or does not say
            under which names it is published.
    """
    from zoopress.evaluation.machine import describe_machine

    chosen = list(dict.fromkeys(name.strip().replace("-", "_") for name in names))
    for name in chosen:
        plugins.resolve("exporters", name)
    opened = _open(release, card, plugins)
    made: list[Beside] = []
    taken = {"README.md", RECORD, *release.manifest.files}
    for name in chosen:
        found = _make(name, opened, folder / name, plugins)
        if clash := sorted(taken & found.files.keys()):
            raise InputError(
                f"The exporter {name!r} would publish {clash[0]!r}, which is there already. Leave "
                "one of both out of --with."
            )
        taken |= found.files.keys()
        made.append(found)
    return Exports(release.report.artifact_sha256, tuple(made), describe_machine())


def _open(release: Release, card: Card | None, plugins: Plugins) -> Opened:
    """Open the artifact, with a call of it if a card tells one."""
    from zoopress.artifacts.opened import Call, open_artifact
    from zoopress.cells.cell import open_original
    from zoopress.tasks.batches import first_samples, typical_batch

    if card is None:
        return open_artifact(release.folder, plugins)
    original = open_original(card, plugins)
    factory = getattr(original.architecture, "factory", None)
    opened = open_artifact(release.folder, plugins, factory)
    inputs = first_samples(typical_batch(original.task), _SAMPLES)
    call = Call.caught(opened.module, lambda: original.task.call(opened.module, inputs))
    return replace(opened, example=call)


def _core(opened: Opened) -> Opened:
    """Return the part that the model's own library runs by other runtimes, as an artifact."""
    from zoopress.artifacts.opened import Call

    core = opened.architecture.core(opened.module)
    if core is opened.module:
        return opened
    model, whole = copy.copy(opened.model), opened.example
    model.module = core
    example = None if whole is None else Call.caught(core, lambda: whole(opened.module))
    return replace(opened, model=model, example=example)


def _make(name: str, opened: Opened, folder: Path, plugins: Plugins) -> Beside:
    from zoopress.exporters import export

    exporter: Exporter = plugins.resolve("exporters", name)()
    artifact = _core(opened) if exporter.of_core else opened
    done = export(name, artifact, folder, plugins)
    files: dict[str, Path] = {}
    for path in done.files:
        inside = path.relative_to(folder).as_posix()
        places = exporter.published_names(artifact, inside)
        if not places:
            raise DeploymentError(
                f"The exporter {name!r} does not say under which name {inside!r} is published. "
                f"Leave it out of --with; `zoopress export --to {name}` writes a folder."
            )
        files.update(dict.fromkeys(places, path))
    return Beside(
        exporter=name,
        files=files,
        uses=partial(exporter.uses, artifact),
        size_bytes=done.size_bytes,
        difference=done.difference,
        bound=done.bound,
        notes=done.notes,
        timings=_timed(artifact, exporter.read(artifact, folder)),
    )


def _timed(artifact: Opened, module: nn.Module) -> list[dict[str, float]]:
    """Time what was written beside the artifact in eager PyTorch, in turns, after a warm-up."""
    if artifact.example is None:
        return []
    rows = []
    for samples in dict.fromkeys((1, max(1, artifact.example.samples))):
        call = artifact.example.repeated(samples)
        times: dict[str, list[float]] = {"ms_p50": [], "eager_ms_p50": []}
        until, rounds = time.perf_counter() + _SECONDS, -1
        while rounds < 3 or (time.perf_counter() < until and rounds < _MOST_ROUNDS):
            for key, each in (("ms_p50", module), ("eager_ms_p50", artifact.module)):
                start = time.perf_counter()
                call(each)
                if rounds >= 0:
                    times[key].append((time.perf_counter() - start) * 1e3)
            rounds += 1
        medians = {key: round(statistics.median(values), 3) for key, values in times.items()}
        rows.append({"batch_size": samples, **medians})
    return rows


def _digests(each: Beside) -> dict[str, str]:
    return {path: file_digest(file) for path, file in sorted(each.files.items())}
