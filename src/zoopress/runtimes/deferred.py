"""A model whose runtime takes it at the first call, since that shows what it is called with."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from torch import nn

from zoopress.artifacts.opened import Call, Opened
from zoopress.runtimes.runtime import Runtime, keep_no_cache, start

if TYPE_CHECKING:
    from zoopress.plugins import Plugins


def start_or_defer(name: str, artifact: Opened, plugins: Plugins) -> nn.Module:
    """Let a runtime take an artifact: now, or at the first call if it needs an example of one.

    Args:
        name: the runtime's registered name.
        artifact: the artifact.
        plugins: what is registered.

    Raises:
        DeploymentError: as `start`; what needs an example is then told at the first call.
    """
    kind: type[Runtime] = plugins.resolve("runtimes", name)
    if artifact.example is None and kind.needs_example:
        return Deferred(name, artifact, plugins)
    return start(name, artifact, plugins).module


class Deferred(nn.Module):
    """Runs a model in a runtime from the first call on, which is the example.

    Attributes and methods are those of the model.
    """

    def __init__(self, name: str, artifact: Opened, plugins: Plugins) -> None:
        super().__init__()
        self.model: Any = artifact.module
        keep_cache = keep_no_cache(artifact.module)
        first = artifact.module

        def forward(*arguments: Any, **named: Any) -> Any:
            if self.model is first:
                call = Call(arguments, dict(named))
                del first.forward  # the model's own
                try:
                    started = start(name, replace(artifact, example=call), plugins)
                finally:
                    first.forward = forward
                self.model = started.module.eval()
                if started.module is first:
                    keep_cache()
            # A method of the first one may be on its way, and calls it again.
            return self.model(*arguments, **named)

        first.forward = forward
        self.eval()

    def forward(self, *arguments: Any, **named: Any) -> Any:
        """Call the model."""
        return self.model(*arguments, **named)

    def __getattr__(self, name: str) -> Any:
        """Return what the model has."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("model"), name)
