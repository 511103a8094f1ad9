"""Models that compute in 16-bit floating point, fed with float32 as users have it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

_LOW = (torch.bfloat16, torch.float16)


def accept_float32(module: nn.Module) -> None:
    """Make a module whose parameters are 16-bit floats round float inputs to their type.

    Nothing happens to other modules, nor a second time.
    """
    types = {p.dtype for p in module.parameters() if p.is_floating_point()}
    if len(types) == 1 and types <= set(_LOW) and not hasattr(module, "_accepts_float32"):
        marked: Any = module
        marked._accepts_float32 = True
        module.register_forward_pre_hook(_round_inputs, with_kwargs=True)


def _round_inputs(
    module: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    dtype = next((p.dtype for p in module.parameters() if p.is_floating_point()), None)
    if dtype is None:  # all weights were packed since
        return arguments, named

    def rounded(value: Any) -> Any:
        floats = isinstance(value, Tensor) and value.dtype in (torch.float32, torch.float64)
        return value.to(dtype) if floats else value

    return tuple(map(rounded, arguments)), {key: rounded(v) for key, v in named.items()}
