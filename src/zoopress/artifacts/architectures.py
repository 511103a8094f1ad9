"""What an artifact says of its architecture, looked up among those that are registered."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from zoopress.artifacts.manifest import MANIFEST, Manifest
from zoopress.errors import ArtifactError, PluginError
from zoopress.models.edit_records import Pack, Replace
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


def check_layers(folder: Path, manifest: Manifest, plugins: Plugins) -> None:
    """Refuse an artifact that has layers or packed weights which no plugin registers.

    Raises:
        ArtifactError: naming the first, and the distributions that may bring it.
    """
    known = plugins.references["layers"]
    for edit in manifest.edits:
        if isinstance(edit, Replace):
            kind, needed = "layer", edit.layer
        elif isinstance(edit, Pack):
            kind, needed = "packed weight", edit.packing
        else:
            continue
        if needed in known:
            continue
        made_by = [
            f"{stage.get('distribution')} {stage.get('version')}"
            for stage in manifest.lineage
            if stage.get("technique") not in plugins.techniques
        ]
        which = " or ".join(dict.fromkeys(made_by))
        raise ArtifactError(
            f"{folder / MANIFEST}: field 'edits': the {kind} {needed!r} of {edit.module!r} is not "
            "registered here. Install the plugin that provides it"
            + (f": it was made with {which}." if which else ".")
            + f" Registered: {', '.join(sorted(known)) or 'none'}."
        )
