"""Running modules without gradients, those too that take gradients of their own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor, nn

_ASKED = "does not require grad"
_differentiate: WeakSet[type[nn.Module]] = WeakSet()
"""Classes of modules whose forward pass takes gradients, such as one that gives forces of an
energy; the original has been run before anything of its class."""


def without_gradients(module: nn.Module, run: Callable[[], Any]) -> Any:
    """Run a module so that its outputs carry no gradients.

    Not in torch's inference mode: what a module keeps of a call, such as a table that it makes at
    the first one, could not be trained with later. A module whose forward pass takes gradients
    itself runs with them enabled, and its outputs are detached.

    Args:
        module: what is run.
        run: runs it; called a second time if the first fails for want of gradients.
    """
    if not takes_gradients(module):
        try:
            with torch.no_grad():
                return run()
        except RuntimeError as error:
            if _ASKED not in str(error):
                raise
    with torch.enable_grad():
        output = run()
    _differentiate.add(type(module))
    return _detached(output)


def takes_gradients(module: nn.Module) -> bool:
    """Tell whether the forward pass of a module's class is known to take gradients."""
    return type(module) in _differentiate


def _detached(output: Any) -> Any:
    if isinstance(output, Tensor):
        return output.detach()
    if isinstance(output, dict):
        for key, value in output.items():  # in place: a class of its own may have attributes
            output[key] = _detached(value)
        return output
    if isinstance(output, (tuple, list)):
        items = [_detached(item) for item in output]
        return type(output)(*items) if hasattr(output, "_fields") else type(output)(items)
    return output
