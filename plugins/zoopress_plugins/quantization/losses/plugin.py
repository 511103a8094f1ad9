"""Announces the losses; each is imported when a recipe names it."""

from __future__ import annotations

from zoopress.plugins import hookimpl


@hookimpl
def zoopress_losses() -> dict[str, str]:
    """Register the losses."""
    return {"periodic": "zoopress_plugins.quantization.losses.periodic:Periodic"}
