"""zoopress: compress a model zoo.

`zoopress.load` opens a compressed model, and `zoopress.unpack` makes an ordinary one of it;
`zoopress.compress` makes one. A technique is a subclass
of `zoopress.Technique`, registered with `zoopress.hookimpl`.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from zoopress.moved import keep_old_names

if TYPE_CHECKING:
    from zoopress.errors import ZoopressError as ZoopressError
    from zoopress.loading import load as load, unpack as unpack
    from zoopress.models.model import Model as Model
    from zoopress.pipeline.compress import compress as compress
    from zoopress.plugins import hookimpl as hookimpl
    from zoopress.techniques import (
        Block as Block,
        Claim as Claim,
        Config as Config,
        Context as Context,
        Criterion as Criterion,
        Effects as Effects,
        Outcome as Outcome,
        Technique as Technique,
        WeightSelection as WeightSelection,
    )
    from zoopress.training.loss import Loss as Loss

_WHERE = {
    "compress": "zoopress.pipeline.compress",
    "load": "zoopress.loading",
    "unpack": "zoopress.loading",
    "hookimpl": "zoopress.plugins",
    "ZoopressError": "zoopress.errors",
    "Loss": "zoopress.training.loss",
    "Model": "zoopress.models.model",
    **dict.fromkeys(
        ("Block", "Claim", "Config", "Context", "Criterion", "Effects", "Outcome", "Technique"),
        "zoopress.techniques",
    ),
    "WeightSelection": "zoopress.techniques",
}
__all__ = sorted(_WHERE)

keep_old_names()


def __getattr__(name: str) -> Any:
    """Import public names when first used: `import zoopress` stays fast."""
    if name not in _WHERE:
        raise AttributeError(f"module 'zoopress' has no attribute {name!r}")
    value = getattr(importlib.import_module(_WHERE[name]), name)
    globals()[name] = value
    return value
