"""One operator's call, as rules see it: its tensors, and the ids they carry."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

if TYPE_CHECKING:
    from zoopress.dependencies.trace import Ids, Trace

UNKNOWN_OPERAND = "it meets a tensor whose size does not follow, such as the model's input"
PICKED = "some of its elements are picked by position"
POINTWISE = "pointwise"
"""Name of the rule of all operators that torch tags as elementwise."""

SPLIT = "its axis is split into two, such as attention's heads"


class Call:
    """One call of an operator that a trace saw.

    Attributes:
        trace: the trace.
        name: the operator's name, without namespace, overload and the in-place underscore.
        inputs: all tensors given, nested ones too.
        outputs: all tensors returned.
    """

    def __init__(
        self, trace: Trace, func: Any, args: Sequence[Any], kwargs: dict[str, Any], result: Any
    ) -> None:
        self.trace = trace
        self.func = func
        self.args = args
        self.kwargs = kwargs
        self.name = name_of(func)
        self.inputs = [x for x in tree_leaves([args, kwargs]) if isinstance(x, Tensor)]
        self.outputs = [x for x in tree_leaves(result) if isinstance(x, Tensor)]

    def argument(self, name: str) -> Any:
        """Return an argument by its name in the operator's schema, or None where it has none."""
        for position, argument in enumerate(self.func._schema.arguments):
            if argument.name == name:
                if position < len(self.args):
                    return self.args[position]
                return self.kwargs.get(name, argument.default_value)
        return None

    def ids(self, tensor: Tensor | None) -> Ids:
        """Return what is known of a tensor; nothing of None."""
        return self.trace.ids(tensor if tensor is not None else torch.empty(0))

    def join(self, first: Tensor, second: Tensor) -> None:
        """Join nodes elementwise."""
        self.trace.nodes.join(first, second)

    def fix(self, ids: Tensor, reason: str) -> None:
        """Fix nodes."""
        self.trace.nodes.fix(ids, reason)

    def give(self, *ids: Tensor) -> None:
        """Set the ids of the outputs they fit; those that fit none are fixed."""
        is_weight = all(self.trace.ids(tensor).is_weight for tensor in self.inputs)
        for output in self.outputs:
            fitting = [i for i in ids if fits(i, output.shape)]
            self.trace.set(output, *fitting, is_weight=is_weight)
        for lost in ids:
            if not any(fits(lost, output.shape) for output in self.outputs):
                self.fix(lost, f"it reaches the operation {self.name!r}")


Rule = Callable[[Call], None]
_RULES: dict[str, Rule] = {}


def rule(*names: str) -> Callable[[Rule], Rule]:
    """Register the rule of the operators of these names."""

    def register(function: Rule) -> Rule:
        _RULES.update(dict.fromkeys(names, function))
        return function

    return register


def name_of(func: Any) -> str:
    """Return an operator's name, without namespace, overload and the in-place underscore."""
    name: str = func._schema.name
    return name.removeprefix("aten::").rstrip("_")


def has_rule(func: Any) -> bool:
    """Return whether an operator has a rule of its own."""
    return name_of(func) in _RULES


def follow(call: Call) -> None:
    """Apply an operator's rule.

    Whatever has none, or does what its rule did not foresee, fixes all nodes that reach it: unknown
    operators cost pruned neurons, never a wrong model.
    """
    fallback = POINTWISE if torch.Tag.pointwise in call.func.tags else ""
    function = _RULES.get(call.name) or _RULES.get(fallback)
    if function is None or not call.outputs:
        call.trace.fix(call.inputs, f"it reaches the operation {call.name!r}")
    elif call.outputs[0].numel() == 0:
        call.trace.fix(call.inputs, "it reaches an empty tensor")
    else:
        try:
            call.trace.splits.meet(call)
            function(call)
        except (RuntimeError, IndexError, ValueError, TypeError) as error:
            # The model itself has run: it is not to blame, and goes on without these neurons.
            line = str(error).strip().partition("\n")[0]
            call.trace.fix(call.inputs, f"the operation {call.name!r} cannot be followed ({line})")
            for output in call.outputs:
                call.trace.set(output)


def varying(ids: Tensor) -> tuple[int, ...]:
    """Return the axes along which ids differ."""
    return tuple(axis for axis, size in enumerate(ids.shape) if size > 1)


def fits(ids: Tensor, shape: Sequence[int]) -> bool:
    """Return whether ids describe a tensor of this shape."""
    return ids.ndim == len(shape) and all(
        have in (1, size) for have, size in zip(ids.shape, shape, strict=True)
    )


def compact(ids: Tensor) -> Tensor:
    """Return ids of full size with size 1 along each axis where they are all equal."""
    for axis in range(ids.ndim):  # those that were expanded first: they make the rest cheap
        if ids.stride(axis) == 0 and ids.shape[axis] > 1:
            ids = ids.narrow(axis, 0, 1)
    for axis in range(ids.ndim):
        first = ids.narrow(axis, 0, 1)
        if ids.shape[axis] > 1 and bool((ids == first).all()):
            ids = first
    return ids


def unsqueezed(ids: Tensor, ndim: int) -> Tensor:
    """Return ids with axes of size 1 put before them."""
    return ids.reshape([1] * (ndim - ids.ndim) + list(ids.shape))


def combine(call: Call, operands: list[tuple[Tensor, list[Tensor]]], shape: Sequence[int]) -> None:
    """Join operands of one shape up to broadcasting, given with their ids, and set the output's."""
    merged: dict[tuple[int, ...], Tensor] = {}
    for _, all_ids in operands:
        for ids in all_ids:
            axes = varying(ids)
            for other, theirs in merged.items():
                if other != axes and set(other) & set(axes):
                    call.fix(ids, SPLIT)
                    call.fix(theirs, SPLIT)
            if axes in merged:
                call.join(merged[axes], ids)
            merged.setdefault(axes, ids)
    for axes, ids in merged.items():
        for tensor, all_ids in operands:
            offset = len(shape) - tensor.ndim
            spans = any(a >= offset and tensor.shape[a - offset] > 1 for a in axes)
            follows = any(varying(own) == axes for own in all_ids)
            if spans and not follows and not call.ids(tensor).adapts:
                call.fix(ids, UNKNOWN_OPERAND)
    call.give(*merged.values())


def only(call: Call, tensor: Tensor, axis: int) -> Tensor | None:
    """Return the ids [size] along one axis of a tensor, None if there are none."""
    for ids in call.ids(tensor).all:
        if varying(ids) == (axis,):
            return ids.flatten()
    return None


def axes_of(given: Any, ndim: int) -> set[int]:
    """Return axes, given as one or many, possibly negative."""
    axes = [given] if isinstance(given, int) else given
    return {axis % max(ndim, 1) for axis in axes}
