"""What an artifact names, looked up among what is registered."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from zoopress.artifacts.manifest import MANIFEST, Manifest
from zoopress.artifacts.requirements import check_requirements
from zoopress.errors import ArtifactError, PluginError
from zoopress.sources import Architecture

if TYPE_CHECKING:
    from zoopress.plugins import Plugins


def named_architecture(folder: Path, manifest: Manifest, plugins: Plugins) -> Architecture:
    """Return the architecture that an artifact names; nothing is built yet.

    Raises:
        ArtifactError: if no plugin registers it.
    """
    record = manifest.architecture
    try:
        builder = plugins.resolve("architectures", record.name)
    except PluginError as error:
        raise ArtifactError(f"{folder / MANIFEST}: field 'architecture': {error}") from error
    architecture: Architecture = builder(folder, dict(record.arguments))
    return architecture


def check_registered(folder: Path, manifest: Manifest, plugins: Plugins) -> None:
    """Refuse an artifact that needs what no plugin registers.

    Raises:
        ArtifactError: naming what is missing, its distribution and the line that installs it.
    """
    check_requirements(
        folder / MANIFEST, manifest.requires, manifest.lineage, manifest.uses(), plugins
    )
