"""Watch a model's operations without importing torch's compiler.

Torch hides what a dispatch mode does from its compiler, and imports the compiler to tell it so:
more than a second and 70 MB, in every process that looks at one forward pass. As long as nobody
else has imported it, nothing is compiled and there is nothing to hide from.
"""

from __future__ import annotations

import functools
import sys
from typing import Any, TypeVar

from torch.utils import flop_counter
from torch.utils._python_dispatch import TorchDispatchMode

ModeT = TypeVar("ModeT", bound=type[TorchDispatchMode])


def without_compiler(kind: ModeT) -> ModeT:
    """Let a class of modes import the compiler no longer; where it is there, all stays as it was.

    Args:
        kind: a class whose `__torch_dispatch__` torch has wrapped. It is changed in place.

    Returns:
        The class, so that this can decorate it.
    """
    hidden = kind.__torch_dispatch__
    plain = getattr(hidden, "__wrapped__", None)
    if plain is None:  # another release of torch, which does not wrap it
        return kind

    @functools.wraps(plain)
    def dispatch(*args: Any, **kwargs: Any) -> Any:
        return (hidden if "torch._dynamo" in sys.modules else plain)(*args, **kwargs)

    del dispatch.__wrapped__  # so that a second time changes nothing
    kind.__torch_dispatch__ = dispatch  # type: ignore[method-assign]
    return kind


def flop_counter_mode(**options: Any) -> flop_counter.FlopCounterMode:
    """Make a counter of floating point operations that leaves the compiler alone.

    Args:
        options: as torch's `FlopCounterMode` takes them.
    """
    if (kind := getattr(flop_counter, "_FlopCounterMode", None)) is not None:
        without_compiler(kind)
    return flop_counter.FlopCounterMode(**options)
