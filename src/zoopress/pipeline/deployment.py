"""An artifact with its card: exported, or run by a runtime, and compared on the card's data."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from zoopress.artifacts.opened import Call, Opened, open_artifact
from zoopress.cells.cell import open_original
from zoopress.errors import ArtifactError
from zoopress.exporters import Exported, export
from zoopress.runtimes import Started, start

if TYPE_CHECKING:
    from zoopress.artifacts.manifest import Manifest
    from zoopress.cards import Card
    from zoopress.models.model import Model
    from zoopress.plugins import Plugins
    from zoopress.sources import Architecture
    from zoopress.tasks import Task


def export_artifact(
    folder: Path, name: str, out: Path, plugins: Plugins, card: Card | None = None
) -> Exported:
    """Let an exporter write an artifact; with a card, outputs are compared on its data.

    Raises:
        ZoopressError: if the artifact cannot be loaded, or not be exported.
    """
    if card is None:
        try:
            return export(name, open_artifact(folder, plugins), out, plugins)
        except ArtifactError as error:
            if "factory=" not in str(error):
                raise
            raise ArtifactError(f"{error} Or name its card with --card.") from error
    original = open_original(card, plugins)
    factory = getattr(original.architecture, "factory", None)
    artifact = open_artifact(folder, plugins, factory)
    example = Call.of_task(original.task, artifact.module)
    artifact = Opened(artifact.model, artifact.architecture, artifact.manifest, folder, example)
    return export(name, artifact, out, plugins)


def start_on_task(
    runtime: str,
    model: Model,
    architecture: Architecture,
    manifest: Manifest,
    folder: Path,
    task: Task,
    plugins: Plugins,
) -> Started:
    """Let a runtime take a loaded model, and compare its outputs on a task's data.

    Raises:
        DeploymentError: if it refuses the model, fails, or computes something else.
    """
    example = Call.of_task(task, model.module)
    return start(runtime, Opened(model, architecture, manifest, folder, example), plugins)
