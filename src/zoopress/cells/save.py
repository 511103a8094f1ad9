"""Save a card's model as stages are saved: an artifact like any other."""

from __future__ import annotations

from pathlib import Path

from zoopress.artifacts.artifact import save_artifact
from zoopress.cells.cell import Original
from zoopress.plugins import Plugins


def save_original(original: Original, plugins: Plugins, folder: Path) -> Path:
    """Save the original into a new folder, and return that."""
    fresh = original.model.open()
    folder.mkdir()
    save_artifact(
        *(folder, fresh.model, fresh.architecture, original.base),
        *(fresh.others, fresh.lineage),
        plugins=plugins,
    )
    return folder
