"""Watch a model's operations without importing torch's compiler, packed products among them.

Torch hides what a dispatch mode does from its compiler, and imports the compiler to tell it so:
more than a second and 70 MB, in every process that looks at one forward pass. As long as nobody
else has imported it, nothing is compiled and there is nothing to hide from.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeVar

from torch import Tensor
from torch.utils import flop_counter
from torch.utils._python_dispatch import TorchDispatchMode

from zoopress.models.packing import PackedWeight

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


@contextmanager
def multiplied_densely(
    weights: Collection[PackedWeight], dense: Callable[[PackedWeight], Tensor]
) -> Iterator[None]:
    """Let packed weights be multiplied as whole dense ones, so that others can watch the products.

    Args:
        weights: which.
        dense: makes the dense form of one, as `PackedWeight.dense` does.
    """
    own: dict[str, Callable[[PackedWeight], Any]] = {
        "dense": lambda weight: partial(dense, weight),
        "_makes_rows": lambda weight: bool,  # False: no blocks
        "linear": lambda weight: partial(PackedWeight.linear, weight),
        "embedding": lambda weight: partial(PackedWeight.embedding, weight),
    }
    try:
        for weight in weights:
            vars(weight).update({name: make(weight) for name, make in own.items()})
        yield
    finally:
        for weight in weights:
            for name in own:
                vars(weight).pop(name, None)
