"""Which parameters a run reaches, and which runs together reach the most.

A branch that no run takes is not seen by a trace: whether it reads neurons that are to go, nobody
knows. So more inputs are tried, and what stays out of reach keeps all that it might read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.weak import WeakTensorKeyDictionary

from zoopress.models.dispatch import without_compiler

_FAR = 100.0


@without_compiler
class _Reached(TorchDispatchMode):
    """Forgets each parameter that an operation is given; enter it and run the module."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.left = WeakTensorKeyDictionary()
        for parameter in module.parameters():
            if parameter.is_floating_point():
                self.left[parameter] = True

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        for leaf in tree_leaves([args, kwargs]):
            if isinstance(leaf, Tensor):
                self.left.pop(leaf, None)
        return func(*args, **(kwargs or {}))


def reaching(
    module: nn.Module, first: Callable[[], Any], others: Iterable[Callable[[], Any]]
) -> list[Callable[[], Any]]:
    """Return the first run, and those of the others that reach parameters no run before did.

    Args:
        module: the model, in evaluation mode.
        first: runs it on a small batch.
        others: runs it on others; tried as long as there is something to reach, and left out where
            the model fails on one.
    """
    chosen = [first]
    reached = _Reached(module)
    with torch.no_grad():
        with reached:
            first()
        for run in others:
            before = len(reached.left)
            if not before:
                break
            try:
                with reached:
                    run()
            except Exception:
                continue
            if len(reached.left) < before:
                chosen.append(run)
    return chosen


def variants(batch: Any) -> Iterator[Any]:
    """Yield inputs like a batch's, of other values: what a condition on them may ask for."""

    def changed(change: Callable[[Tensor], Tensor], floats: bool) -> Any:
        def one(leaf: Any) -> Any:
            if not isinstance(leaf, Tensor) or not leaf.numel() or leaf.dtype == torch.bool:
                return leaf
            return change(leaf) if leaf.is_floating_point() == floats else leaf

        return tree_map(one, batch)

    yield changed(torch.neg, True)
    yield changed(torch.zeros_like, True)
    yield changed(lambda x: x * _FAR, True)
    yield changed(lambda x: x + _FAR * x.abs().max(), True)
    yield changed(lambda x: x - _FAR * x.abs().max(), True)
    # Of whole numbers, such as tokens, only those that are there are known to make sense.
    yield changed(lambda x: x.flip(-1), False)
    yield changed(lambda x: torch.full_like(x, int(x.min())), False)
    yield changed(lambda x: torch.full_like(x, int(x.max())), False)


def other_inputs(batches: Sequence[Any], most: int = 8) -> Iterator[Any]:
    """Yield what to try after the first batch: other batches, then variants of the first."""
    return chain(batches[1 : most + 1], variants(batches[0]))
