"""What writes a compressed model for other programs: the contract and the built-in exporters."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from zoopress.artifacts.opened import (
        Call as Call,
        Opened as Opened,
        open_artifact as open_artifact,
    )
    from zoopress.exporters.exporter import (
        Exported as Exported,
        Exporter as Exporter,
        Use as Use,
        export as export,
    )

_WHERE = {
    "Call": "zoopress.artifacts.opened",
    "Opened": "zoopress.artifacts.opened",
    "open_artifact": "zoopress.artifacts.opened",
    "Exported": "zoopress.exporters.exporter",
    "Exporter": "zoopress.exporters.exporter",
    "Use": "zoopress.exporters.exporter",
    "export": "zoopress.exporters.exporter",
}


def __getattr__(name: str) -> Any:
    """Import names when first used: registering what is here must not import torch."""
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_WHERE[name]), name)
