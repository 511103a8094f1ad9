"""What runs a compressed model: the contract, the files that runtimes keep, built-in ones."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from zoopress.artifacts.opened import (
        Call as Call,
        Opened as Opened,
        open_artifact as open_artifact,
    )
    from zoopress.runtimes.cache import cached as cached
    from zoopress.runtimes.deferred import start_or_defer as start_or_defer
    from zoopress.runtimes.runtime import Runtime as Runtime, Started as Started, start as start

_WHERE = {
    "Call": "zoopress.artifacts.opened",
    "Opened": "zoopress.artifacts.opened",
    "open_artifact": "zoopress.artifacts.opened",
    "cached": "zoopress.runtimes.cache",
    "start_or_defer": "zoopress.runtimes.deferred",
    "Runtime": "zoopress.runtimes.runtime",
    "Started": "zoopress.runtimes.runtime",
    "start": "zoopress.runtimes.runtime",
}


def __getattr__(name: str) -> Any:
    """Import names when first used: registering what is here must not import torch."""
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_WHERE[name]), name)
