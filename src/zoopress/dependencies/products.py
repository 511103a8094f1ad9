"""What products of activations with weights do to ids: neurons end where they are summed over."""

from __future__ import annotations

import torch
from torch import Tensor

from zoopress.dependencies.call import (
    SPLIT,
    UNKNOWN_OPERAND,
    Call,
    combine,
    only,
    rule,
    unsqueezed,
    varying,
)

_GROUPED_BYTES = 16
"""The kernel of grouped products wants rows whose strides are multiples of so many bytes."""

ATTENTION = "it is summed over in a product of two activations, such as attention"


@rule("embedding")
def _embedding(call: Call) -> None:
    rows = call.outputs[0].ndim - 1
    call.trace.fix(call.argument("indices"), "it is used as an index")
    for ids in call.ids(call.inputs[0]).all:
        if varying(ids) == (1,):
            call.give(ids.reshape([1] * rows + [-1]))
        else:
            call.fix(ids, "it is an embedding's vocabulary")


@rule("mm", "addmm", "bmm", "baddbmm")
def _matmul(call: Call) -> None:
    first, second = call.inputs[-2:]
    row, column = first.ndim - 2, first.ndim - 1
    outer: list[Tensor] = []
    inner: list[list[Tensor]] = [[], []]
    for side, (tensor, summed) in enumerate([(first, column), (second, row)]):
        for ids in call.ids(tensor).all:
            if varying(ids) == (summed,):
                inner[side].append(ids.flatten())
            elif varying(ids) in ((row,), (column,)):
                outer.append(ids)
            else:
                call.fix(ids, SPLIT)
    for one, other in _pairs(call, *inner):
        _contract(call, (first, one), (second, other))
    # The output stands in for the factors, which have other shapes.
    shape = call.outputs[0].shape
    operands = [(call.outputs[0], outer)]
    for bias in call.inputs[:-2]:
        operands.append((bias, [unsqueezed(ids, len(shape)) for ids in call.ids(bias).all]))
    combine(call, operands, shape)


@rule(
    *("_scaled_dot_product_flash_attention_for_cpu", "_scaled_dot_product_flash_attention"),
    *("_scaled_dot_product_efficient_attention", "_scaled_dot_product_cudnn_attention"),
)
def _attention(call: Call) -> None:
    """Weigh values [n, heads, length, size] by products of queries with keys."""
    query, key, value = call.inputs[:3]
    for tensor in (query, key, *call.inputs[3:]):
        call.trace.fix(tensor, ATTENTION)
    kept = []
    for ids in call.ids(value).all:
        if varying(ids) == (value.ndim - 1,):
            kept.append(ids)
        else:
            call.fix(ids, SPLIT)
    call.give(*kept)


@rule("_grouped_mm")
def _grouped_matmul(call: Call) -> None:
    """Multiply tokens [tokens, in] with their experts' weights [experts, in, out]."""
    first, second = call.inputs[:2]
    step = max(8, _GROUPED_BYTES // second.element_size())  # 8: of 16-bit floats, too
    for ids in call.ids(second).all:
        if ids.shape[0] == 1:
            call.trace.nodes.step(ids, step)
    if (first.ndim, second.ndim, call.argument("bias")) != (2, 3, None):
        return call.trace.fix(call.inputs, "it reaches the operation '_grouped_mm'")
    _contract(call, (first, only(call, first, 1)), (second, only(call, second, 1)))
    for tensor, axes in ((first, ((1,),)), (second, ((1,), (2,)))):
        for ids in call.ids(tensor).all:
            if varying(ids) not in axes:
                call.fix(ids, "it counts tokens or experts")
    produced = only(call, second, 2)
    call.give(*([] if produced is None else [produced.reshape(1, -1)]))


def _pairs(
    call: Call, first: list[Tensor], second: list[Tensor]
) -> list[tuple[Tensor | None, Tensor | None]]:
    """Pair the ids of an axis that two operands are summed over.

    There are several where axes were merged, such as neurons with the places of a grid: those go
    together whose ids repeat alike.
    """
    if len(first) <= 1 and len(second) <= 1:
        return [(first[0] if first else None, second[0] if second else None)]
    pairs: list[tuple[Tensor | None, Tensor | None]] = []
    left = list(second)
    for ids in first:
        match = next((i for i, other in enumerate(left) if _alike(ids, other)), None)
        if match is None:
            call.fix(ids, SPLIT)
        else:
            pairs.append((ids, left.pop(match)))
    for ids in left:
        call.fix(ids, SPLIT)
    return pairs


def _alike(first: Tensor, second: Tensor) -> bool:
    """Return whether ids [size] repeat at the same places."""
    inverses = [_order(ids) for ids in (first, second)]
    return torch.equal(*inverses)


def _order(ids: Tensor) -> Tensor:
    """Return of each element where it occurs first."""
    kinds, inverse = ids.unique(return_inverse=True)
    places = torch.arange(len(ids))
    first = torch.full((len(kinds),), len(ids)).scatter_reduce(0, inverse, places, "amin")
    return first[inverse]


def _contract(
    call: Call, first: tuple[Tensor, Tensor | None], second: tuple[Tensor, Tensor | None]
) -> None:
    """Join two operands along the axis they are summed over, ids [size]."""
    (a, a_ids), (b, b_ids) = first, second
    if a_ids is not None and b_ids is not None:
        if not (call.ids(a).is_weight or call.ids(b).is_weight):
            call.fix(a_ids, ATTENTION)
            call.fix(b_ids, ATTENTION)
        call.join(a_ids, b_ids)
        call.trace.nodes.contract(b_ids if call.ids(b).is_weight else a_ids)
        return
    for ids, other in ((a_ids, b), (b_ids, a)):
        if ids is not None and not call.ids(other).adapts:
            call.fix(ids, UNKNOWN_OPERAND)


@rule("convolution")
def _convolution(call: Call) -> None:
    source, weight = call.argument("input"), call.argument("weight")
    groups, transposed = call.argument("groups"), call.argument("transposed")
    channels = only(call, source, 1)
    rows, columns = only(call, weight, 0), only(call, weight, 1)
    for tensor, axes in ((source, ((1,),)), (weight, ((0,), (1,)))):
        for ids in call.ids(tensor).all:
            if varying(ids) not in axes:
                call.fix(ids, "it is summed over by a convolution's kernel")
    produced, summed = (columns, rows) if transposed else (rows, columns)
    if groups == 1:
        _contract(call, (source, channels), (weight, summed))
    else:
        produced = _grouped(call, channels, rows, columns)
    shape = [-1 if axis == 1 else 1 for axis in range(source.ndim)]
    output = call.outputs[0]
    operands = [(output, [] if produced is None else [produced.reshape(shape)])]
    bias = call.argument("bias")
    if bias is not None:
        # The output stands in for the bias, which has as many axes only after reshaping.
        operands.append((output, [ids.reshape(shape) for ids in call.ids(bias).all]))
    combine(call, operands, output.shape)


def _grouped(
    call: Call, channels: Tensor | None, rows: Tensor | None, columns: Tensor | None
) -> Tensor | None:
    """Join a grouped convolution's channels; return the ids of those it produces.

    A depthwise convolution loses whole groups, any other the same channels of each group.
    """
    source, weight = call.argument("input"), call.argument("weight")
    groups: int = call.argument("groups")
    if channels is None or rows is None or (call.argument("transposed") and columns is not None):
        for tensor in (source, weight):
            call.trace.fix(tensor, "it meets a grouped convolution that does not follow")
        return None
    if groups == source.shape[1]:
        call.join(channels.repeat_interleave(rows.numel() // groups), rows)
        return rows
    if columns is None or call.argument("transposed"):
        for tensor in (source, weight):
            call.trace.fix(tensor, "it meets a grouped convolution that does not follow")
        return None
    call.join(channels.reshape(groups, -1), columns)
    call.trace.nodes.contract(columns)
    by_group = rows.reshape(groups, -1)
    call.join(by_group[:1], by_group)
    return rows
