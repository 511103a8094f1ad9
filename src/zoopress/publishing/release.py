"""A compressed model that may be published: whole, and shown to have passed its gates."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path

from zoopress.artifacts.manifest import MANIFEST, Manifest, read_manifest
from zoopress.errors import ArtifactError, GateError, RecipeError
from zoopress.gates import check_chosen, check_sound, check_targets
from zoopress.plugins import Plugins
from zoopress.recipes import ChosenGate, Targets
from zoopress.recipes.gate_choices import effective, read_gates
from zoopress.reports.quality_words import unlike_remedy, unlike_words
from zoopress.results import GateInput, Report
from zoopress.results.quality import judge_stages
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
        ArtifactError: if it is damaged, or not the one that the report is about, or a gate of its
            recipe is not installed here.
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
    chosen = _chosen(report, run / "report.json", plugins)
    for position, given in enumerate(stages, start=1):
        check_sound(given, position)
        check_targets(given, position, given.last)
        check_chosen(given, position, chosen[position - 1])
    return Release(artifact, manifest, report)


def refuse_low_quality(report: Report) -> None:
    """Refuse a model that is unlike its original, where no target of the recipe allows it.

    It is judged anew: the report may be older than the guard, or say what is not so.

    Raises:
        GateError: saying what it was judged by, and what to do.
    """
    quality = judge_stages(report.recipe, report.stages)
    words = unlike_words(replace(report, quality=quality))
    if words:
        raise GateError(
            f"{report.name} is not published: {words} {unlike_remedy(quality[-1])} Or publish it "
            "as it is, with a warning on its page: --allow-low-quality."
        )


def _with_targets(report: Report) -> list[GateInput]:
    """Return each stage's result with the targets that the recipe holds it to."""
    shared, results = report.recipe["targets"], report.stages
    return [
        GateInput(
            result,
            Targets(**{**shared, **stage["targets"]}),
            report.original_size_bytes,
            position,
            len(results),
            results[position - 2] if position > 1 else None,
        )
        for position, (result, stage) in enumerate(
            zip(results, report.recipe["stages"], strict=True), start=1
        )
    ]


def _chosen(report: Report, path: Path, plugins: Plugins) -> list[tuple[ChosenGate, ...]]:
    """Return the gates that the recipe names for each stage."""
    try:
        shared = read_gates(report.recipe.get("gates", []), path, plugins)
        return [
            effective(shared, read_gates(stage.get("gates", []), path, plugins))
            for stage in report.recipe["stages"]
        ]
    except RecipeError as error:
        raise ArtifactError(
            f"A gate that the run's recipe names cannot be asked here: {error} Or run the recipe "
            "again without it; finished stages are in the store."
        ) from error
