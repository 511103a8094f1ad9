"""Announces the losses; each is imported when a recipe names it."""

from __future__ import annotations

from zoopress.plugins import hookimpl

_LOSSES = {"l1": "L1", "l2_sp": "L2Sp"}


@hookimpl
def zoopress_losses() -> dict[str, str]:
    """Register the losses, each in the file of its name."""
    package = __name__.rpartition(".")[0]
    return {name: f"{package}.{name}:{kind}" for name, kind in _LOSSES.items()}
