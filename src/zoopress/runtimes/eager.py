"""PyTorch as it comes: one operation after the other."""

from __future__ import annotations

from torch import nn

from zoopress.artifacts.opened import Opened
from zoopress.runtimes.runtime import Runtime


class Eager(Runtime):
    """Runs every model, as it was loaded."""

    fixes_batch = False

    def refusal(self, artifact: Opened) -> str | None:
        """Refuse nothing."""
        return None

    def prepare(self, artifact: Opened) -> nn.Module:
        """Return the module itself."""
        return artifact.module
