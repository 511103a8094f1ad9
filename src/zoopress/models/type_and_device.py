"""A parameter for those who ask a model for its type and device by its parameters.

`next(model.parameters()).device` and transformers' `self.dtype` fail in a module of which every
parameter is packed. There, `parameters()` yields one without elements that stands for them all: it
is made anew each time, belongs to no module and no state dict, and there is nothing in it to train.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
from torch import nn

from zoopress.models.packing import PackedWeight


def keep_type_known(root: nn.Module, path: str) -> None:
    """Let the modules from `root` to `path` that have no parameter left tell type and device."""
    module = root
    for part in (None, *(path.split(".") if path else ())):
        module = module if part is None else module._modules[part]  # type: ignore[assignment]
        if "parameters" not in vars(module) and next(module.parameters(), None) is None:
            # A method of the module alone: its class, and so its name, stay what they are.
            module.parameters = partial(_parameters, module)  # type: ignore[method-assign]


def _parameters(module: nn.Module, recurse: bool = True) -> Iterator[nn.Parameter]:
    """Yield a module's parameters; if it has none, one that stands for its packed weights."""
    found = False
    for parameter in type(module).parameters(module, recurse):
        found = True
        yield parameter
    packed = next((m for m in module.modules() if isinstance(m, PackedWeight)), None)
    if not found and packed is not None:
        empty = torch.empty(0, dtype=packed.computes_in, device=packed.device)
        yield nn.Parameter(empty, requires_grad=False)
