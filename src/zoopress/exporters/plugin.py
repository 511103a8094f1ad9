"""Register the exporters that need nothing but what zoopress needs itself."""

from __future__ import annotations

from zoopress.plugins import hookimpl


@hookimpl
def zoopress_exporters() -> dict[str, str]:
    """Register what writes models for other programs."""
    return {
        "safetensors": "zoopress.exporters.safetensors:Safetensors",
        "torch_export": "zoopress.exporters.torch_export:TorchExport",
    }
