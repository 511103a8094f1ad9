"""What operators that deal channels out anew, or scatter rows, do to ids."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from zoopress.dependencies.call import (
    PICKED,
    UNKNOWN_OPERAND,
    Call,
    axes_of,
    combine,
    only,
    rule,
    unsqueezed,
    varying,
)


@rule("channel_shuffle", "native_channel_shuffle")
def _channel_shuffle(call: Call) -> None:
    """Let groups of channels take turns: each loses the same ones."""
    groups: int = call.argument("groups")
    _along_channels(call, 1, lambda ids: _joined(call, ids.reshape(groups, -1)).t().flatten())


@rule("pixel_shuffle", "pixel_unshuffle")
def _pixel_shuffle(call: Call) -> None:
    """Deal runs of channels out over space, where they are one, and back."""
    unshuffle = call.name == "pixel_unshuffle"
    factor: int = call.argument("downscale_factor" if unshuffle else "upscale_factor")
    channels = call.inputs[0].ndim - 3

    def dealt(ids: Tensor) -> Tensor:
        if unshuffle:
            return ids.repeat_interleave(factor**2)
        return _joined(call, ids.reshape(-1, factor**2).t())[0]

    _along_channels(call, channels, dealt)


def _joined(call: Call, rows: Tensor) -> Tensor:
    call.join(rows[:1], rows)
    return rows


def _along_channels(call: Call, axis: int, change: Any) -> None:
    source, output = call.inputs[0], call.outputs[0]
    kept = []
    for ids in call.ids(source).all:
        if varying(ids) == (axis,):
            shape = [-1 if a == axis else 1 for a in range(output.ndim)]
            kept.append(change(ids.flatten()).reshape(shape))
        else:
            call.fix(ids, f"it is mixed by the operation {call.name!r}")
    call.give(*kept)


@rule("native_group_norm")
def _group_norm(call: Call) -> None:
    """Normalize channels in groups, [n, C, …]: a group goes as a whole, or stays."""
    source, groups = call.inputs[0], call.argument("group")
    reason = "it goes through group normalization"
    for ids in call.ids(source).all:
        if varying(ids) != (1,) or groups == 1:
            call.fix(ids, reason)
        else:
            _joined(call, ids.reshape(groups, -1).t())
    shape = [-1 if axis == 1 else 1 for axis in range(source.ndim)]
    operands = [(source, list(call.ids(source).all))]
    for tensor in call.inputs[1:]:
        for ids in call.ids(tensor).all:
            if groups > 1:
                _joined(call, ids.reshape(groups, -1).t())
            else:
                call.fix(ids, reason)
        # The source stands in for the vector, which has as many axes only after reshaping.
        operands.append((source, [ids.reshape(shape) for ids in call.ids(tensor).all]))
    combine(call, operands, source.shape)


@rule("new_zeros", "new_ones", "new_full", "new_empty", "new_empty_strided")
def _new(call: Call) -> None:
    """Make a tensor of a size that code computes; the check finds whether it follows."""
    call.trace.set_adapting(call.outputs[0])


@rule("index_add", "index_copy", "index_reduce", "scatter", "scatter_add", "scatter_reduce")
def _scatter(call: Call) -> None:
    """Put, or add, rows into others along one axis; along the rest both are alike."""
    into, source = call.inputs[0], call.inputs[-1]
    index = call.argument("index")
    (axis,) = axes_of([call.argument("dim")], into.ndim)
    call.trace.fix(index, "it is used as an index")
    given = [into, *([] if source is index else [source])]
    for tensor in given:
        for ids in call.ids(tensor).all:
            if axis in varying(ids):
                call.fix(ids, PICKED)
    # The rest of `into` stands in for both, whose sizes differ along the axis alone.
    operands = [
        (call.outputs[0] if call.ids(t).all else t, [i for i in call.ids(t).all if _lies(i, axis)])
        for t in given
    ]
    combine(call, operands, call.outputs[0].shape)


def _lies(ids: Tensor, axis: int) -> bool:
    return axis not in varying(ids)


@rule("index_put", "_index_put_impl", "_unsafe_index_put")
def _index_put(call: Call) -> None:
    """Put rows at places of the leading axes; neurons along the last are alike in both."""
    into, values = call.inputs[0], call.argument("values")
    indices = call.argument("indices")
    covered = sum(i.ndim if i is not None and i.dtype == torch.bool else 1 for i in indices)
    last = into.ndim - 1
    operands = []
    for tensor in (into, values):
        kept = []
        for ids in call.ids(tensor).all:
            if varying(ids) == (ids.ndim - 1,) and covered <= last and ids.ndim <= into.ndim:
                kept.append(unsqueezed(ids, into.ndim))
            else:
                call.fix(ids, PICKED)
        operands.append((call.outputs[0] if kept else tensor, kept))
    for index in indices:
        call.trace.fix(index, "it is used as an index")
    if values.ndim > into.ndim:
        return call.trace.fix(call.inputs, PICKED)
    combine(call, operands, call.outputs[0].shape)


@rule("gather", "take_along_dim")
def _gather(call: Call) -> None:
    """Pick elements along one axis; along the others the index follows, or the check fails."""
    source, index = call.inputs[0], call.argument("index")
    (axis,) = axes_of([call.argument("dim")], source.ndim)
    call.trace.fix(index, "it is used as an index")
    kept = []
    for ids in call.ids(source).all:
        if axis in varying(ids):
            call.fix(ids, PICKED)
        else:
            kept.append(ids)
    call.give(*kept)


@rule("topk", "kthvalue", "cummax", "cummin", "mode")
def _ranked(call: Call) -> None:
    source = call.inputs[0]
    (axis,) = axes_of([call.argument("dim")], source.ndim)
    kept = []
    for ids in call.ids(source).all:
        if axis in varying(ids):
            call.fix(ids, f"it is reduced by the operation {call.name!r}")
        else:
            kept.append(ids)
    call.give(*kept)


@rule("grid_sampler_2d", "grid_sampler_3d")
def _grid_sample(call: Call) -> None:
    """Sample channels at places that depend on no channel of theirs."""
    source, grid = call.inputs[:2]
    call.trace.fix(grid, "it says where to sample")
    _along_channels(call, 1, lambda ids: ids) if call.ids(source).all else call.give()


@rule("_fft_r2c", "_fft_c2r", "_fft_c2c")
def _fourier(call: Call) -> None:
    """Transform along some axes; along the others channels stay apart."""
    source = call.inputs[0]
    axes = axes_of(call.argument("dim"), source.ndim)
    kept = []
    for ids in call.ids(source).all:
        if axes & set(varying(ids)):
            call.fix(ids, f"it is mixed by the operation {call.name!r}")
        else:
            kept.append(ids)
    call.give(*kept)


@rule("view_as_real", "view_as_complex")
def _complex(call: Call) -> None:
    """Give real and imaginary parts an axis of their own at the end, and back."""
    kept = []
    for ids in call.ids(call.inputs[0]).all:
        if call.name == "view_as_real":
            kept.append(ids.unsqueeze(-1))
        elif ids.shape[-1] == 1:
            kept.append(ids.squeeze(-1))
        else:
            call.fix(ids, PICKED)
    call.give(*kept)


@rule("_embedding_bag", "_embedding_bag_forward_only")
def _embedding_bag(call: Call) -> None:
    weight, output = call.inputs[0], call.outputs[0]
    call.trace.fix(call.inputs[1:], "it is used as an index")
    for ids in call.ids(weight).all:
        if varying(ids) == (1,):
            call.trace.set(output, ids)
        else:
            call.fix(ids, "it is an embedding's vocabulary")


@rule("_trilinear")
def _bilinear(call: Call) -> None:
    """Sum products of two inputs [n, in] with a weight [out, in, in], as `nn.Bilinear` does."""
    first, weight, second = call.inputs
    how = [call.argument(n) for n in ("expand1", "expand2", "expand3", "sumdim")]
    if how != [[1, 3], [0], [1, 2], [2, 3]]:
        return call.trace.fix(call.inputs, f"it reaches the operation {call.name!r}")
    for tensor, axis in ((first, 1), (second, 2)):
        columns, given = only(call, weight, axis), only(call, tensor, 1)
        if columns is not None and given is not None:
            call.join(given, columns)
            call.trace.nodes.contract(columns)
            continue
        for ids in (columns, given):
            if ids is not None:
                call.fix(ids, UNKNOWN_OPERAND)
        for ids in call.ids(tensor).all:
            if varying(ids) != (1,):
                call.fix(ids, f"it reaches the operation {call.name!r}")
    rows = only(call, weight, 0)
    call.give(*([] if rows is None else [rows.reshape(1, -1)]))
