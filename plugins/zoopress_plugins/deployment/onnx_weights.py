"""Integer weights of an ONNX graph: codes behind DequantizeLinear, in the order that readers want.

PyTorch's layers turn, cut and join their weights on the way to ONNX's operators. Done to integers
and scales instead, once and for all, weights stay integers right in front of what reads them, which
is where runtimes look for them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir
import torch

from zoopress.exporters.integer_weights import IntegerWeight

OPSET = 21
"""The first in which DequantizeLinear knows blocks and four bits."""


class DequantizedWeight(IntegerWeight):
    """A weight that becomes a DequantizeLinear in ONNX; it computes nothing in PyTorch."""

    def matrix(self) -> torch.Tensor:
        """Return the weight's matrix [rows, columns], as an operator of ONNX."""
        each = [self.scale.to(torch.float32), self.zero_point]
        attributes: dict[str, Any] = {"axis": self.axis or 0}
        if self.group_size is not None:
            attributes = {"axis": 1, "block_size": self.group_size}
        else:
            each = [None if tensor is None else tensor.reshape(-1) for tensor in each]
            if self.axis is None:
                each = [None if tensor is None else tensor.reshape(()) for tensor in each]
        return torch.onnx.ops.symbolic(
            "DequantizeLinear",
            [self.codes, *(tensor for tensor in each if tensor is not None)],
            attributes,
            dtype=torch.float32,
            shape=self.codes.shape,
            version=OPSET,
        )


@dataclass(frozen=True)
class _Integers:
    """A dequantized constant.

    Attributes:
        codes: of any shape.
        scale, zero: as many axes as codes; along each as long as these, or 1, or a place for each
            `block` of them along the last axis but one or last.
        block: how many codes share a scale along an axis where scales are fewer, but not one.
    """

    codes: np.ndarray[Any, Any]
    scale: np.ndarray[Any, Any]
    zero: np.ndarray[Any, Any] | None
    block: int

    def map(self, change: Callable[[np.ndarray[Any, Any]], np.ndarray[Any, Any]]) -> _Integers:
        """Return it with codes, scales and zero points changed alike."""
        zero = None if self.zero is None else change(self.zero)
        return _Integers(change(self.codes), change(self.scale), zero, self.block)

    def is_blocked(self, axis: int) -> bool:
        """Tell whether several codes, but not all, share a scale along an axis."""
        return self.scale.shape[axis] not in (1, self.codes.shape[axis])


def move_into_integers(model: ir.Model) -> None:
    """Apply what only rearranges a dequantized constant to its integers, in place."""
    graph = model.graph
    found: dict[str, _Integers] = {}
    changed: set[str] = set()
    for node in list(graph):
        output = node.outputs[0]
        if node.op_type == "DequantizeLinear" and (read := _read(node)) is not None:
            found[str(output.name)] = read
            changed.add(str(output.name))  # narrow types, if nothing else
        elif node.op_type in _MOVES and len(node.outputs) == 1:
            moved = _MOVES[node.op_type](node, found)
            if moved is not None:
                found[str(output.name)] = moved
                changed.add(str(output.name))
    wanted = [
        node
        for node in graph
        if str(node.outputs[0].name) in changed and _is_read(node.outputs[0], found)
    ]
    for node in wanted:
        _write(graph, node, found[str(node.outputs[0].name)])


def _is_read(value: ir.Value, found: dict[str, _Integers]) -> bool:
    """Tell whether something else than a rearrangement reads a value."""
    if value.is_graph_output():
        return True
    return any(str(user.outputs[0].name) not in found for user, _ in value.uses())


def constant_of(value: ir.Value | None) -> np.ndarray[Any, Any] | None:
    """Return what is constant of a graph, None of what is not."""
    if value is None:
        return None
    tensor = ir.convenience.get_const_tensor(value)
    return None if tensor is None else tensor.numpy()


def _read(node: ir.Node) -> _Integers | None:
    first = node.inputs[0]
    if first is None or any(user.op_type != node.op_type for user, _ in first.uses()):
        return None  # rearranged, a table that is looked up in as well would be there twice
    given = [constant_of(value) for value in node.inputs]
    codes, scale, zero = (*given, None, None)[:3]
    if codes is None or scale is None or (len(node.inputs) > 2 and zero is None):
        return None
    axis = node.attributes.get_int("axis", 1)
    block = node.attributes.get_int("block_size", 0)
    if not block:
        shape = [1] * codes.ndim
        if scale.size > 1:
            shape[axis] = -1
        scale = scale.reshape(shape)
        zero = None if zero is None else zero.reshape(shape)
    return _Integers(codes, scale, zero, block)


def _write(graph: ir.Graph, node: ir.Node, integers: _Integers) -> None:
    """Put a DequantizeLinear in the place of what computed a constant."""
    output = node.outputs[0]
    codes, scale, zero = _narrowed(integers)
    long = [axis for axis, size in enumerate(scale.shape) if size > 1]
    attributes: dict[str, int] = {}
    if not long:
        scale, zero = scale.reshape(()), None if zero is None else zero.reshape(())
    elif len(long) == 1 and not integers.is_blocked(long[0]):
        attributes = {"axis": long[0]}
        scale, zero = scale.reshape(-1), None if zero is None else zero.reshape(-1)
    else:
        # Blocks run along one axis; along the others each place has a scale.
        shared = [axis for axis in range(codes.ndim) if scale.shape[axis] != codes.shape[axis]]
        axis = next((a for a in shared if integers.is_blocked(a)), (shared or [codes.ndim - 1])[0])
        shape = [*codes.shape]
        shape[axis] = scale.shape[axis]
        scale = np.ascontiguousarray(np.broadcast_to(scale, shape))
        zero = None if zero is None else np.ascontiguousarray(np.broadcast_to(zero, shape))
        whole = integers.block if integers.is_blocked(axis) else codes.shape[axis]
        attributes = {"axis": axis, "block_size": whole if axis in shared else 1}
    inputs = [
        add_initializer(graph, f"{output.name}.{part}", array)
        for part, array in (("codes", codes), ("scale", scale), ("zero_point", zero))
        if array is not None
    ]
    made = ir.node("DequantizeLinear", inputs, attributes, name=f"{output.name}.dequantize")
    new = made.outputs[0]
    new.name, new.shape, new.type = output.name, output.shape, output.type
    graph.insert_before(node, made)
    ir.convenience.replace_all_uses_with(output, new, replace_graph_outputs=True)
    output.name = None


def _narrowed(
    integers: _Integers,
) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any], np.ndarray[Any, Any] | None]:
    """Return codes and zero points in the narrowest type of ONNX that holds them."""
    codes, zero = integers.codes, integers.zero
    arrays = [array for array in (codes, zero) if array is not None and array.size]
    low = min((int(array.min()) for array in arrays), default=0)
    high = max((int(array.max()) for array in arrays), default=0)
    kind = next(kind for kind, least, most in _TYPES if least <= low and high <= most)
    return codes.astype(kind), integers.scale, None if zero is None else zero.astype(kind)


_TYPES = (
    (np.dtype(ml_dtypes.int4), -8, 7),
    (np.dtype(ml_dtypes.uint4), 0, 15),
    (np.dtype(np.int8), -128, 127),
    (np.dtype(np.uint8), 0, 255),
    (np.dtype(np.int16), -(1 << 15), (1 << 15) - 1),
    (np.dtype(np.uint16), 0, (1 << 16) - 1),
    (np.dtype(np.int32), -(1 << 31), (1 << 31) - 1),
)


def add_initializer(graph: ir.Graph, name: str, array: np.ndarray[Any, Any]) -> ir.Value:
    """Add a constant to a graph."""
    value = ir.Value(name=name, const_value=ir.tensor(np.ascontiguousarray(array), name=name))
    value.shape, value.dtype = value.const_value.shape, value.const_value.dtype
    graph.register_initializer(value)
    return value


def _transpose(node: ir.Node, found: dict[str, _Integers]) -> _Integers | None:
    given = found.get(str(node.inputs[0].name)) if node.inputs[0] is not None else None
    if given is None:
        return None
    order = node.attributes.get_ints("perm", list(range(given.codes.ndim))[::-1])
    return given.map(lambda array: array.transpose(order))


def _reshape(node: ir.Node, found: dict[str, _Integers]) -> _Integers | None:
    given = found.get(str(node.inputs[0].name)) if node.inputs[0] is not None else None
    shape = constant_of(node.inputs[1])
    if given is None or shape is None or 0 in shape:
        return None
    target = given.codes.reshape(shape).shape
    scale = _scale_shape(given.codes.shape, given.scale.shape, target)
    if scale is None:
        return None
    zero = None if given.zero is None else given.zero.reshape(scale)
    return _Integers(given.codes.reshape(target), given.scale.reshape(scale), zero, given.block)


def _scale_shape(
    before: tuple[int, ...], scale: tuple[int, ...], target: tuple[int, ...]
) -> list[int] | None:
    """Return the shape of scales after a reshape of codes, None where they lose their axes.

    Axes are followed in runs of equal size. Within a run, all that has scales must stay as it is.
    """
    result: list[int] = []
    i = j = 0
    while i < len(before) or j < len(target):
        run_i, run_j = i, j
        a = b = 1
        while True:
            if a <= b and i < len(before):
                a, i = a * before[i], i + 1
            elif j < len(target):
                b, j = b * target[j], j + 1
            else:
                break
            if a == b and run_i < i and run_j < j:
                break
        if a != b:
            return None
        own, new = before[run_i:i], target[run_j:j]
        if all(size == 1 for size in scale[run_i:i]):
            result += [1] * len(new)
        elif [s for s in own if s > 1] == [s for s in new if s > 1]:
            each = iter([s for s, size in zip(scale[run_i:i], own, strict=True) if size > 1])
            result += [next(each) if size > 1 else 1 for size in new]
        elif scale[run_i:i] == own:
            result += new  # each code has a scale of its own there
        else:
            return None
    return result


def _unsqueeze(node: ir.Node, found: dict[str, _Integers]) -> _Integers | None:
    given = found.get(str(node.inputs[0].name)) if node.inputs[0] is not None else None
    axes = constant_of(node.inputs[1])
    if given is None or axes is None:
        return None
    return given.map(lambda array: np.expand_dims(array, tuple(int(axis) for axis in axes)))


def _squeeze(node: ir.Node, found: dict[str, _Integers]) -> _Integers | None:
    given = found.get(str(node.inputs[0].name)) if node.inputs[0] is not None else None
    axes = constant_of(node.inputs[1]) if len(node.inputs) > 1 else None
    if given is None or axes is None:
        return None
    return given.map(lambda array: array.squeeze(tuple(int(axis) for axis in axes)))


def _slice(node: ir.Node, found: dict[str, _Integers]) -> _Integers | None:
    given = found.get(str(node.inputs[0].name)) if node.inputs[0] is not None else None
    rest = [constant_of(value) for value in node.inputs[1:]]
    if given is None or len(rest) < 3 or any(each is None for each in rest):
        return None
    starts, ends, axes, *steps = rest
    for k, axis in enumerate(int(axis) for axis in axes):  # type: ignore[union-attr]
        if given.is_blocked(axis):
            return None
        step = int(steps[0][k]) if steps else 1  # type: ignore[index]
        if step < 1:
            return None
        some = slice(int(starts[k]), int(ends[k]), step)  # type: ignore[index]
        length = given.codes.shape[axis]

        def cut(
            array: np.ndarray[Any, Any], axis: int = axis, some: slice = some, length: int = length
        ) -> np.ndarray[Any, Any]:
            if array.shape[axis] != length:
                return array
            return array[(slice(None),) * axis + (some,)]

        given = given.map(cut)
    return given


def _concat(node: ir.Node, found: dict[str, _Integers]) -> _Integers | None:
    parts = [found.get(str(value.name)) if value is not None else None for value in node.inputs]
    given = [part for part in parts if part is not None]
    if len(given) < len(parts):
        return None
    axis = node.attributes.get_int("axis", 0) % given[0].codes.ndim
    same = {(each.codes.dtype, each.zero is None, each.block) for each in given}
    if len(same) > 1 or any(each.is_blocked(axis) for each in given):
        return None
    for other in range(given[0].codes.ndim):
        if other != axis and len({each.scale.shape[other] for each in given}) > 1:
            return None

    def joined(pick: Callable[[_Integers], np.ndarray[Any, Any]], full: bool) -> Any:
        arrays = []
        for each in given:
            array = pick(each)
            if full:
                shape = list(array.shape)
                shape[axis] = each.codes.shape[axis]
                array = np.broadcast_to(array, shape)
            arrays.append(array)
        return np.concatenate(arrays, axis)

    zero = None if given[0].zero is None else joined(lambda e: e.zero, True)  # type: ignore[arg-type, return-value]
    return _Integers(
        joined(lambda e: e.codes, False),
        joined(lambda e: e.scale, True),
        zero,
        given[0].block,
    )


_MOVES: dict[str, Callable[[ir.Node, dict[str, _Integers]], _Integers | None]] = {
    "Transpose": _transpose,
    "Reshape": _reshape,
    "Unsqueeze": _unsqueeze,
    "Squeeze": _squeeze,
    "Slice": _slice,
    "Concat": _concat,
}


def remove_unused(model: ir.Model) -> None:
    """Remove what no output needs, in place."""
    import onnx_ir.passes.common as passes

    passes.RemoveUnusedNodesPass()(model)
