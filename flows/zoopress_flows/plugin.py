"""Register the recipes; the flows themselves need Prefect and are imported when one runs."""

from __future__ import annotations

from pathlib import Path

from zoopress.plugins import hookimpl


@hookimpl
def zoopress_recipes() -> list[Path]:
    """Register the folder of recipes."""
    return [Path(__file__).parent / "recipes"]
