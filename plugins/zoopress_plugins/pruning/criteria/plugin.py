"""Announces the criteria; each is imported when a recipe names it."""

from __future__ import annotations

from zoopress.plugins import hookimpl

_CRITERIA = {
    "batch_norm_scale": "BatchNormScale",
    "fisher": "Fisher",
    "geometric_median": "GeometricMedian",
    "l2_norm": "L2Norm",
    "magnitude": "Magnitude",
    "random": "Random",
}


@hookimpl
def zoopress_criteria() -> dict[str, str]:
    """Register the criteria, each in the file of its name."""
    package = __name__.rpartition(".")[0]
    return {name: f"{package}.{name}:{kind}" for name, kind in _CRITERIA.items()}
