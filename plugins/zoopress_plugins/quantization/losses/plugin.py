"""Announces the losses; each is imported when a recipe names it."""

from __future__ import annotations

from zoopress.plugins import hookimpl


@hookimpl
def zoopress_losses() -> dict[str, str]:
    """Register the losses."""
    here = "zoopress_plugins.quantization.losses"
    return {
        "periodic": f"{here}.periodic:Periodic",
        "soft_weight_sharing": f"{here}.soft_weight_sharing:SoftWeightSharing",
    }
