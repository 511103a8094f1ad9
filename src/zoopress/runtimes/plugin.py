"""Register the runtimes that PyTorch brings."""

from __future__ import annotations

from zoopress.plugins import hookimpl


@hookimpl
def zoopress_runtimes() -> dict[str, str]:
    """Register what runs models."""
    return {
        "auto": "zoopress.runtimes.auto:Auto",
        "eager": "zoopress.runtimes.eager:Eager",
        "compile": "zoopress.runtimes.compile:Compile",
    }
