"""Run a model once and follow every parameter's axes through its operations.

A tensor's *ids* say which nodes its elements depend on: an int64 tensor with as many axes, each of
size 1 or full, so that ids of shape [1, 1, C] say "the last axis is indexed by these C nodes". A
weight [out, in] has two, [out, 1] and [1, in]; an activation mostly one. Operations that move data
move ids with the very same operator; what else each operator does to them is in `rules` and
`products`.

The trace sees ATen operators, below every module and functional form of a layer. So it needs no
list of layers, and a custom module's bare parameters are followed as well as a linear layer's.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakTensorKeyDictionary

from zoopress.dependencies import (
    products as _products,  # noqa: F401  (registers its rules)
    rearranging as _rearranging,  # noqa: F401
    rules as _rules,  # noqa: F401
)
from zoopress.dependencies.call import UNKNOWN_OPERAND, Call, follow, has_rule, varying
from zoopress.dependencies.nodes import NONE, Nodes
from zoopress.dependencies.splits import Splits
from zoopress.models.dispatch import without_compiler
from zoopress.models.packing import PackedWeight
from zoopress.models.weights import kind_of

_FACTORIES = ("zeros", "ones", "full", "empty", "empty_strided", "scalar_tensor")


@dataclass(frozen=True)
class Ids:
    """What is known of a tensor.

    Attributes:
        all: its ids.
        is_weight: whether it comes from parameters and buffers alone.
        adapts: whether it was made in the size its module's attributes ask for, such as a
            recurrent layer's initial zeros, so that it shrinks by itself.
    """

    all: tuple[Tensor, ...] = ()
    is_weight: bool = False
    adapts: bool = False


@without_compiler
class Trace(TorchDispatchMode):
    """Follows the ids of a module's parameters while it runs; enter it and run the module."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.nodes = Nodes()
        self.splits = Splits()
        self.units: dict[str, Tensor] = {}
        """Of each recurrent module that ran, its hidden units: [layers * directions, units]."""
        self._known = WeakTensorKeyDictionary()
        self._unread = WeakTensorKeyDictionary()
        self._made: dict[int, weakref.ref[Tensor]] = {}
        self._module = module
        self._paused = False
        self._in_cell = False
        self._hooks: list[Any] = []
        self._add_parameters()

    def ids(self, tensor: Tensor) -> Ids:
        """Return what is known of a tensor."""
        known: Ids = self._known.get(tensor, Ids())
        return known

    def set(self, tensor: Tensor, *ids: Tensor, is_weight: bool = False) -> None:
        """Record a tensor's ids."""
        self._known[tensor] = Ids(ids, is_weight)

    def set_adapting(self, tensor: Tensor) -> None:
        """Record that a tensor is of a size that may follow from those of others."""
        self._known[tensor] = Ids(adapts=True)
        self._made[tensor.untyped_storage().data_ptr()] = weakref.ref(tensor)

    def unread(self) -> frozenset[tuple[str, str]]:
        """Return path and name of each parameter and buffer that no operation was given yet."""
        return frozenset(place for places in self._unread.values() for place in places)

    def fix(self, value: Any, reason: str) -> None:
        """Fix all ids of all tensors in a nested value."""
        for tensor in tensors_in(value):
            for ids in self.ids(tensor).all:
                self.nodes.fix(ids, reason)

    def __enter__(self) -> Trace:
        for path, module in self._module.named_modules():
            if isinstance(module, nn.RNNBase):
                self._hooks.append(module.register_forward_pre_hook(self._pause))
                self._hooks.append(
                    module.register_forward_hook(self._recurrent(path), with_kwargs=True)
                )
            elif isinstance(module, nn.RNNCellBase):
                self._hooks.append(module.register_forward_pre_hook(self._enter_cell))
                self._hooks.append(module.register_forward_hook(self._leave_cell))
        self._hooks.append(self._module.register_forward_hook(self._finish))
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *exception: Any) -> None:
        super().__exit__(*exception)  # type: ignore[no-untyped-call]
        for hook in self._hooks:
            hook.remove()

    @contextmanager
    def _again(self) -> Iterator[None]:
        """Follow what a composite operation is made of, without setting up anything anew."""
        super().__enter__()  # type: ignore[no-untyped-call]
        try:
            yield
        finally:
            super().__exit__(None, None, None)  # type: ignore[no-untyped-call]

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        # What has a rule is not taken apart: in parts, an interpolation picks by position.
        if not (self._paused or has_rule(func)) and torch._C._dispatch_has_kernel_for_dispatch_key(
            func.name(), "CompositeImplicitAutograd"
        ):
            with self._again():
                result = func.decompose(*args, **kwargs)
            if result is not NotImplemented:
                return result
        result = func(*args, **kwargs)
        if not self._paused:
            self._follow(Call(self, func, args, kwargs, result))
        return result

    def _follow(self, call: Call) -> None:
        for tensor in call.inputs:
            self._unread.pop(tensor, None)
        if not any(self.ids(tensor).all for tensor in call.inputs):
            is_weight = bool(call.inputs) and all(self.ids(t).is_weight for t in call.inputs)
            # Whether a made tensor follows in size is not seen here; the check of a removal tells.
            made = call.name in _FACTORIES or self._in_cell
            adapts = all(self.ids(t).adapts for t in call.inputs) and (made or bool(call.inputs))
            known = Ids((), is_weight, adapts)
            for tensor in call.outputs:
                if adapts and not call.inputs:
                    self.set_adapting(tensor)
                else:
                    self._known[tensor] = known
            return
        follow(call)
        first = call.func._schema.arguments[0].alias_info
        if first is not None and first.is_write:
            self._write_through(call.inputs[0])

    def _write_through(self, view: Tensor) -> None:
        """Give a made tensor the ids that were written into a view of it."""
        reference = self._made.get(view.untyped_storage().data_ptr())
        made = reference() if reference is not None else None
        if made is None or made is view:
            return
        known = list(self.ids(made).all)
        for ids in self.ids(view).all:
            axes = varying(ids)
            alike = [
                axis
                for axis in range(made.ndim)
                if len(axes) == 1
                and made.shape[axis] == view.shape[axes[0]]
                and made.stride(axis) == view.stride(axes[0])
            ]
            if len(alike) != 1:
                self.nodes.fix(ids, "it is written into a part of a tensor")
                continue
            ids = ids.reshape([-1 if axis == alike[0] else 1 for axis in range(made.ndim)])
            before = [other for other in known if varying(other) == varying(ids)]
            for other in before:
                self.nodes.join(other, ids)
            known += [] if before else [ids]
        self._known[made] = Ids(tuple(known), adapts=True)

    def _add_parameters(self) -> None:
        for path, owner in self._module.named_modules():
            tensors: Mapping[str, Tensor | None] = {**owner._parameters, **owner._buffers}
            for name, tensor in tensors.items():
                if tensor is None or type(tensor) not in (Tensor, nn.Parameter):
                    continue
                known = self._known.get(tensor)
                self._unread.setdefault(tensor, []).append((path, name))
                if known is not None:
                    self.fix(tensor, "its weight is tied to another")
                    continue
                self.set(tensor, *self._axes(path, owner, name, tensor), is_weight=True)
        for owner in self._module.modules():
            down = owner._modules.get("down")
            weight = down._parameters.get("weight") if down is not None else None
            if getattr(type(owner), "is_factored", False) and weight is not None:
                for ids in self.ids(weight).all:
                    if varying(ids) == (0,):
                        self.nodes.fix(ids, "it is the inner rank of a factored layer")

    def _axes(self, path: str, owner: nn.Module, name: str, tensor: Tensor) -> list[Tensor]:
        """Return new ids for the axes of a parameter or buffer that could shrink."""
        if not tensor.is_floating_point() or isinstance(owner, PackedWeight):
            return []
        # What is not stored is rebuilt in its old size when the artifact is loaded.
        if name in owner._buffers and name in owner._non_persistent_buffers_set:
            return []
        made = []
        of_layer = tensor.ndim > 1 and kind_of(owner, name, tensor.ndim)[0] in ("linear", "conv")
        for axis, size in enumerate(tensor.shape):
            if size > 1:
                shape = [size if i == axis else 1 for i in range(tensor.ndim)]
                made.append(self.nodes.add(path, name, axis, size, of_layer).reshape(shape))
        return made

    def _finish(self, module: nn.Module, args: Any, output: Any) -> None:
        self.fix(output, "it reaches the model's output")

    def _enter_cell(self, module: nn.Module, args: Any) -> None:
        self._in_cell = True

    def _leave_cell(self, module: nn.Module, args: Any, output: Any) -> None:
        self._in_cell = False

    def _pause(self, module: nn.Module, args: Any) -> None:
        self._paused = True

    def _recurrent(self, path: str) -> Callable[..., None]:
        def follow(module: nn.RNNBase, args: Any, kwargs: Any, output: Any) -> None:
            self._paused = False
            given = kwargs["input"] if "input" in kwargs else args[0]
            state = kwargs["hx"] if "hx" in kwargs else args[-1] if len(args) > 1 else None
            self._follow_recurrent(path, module, given, [] if state is None else [state], output)

        return follow

    def _follow_recurrent(
        self, path: str, module: nn.RNNBase, given: Any, state: list[Any], output: Any
    ) -> None:
        """Set the ids of a recurrent module's outputs, and join its gates."""
        sequence = given.data if isinstance(given, PackedSequence) else given
        result = output[0].data if isinstance(output[0], PackedSequence) else output[0]
        for parameter in module.parameters():
            self._unread.pop(parameter, None)
        names = module._flat_weights_names
        odd = module.proj_size or module.hidden_size == 1
        if odd or any(name not in module._parameters for name in names):
            reason = "its recurrent module has projections, packed weights or a single unit"
            self.fix([sequence, state, *module.parameters()], reason)
            return
        directions = 2 if module.bidirectional else 1
        gates = {"LSTM": 4, "GRU": 3}.get(module.mode, 1)
        below = self._last_axis(sequence, "a recurrent module")
        units: list[Tensor] = []
        for layer in range(module.num_layers):
            outputs: list[Tensor] = []
            for suffix in ("", "_reverse")[:directions]:
                hidden = self._gates(module, f"l{layer}{suffix}", gates, below)
                outputs.append(hidden)
            units += outputs
            below = torch.cat(outputs)
        # Fixed or free as a whole: all layers and directions share one hidden_size.
        stacked = torch.stack(units)
        self.units[path] = stacked
        for tensor in tensors_in(state):
            self._give_state(tensor, stacked)
        self.set(result, torch.cat(outputs).reshape([1] * (result.ndim - 1) + [-1]))
        for final in tensors_in(output[1]):
            shape = [len(units), *[1] * (final.ndim - 2), module.hidden_size]
            self.set(final, stacked.reshape(shape))

    def _give_state(self, state: Tensor, units: Tensor) -> None:
        """Join an initial state [layers * directions, …, units] with the units of each."""
        known = self.ids(state)
        for ids in known.all:
            rows = ids.movedim(0, -2).reshape(-1, *ids.shape[:1], ids.shape[-1])
            if set(varying(ids)) <= {0, ids.ndim - 1} and ids.shape[-1] > 1 and len(rows) == 1:
                self.nodes.join(rows[0], units)
            else:
                self.nodes.fix(ids, "it is the initial state of a recurrent module")
        if not (known.adapts or known.all):
            self.nodes.fix(units, "its recurrent module is given initial states")

    def _gates(self, module: nn.RNNBase, suffix: str, gates: int, below: Tensor | None) -> Tensor:
        """Join one layer's tensors, one direction; return its units' ids, [hidden_size]."""
        rows, columns = self._matrix_ids(module._parameters[f"weight_hh_{suffix}"])
        input_rows, inputs = self._matrix_ids(module._parameters[f"weight_ih_{suffix}"])
        vectors = [rows, input_rows]
        if module.bias:
            for name in (f"bias_ih_{suffix}", f"bias_hh_{suffix}"):
                vectors.append(self._matrix_ids(module._parameters[name])[0])
        for vector in vectors:
            self.nodes.join(vector.reshape(gates, -1), columns)
        self.nodes.contract(columns)
        if below is None:
            self.nodes.fix(inputs, UNKNOWN_OPERAND)
        else:
            self.nodes.join(inputs, below)
            self.nodes.contract(inputs)
        return columns

    def _matrix_ids(self, parameter: Tensor | None) -> list[Tensor]:
        """Return the ids [size] of each of a parameter's axes; `NONE` for one of size 1."""
        assert parameter is not None
        found = []
        for axis, size in enumerate(parameter.shape):
            matching = [i for i in self.ids(parameter).all if i.shape[axis] > 1]
            found.append(matching[0].flatten() if matching else torch.full((size,), NONE))
        return found

    def _last_axis(self, tensor: Tensor, what: str) -> Tensor | None:
        """Return the ids along the last axis, fixing any that vary along another."""
        last = None
        for ids in self.ids(tensor).all:
            if varying(ids) == (ids.ndim - 1,):
                last = ids.flatten()
            else:
                self.nodes.fix(ids, f"it reaches {what} along another axis")
        return last


def tensors_in(value: Any) -> list[Tensor]:
    """Return the tensors in nested containers, dataclasses and objects, three levels deep."""
    return _tensors_in(value, 4)


def _tensors_in(value: Any, depth: int) -> list[Tensor]:
    found = []
    for leaf in tree_leaves(value):
        if isinstance(leaf, Tensor):
            found.append(leaf)
        elif isinstance(leaf, Mapping):
            found += _tensors_in(list(leaf.values()), depth - 1)
        elif depth and hasattr(leaf, "__dict__") and not isinstance(leaf, (type, nn.Module)):
            found += _tensors_in(list(vars(leaf).values()), depth - 1)
    return found
