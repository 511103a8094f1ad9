"""The zoo: cards, and the sources, architectures and tasks they name."""

from typing import Any


def __getattr__(name: str) -> Any:
    # Imported when it is asked for: it needs transformers.
    if name == "ZoopressConfig":
        from zoopress_zoo.transformers_quantizer import ZoopressConfig

        return ZoopressConfig
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
