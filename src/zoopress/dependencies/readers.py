"""Which modules read what others give, found by running a model once.

The trace sees ATen operators, so it also notices what is read without a module: by a function, in
place, or as the model's output.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakTensorKeyDictionary

from zoopress.dependencies.trace import tensors_in
from zoopress.models.dispatch import without_compiler

ELSEWHERE = ""
"""Stands for all that is none of the readers, or none of the producers, asked about."""


def find_readers(
    module: nn.Module,
    producers: Mapping[str, int],
    readers: Sequence[str],
    run: Callable[[], Any],
) -> dict[str, set[str]]:
    """Return which of some readers, or `ELSEWHERE`, read the output of each producer.

    A producer whose parameters are used outside of it, or whose output has another number of axes
    than it should, is read elsewhere, too. Those that do not run have no reader. Under `ELSEWHERE`
    stand the readers that are given, at least once, what none of the producers made.

    Args:
        module: the model, in evaluation mode.
        producers: paths of modules that return a tensor, with the axis of its channels, counted
            from the end; what is asked for is that it is axis 1.
        readers: paths of modules.
        run: runs the module on a small batch. What it returns counts as read elsewhere.
    """
    with _Reads(module, producers, readers) as reads:
        reads.read(run(), ELSEWHERE)
    return dict(reads.found)


@without_compiler
class _Reads(TorchDispatchMode):
    """Notes who reads what; enter it and run the module."""

    def __init__(
        self, module: nn.Module, producers: Mapping[str, int], readers: Sequence[str]
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.found: dict[str, set[str]] = defaultdict(set)
        self._module = module
        self._producers = producers
        self._readers = frozenset(readers)
        self._inside: list[str] = []
        self._made = WeakTensorKeyDictionary()
        self._owners = WeakTensorKeyDictionary()
        self._hooks: list[Any] = []

    def __enter__(self) -> _Reads:
        for path, part in self._module.named_modules():
            if path in self._producers or path in self._readers:
                enter, leave = self._watch(path)
                self._hooks.append(part.register_forward_pre_hook(enter))
                self._hooks.append(part.register_forward_hook(leave))
            if path in self._producers:
                for parameter in part.parameters(recurse=False):
                    self._owners[parameter] = path
        self._hooks.append(
            self._module.register_forward_hook(lambda *given: self.read(given[2], ELSEWHERE))
        )
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *exception: Any) -> None:
        super().__exit__(*exception)  # type: ignore[no-untyped-call]
        for hook in self._hooks:
            hook.remove()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        reader = next((path for path in reversed(self._inside) if path in self._readers), ELSEWHERE)
        for leaf in tree_leaves([args, kwargs]):
            if isinstance(leaf, Tensor):
                self.read(leaf, reader)
                owner = self._owners.get(leaf)
                if owner is not None and owner not in self._inside:
                    self.found[owner].add(ELSEWHERE)
        return func(*args, **kwargs)

    def read(self, value: Any, reader: str) -> None:
        """Note that a reader reads all tensors of a nested value."""
        for tensor in tensors_in(value):
            producer = self._made.get(tensor)
            if producer is not None:
                self.found[producer].add(reader)

    def _watch(self, path: str) -> tuple[Callable[..., None], Callable[..., None]]:
        def enter(part: nn.Module, args: Any) -> None:
            self._inside.append(path)
            if path in self._readers and not (args and args[0] in self._made):
                self.found[ELSEWHERE].add(path)

        def leave(part: nn.Module, args: Any, output: Any) -> None:
            self._inside.pop()
            if path not in self._producers:
                return
            if isinstance(output, Tensor) and output.ndim + self._producers[path] == 1:
                self._made[output] = path
            else:
                self.found[path].add(ELSEWHERE)

        return enter, leave
