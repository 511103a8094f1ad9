"""Watch what reads a model's weights, while it runs.

The watch sees ATen operators, below every module and functional form of a layer: so it needs no
list of layers, finds a layer that is called several times each time, and a weight that is read by a
function, in attention or within a recurrent layer as well as that of an nn.Linear. What torch
computes in one piece for speed (the fast path of encoder layers, recurrent kernels) is switched off
meanwhile, and packed weights compute as the dense weights that they stand for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from zoopress.models.dispatch import multiplied_densely
from zoopress.models.packing import PackedWeight, packed_weights
from zoopress.statistics.layout import Layouts, Watched
from zoopress.statistics.products import PRODUCTS, Use, uses

Report = Callable[[Use], None]


class Watch(TorchDispatchMode):
    """Reports each product of data with a watched weight that a module computes.

    Args:
        module: the model.
        weights: what to watch, by name; parameters, and packed weights by the name of what they
            stand for.
        report: called with each product right after it was computed.
        leaves: given to differentiate: takes a packed weight's name and dense form, and returns
            what is to be used in its place.

    Attributes:
        reads: how often each weight was read by an operator that gave something.
        readers: the operators that read a weight but are no product, by the weight's name.
    """

    def __init__(
        self,
        module: nn.Module,
        weights: Mapping[str, tuple[Watched, nn.Parameter | PackedWeight]],
        report: Report,
        leaves: Callable[[str, Tensor], Tensor] | None = None,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.reads: dict[str, int] = {}
        self.readers: dict[str, set[str]] = {}
        self._module, self._report, self._leaves = module, report, leaves
        self._layouts = Layouts()
        self._settling: list[Callable[[], None]] = []
        by_codes: dict[int, Watched] = {}
        for watched, held in weights.values():
            if isinstance(held, PackedWeight):
                by_codes[_address(held)] = watched
            else:
                self._layouts.add(held, watched)
        for tensor in (*module.parameters(), *module.buffers()):
            if not self._layouts.is_constant(tensor):
                self._layouts.add(tensor, None)
        self._by_codes = by_codes
        self._paused = False

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Watch whatever runs meanwhile."""
        # Not by entering the mode alone: what it decomposes it runs within itself once more.
        with nothing_fused(self._module), self._dense_products(), self:
            yield

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Look away for a while."""
        self._paused = True
        try:
            yield
        finally:
            self._paused = False

    def when_settled(self, act: Callable[[], None]) -> None:
        """Call a function once autograd has noted what the operator at hand computed."""
        self._settling.append(act)

    def settle(self) -> None:
        """Call what waits for autograd."""
        waiting, self._settling = self._settling, []
        for act in waiting:
            act()

    def end_pass(self) -> None:
        """Settle, and forget the copies of weights that are gone; call it after a forward pass."""
        self.settle()
        self._layouts.sweep()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if self._paused:
            return func(*args, **kwargs)
        self.settle()
        if func not in PRODUCTS and torch._C._dispatch_has_kernel_for_dispatch_key(
            func.name(), "CompositeImplicitAutograd"
        ):
            with self:
                result = func.decompose(*args, **kwargs)
            if result is not NotImplemented:
                return result
        result = func(*args, **kwargs)
        given = [leaf for leaf in tree_leaves([args, kwargs]) if isinstance(leaf, Tensor)]
        made = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        with torch.no_grad():
            self._note(func, args, kwargs, given, made, result)
        return result

    def _note(
        self,
        func: Any,
        args: Any,
        kwargs: Any,
        given: list[Tensor],
        made: list[Tensor],
        result: Any,
    ) -> None:
        names = {part.weight.name for tensor in given if (part := self._layouts.part(tensor))}
        if given and all(map(self._layouts.is_constant, given)) and func not in _LOOKUPS:
            self._note_constants(func, given, made)
            for name in names:  # a view is told by its memory, and reads nothing
                if any(not self._layouts.part(tensor) for tensor in made):
                    self._reader(name, func)
            return
        if func._schema.is_mutable:
            for tensor in made:  # such as a buffer that keeps what it was given
                self._layouts.forget(tensor)
        if not names:
            return
        found = []
        if func in PRODUCTS:
            found = uses(func, self._find, _positional(func, args, kwargs), result)
        for name in names:
            used = [use for use in found if use.weight.name == name]
            filled = any(use.rows for use in used) if used else any(t.numel() for t in made)
            self.reads[name] = self.reads.get(name, 0) + filled
            if not used:
                self._reader(name, func)
        for use in found:
            self._report(use)

    def _reader(self, name: str, func: Any) -> None:
        self.readers.setdefault(name, set()).add(
            func.name().removeprefix("aten::").partition(".")[0]
        )

    def _note_constants(self, func: Any, given: list[Tensor], made: list[Tensor]) -> None:
        """Follow weights through what is made of constants alone, such as a copy or a cast."""
        by_number = func in _COPIES or torch.Tag.pointwise in func.tags
        for tensor in made:
            if self._layouts.is_constant(tensor):
                continue
            parts = (
                part
                for source in given
                if source.shape == tensor.shape and (part := self._layouts.part(source))
            )
            part = next(parts, None) if by_number else None
            if part is not None:
                self._layouts.add_copy(tensor, part)
            else:
                self._layouts.add(tensor, None)

    def _find(self, argument: Any) -> Any:
        return self._layouts.part(argument) if isinstance(argument, Tensor) else None

    @contextmanager
    def _dense_products(self) -> Iterator[None]:
        """Let packed weights compute with their dense forms, which the watch sees."""
        packed = list(packed_weights(self._module).values())

        def dense(weight: PackedWeight) -> Tensor:
            watched = self._by_codes.get(_address(weight))
            with torch.utils._python_dispatch._disable_current_modes():
                made = type(weight).dense(weight)
            if watched is not None and self._leaves is not None:
                made = self._leaves(watched.name, made)
            self._layouts.add(made, watched)
            return made

        with multiplied_densely(packed, dense):
            yield


_COPIES = frozenset(
    {torch.ops.aten.clone.default, torch.ops.aten._to_copy.default, torch.ops.aten.copy.default}
)
_LOOKUPS = frozenset(
    func for func in PRODUCTS if "embedding" in func.name() or func.name().startswith("aten::index")
)
"""Operators whose data are numbers of rows, which a model may well make by itself."""


def _positional(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Any]:
    """Return an operator's arguments in order, with its defaults."""
    given = list(args)
    for argument in func._schema.arguments[len(args) :]:
        given.append(kwargs.get(argument.name, argument.default_value))
    return given


def _address(packed: PackedWeight) -> int:
    """Return what tied packed weights share: where their first buffer is."""
    return next(packed.buffers()).data_ptr()


@contextmanager
def nothing_fused(module: nn.Module) -> Iterator[None]:
    """Let encoder layers and recurrent layers compute with operators that can be watched."""
    fast_path = torch.backends.mha.get_fastpath_enabled()
    recurrent = any(isinstance(part, nn.RNNBase) for part in module.modules())
    mkldnn = torch._C._get_mkldnn_enabled()
    cudnn = torch._C._get_cudnn_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        if recurrent:
            torch._C._set_mkldnn_enabled(False)
            torch._C._set_cudnn_enabled(False)
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_path)
        torch._C._set_mkldnn_enabled(mkldnn)
        torch._C._set_cudnn_enabled(cudnn)
