"""Register the gates that come with zoopress."""

from __future__ import annotations

from zoopress.plugins import hookimpl

_ALWAYS = (
    "something_touched",
    "claims_reached",
    "outputs_finite",
    "outputs_keep_form",
    "reloads_identically",
    "products_agree",
    "bytes_shrank",
    "fidelity_kept",
    "metric_kept",
    "size_reached",
)


@hookimpl
def zoopress_gates() -> dict[str, str]:
    """Register those that recipes choose, and the names of those that are always asked."""
    return {
        **{name: f"zoopress.gates.gates:{name}" for name in _ALWAYS},
        "layer_error": "zoopress.gates.layer_error:LayerError",
        "no_dead_layer": "zoopress.gates.no_dead_layer:NoDeadLayer",
        "bytes_saved": "zoopress.gates.bytes_saved:BytesSaved",
    }
