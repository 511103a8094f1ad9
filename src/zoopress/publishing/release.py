"""A compressed model that may be published: whole, and shown to have passed its gates."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from zoopress.artifacts.manifest import MANIFEST, Manifest, read_manifest
from zoopress.errors import ArtifactError
from zoopress.gates import check_sound, check_targets
from zoopress.plugins import Plugins
from zoopress.recipes import Targets
from zoopress.results import GateInput, Report
from zoopress.store import file_digest


@dataclass(frozen=True)
class Release:
    """A compressed model that may be published."""

    folder: Path
    """The artifact."""
    manifest: Manifest
    report: Report


def open_release(folder: Path, plugins: Plugins) -> Release:
    """Open the result of a run, and prove once more that it may leave the house.

    Args:
        folder: with `artifact/` and `report.json`, or that `artifact/`.
        plugins: for their gates.

    Raises:
        ArtifactError: if it is damaged, or not the one that the report is about.
        GateError: if a stage did not pass a gate, or misses the recipe's targets.
    """
    run = folder if (folder / "artifact").is_dir() else folder.absolute().parent
    artifact = run / "artifact" if run is folder else folder
    manifest = read_manifest(artifact)
    try:
        report = Report.from_dict(json.loads((run / "report.json").read_bytes()))
        stages = _with_targets(report)
    except FileNotFoundError:
        raise ArtifactError(
            f"{run}: has no report.json, so nothing shows that the model passed its gates. Give "
            "the folder that `zoopress run` wrote."
        ) from None
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise ArtifactError(
            f"{run / 'report.json'}: cannot be read ({type(error).__name__}: {error}). Run the "
            "recipe again; finished stages are in the store."
        ) from error
    if report.artifact_sha256 != file_digest(artifact / MANIFEST):
        raise ArtifactError(
            f"{run / 'report.json'} is about another model than {artifact}. Run the recipe again; "
            "finished stages are in the store."
        )
    for position, given in enumerate(stages, start=1):
        check_sound(given, position)
        check_targets(given, position, position == len(stages), plugins)
    return Release(artifact, manifest, report)


def _with_targets(report: Report) -> list[GateInput]:
    """Return each stage's result with the targets that the recipe holds it to."""
    shared = report.recipe["targets"]
    return [
        GateInput(result, Targets(**{**shared, **stage["targets"]}), report.original_size_bytes)
        for result, stage in zip(report.stages, report.recipe["stages"], strict=True)
    ]
