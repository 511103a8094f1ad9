"""What operators that move, combine or reduce elements do to ids.

Each rule records which nodes an operator joins and which it fixes, and sets its outputs' ids.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from zoopress.dependencies.call import (
    PICKED,
    POINTWISE,
    SPLIT,
    UNKNOWN_OPERAND,
    Call,
    axes_of,
    combine,
    compact,
    only,
    rule,
    unsqueezed,
    varying,
)
from zoopress.dependencies.nodes import NONE


@rule(
    POINTWISE,
    *("_to_copy", "alias", "detach", "clone", "contiguous", "lift_fresh", "copy", "native_dropout"),
    *("hardswish", "_prelu_kernel", "log_sigmoid_forward", "softplus", "rrelu_with_noise"),
    *("zeros_like", "ones_like", "empty_like", "full_like", "rand_like", "randn_like", "fill"),
    *("fake_quantize_per_tensor_affine_cachemask", "complex", "polar", "_conj", "masked_fill"),
    *("zero", "bernoulli", "where", "hardsigmoid", "hardtanh", "elu"),
)
def _pointwise(call: Call) -> None:
    """Join operands: an element goes only if it goes from all of them."""
    ndim = max((output.ndim for output in call.outputs), default=0)
    shape = next((output.shape for output in call.outputs if output.ndim == ndim), torch.Size())
    combine(call, [(t, [unsqueezed(i, ndim) for i in call.ids(t).all]) for t in call.inputs], shape)


@rule(
    *("view", "_unsafe_view", "reshape", "_reshape_alias", "permute", "transpose", "t"),
    *("unsqueeze", "squeeze", "expand", "repeat", "flip", "constant_pad_nd"),
)
def _move(call: Call) -> None:
    source = call.inputs[0]
    moved = []
    for ids in call.ids(source).all:
        result = _applied(call, ids.expand(source.shape))
        if call.trace.splits.holds(ids):
            call.trace.splits.moved(call, ids, result)
        elif len(varying(result)) > len(varying(ids)) and _width(result) != _width(ids):
            call.trace.splits.add(call, ids, result)
        if call.name == "constant_pad_nd" and min(call.argument("pad"), default=0) < 0:
            call.fix(ids, PICKED)
        moved.append(result)
    call.give(*moved)


def _applied(call: Call, ids: Tensor) -> Tensor:
    """Apply a data-moving operator to ids of full size."""
    output = call.outputs[0]
    if call.name in ("view", "_unsafe_view", "reshape", "_reshape_alias"):
        return compact(ids.reshape(output.shape))
    if call.name == "constant_pad_nd":
        own = compact(ids)
        pad = list(call.argument("pad"))
        for axis in range(ids.ndim - len(pad) // 2, ids.ndim):
            if own.shape[axis] == 1:  # padded along another axis than the neurons'
                start = 2 * (ids.ndim - 1 - axis)
                pad[start : start + 2] = [0, 0]
        return torch.constant_pad_nd(own, pad, NONE)
    rest = tree_map(lambda x: x.cpu() if isinstance(x, Tensor) else x, list(call.args[1:]))
    result: Tensor = call.func(ids, *rest, **call.kwargs)
    return compact(result)


def _width(ids: Tensor) -> int:
    """Return the size of the last axis along which ids differ: that of the neurons.

    Those that differ along an earlier one too are rows of neurons, such as the final states of a
    recurrent module's layers, each of which loses equally many.
    """
    return ids.shape[max(varying(ids), default=0)] if ids.ndim else 1


@rule(
    "select", "index", "_unsafe_index", "index_select", "roll", "unfold", "diagonal", "tril", "triu"
)
def _pick(call: Call) -> None:
    """Move ids along the axes they do not index; what is picked by position cannot shrink."""
    source = call.inputs[0]
    if call.name in ("index", "_unsafe_index"):
        picked = _indexed(call.argument("indices"))
    elif call.name in ("tril", "triu"):
        picked = {source.ndim - 2, source.ndim - 1}
    elif call.name == "diagonal":
        picked = axes_of([call.argument("dim1"), call.argument("dim2")], source.ndim)
    else:
        given = [call.argument(n) for n in ("dim", "dims", "dimension")]
        dims = next((g for g in given if g is not None and g != []), range(source.ndim))
        picked = axes_of(dims, source.ndim)
    for tensor in call.inputs[1:]:
        call.trace.fix(tensor, "it is used as an index")
    moved = []
    for ids in call.ids(source).all:
        if varying(ids) and max(varying(ids)) in picked:
            call.fix(ids, PICKED)
        moved.append(_applied(call, ids.expand(source.shape)))
    call.give(*moved)


def _indexed(indices: Sequence[Tensor | None]) -> set[int]:
    """Return which axes `x[indices]` picks from; a boolean mask covers as many as it has."""
    picked: set[int] = set()
    axis = 0
    for index in indices:
        covered = index.ndim if index is not None and index.dtype == torch.bool else 1
        if index is not None:
            picked |= set(range(axis, axis + covered))
        axis += covered
    return picked


@rule("split", "split_with_sizes", "slice", "unbind", "unsafe_split", "unsafe_chunk", "chunk")
def _part(call: Call) -> None:
    """Tie equal blocks: they stay where the model cuts only if each loses the same neurons."""
    source = call.inputs[0]
    (axis,) = axes_of([call.argument("dim") or 0], source.ndim)
    parts: list[list[Tensor]] = [[] for _ in call.outputs]
    if any(output.numel() == 0 for output in call.outputs):
        return call.trace.fix(source, PICKED)
    for ids in call.ids(source).all:
        if varying(ids) and axis == max(varying(ids)):
            if call.name == "unbind":
                call.fix(ids, PICKED)
            else:
                _tie_blocks(call, ids, axis)
        moved = call.func(ids.expand(source.shape), *call.args[1:], **call.kwargs)
        for part, result in zip(
            parts, [moved] if isinstance(moved, Tensor) else moved, strict=True
        ):
            part.append(compact(result))
    for output, part in zip(call.outputs, parts, strict=True):
        call.trace.set(output, *part, is_weight=call.ids(source).is_weight)


def _tie_blocks(call: Call, ids: Tensor, axis: int) -> None:
    sizes = {output.shape[axis] for output in call.outputs}
    total = ids.shape[axis]
    start = call.argument("start") or 0
    stepped = (call.argument("step") or 1) != 1
    (block, *others) = sizes
    if block == total and not stepped:
        return
    step = call.argument("step") or 1
    if stepped and block * step == total and start < step:
        # Every second one, say: neurons stand beside each other that go together.
        rows = ids.movedim(axis, -1).reshape(-1, step)
        call.join(rows[:, :1], rows)
        return
    if others or total % block or start % block or stepped:
        call.fix(ids, PICKED)
        return
    blocks = ids.split(block, axis)
    for other in blocks[1:]:
        call.join(blocks[0], other)


@rule("cat", "stack")
def _concatenate(call: Call) -> None:
    """Line up ids along the axis; along any other, all parts must shrink alike."""
    ndim = call.inputs[-1].ndim
    tensors = [t for t in call.inputs if t.ndim == ndim]  # `cat` skips [0]-shaped tensors
    (axis,) = axes_of([call.argument("dim") or 0], call.outputs[0].ndim)
    stacked = call.name == "stack"
    across: list[Tensor] = []
    along = []
    for tensor in tensors:
        own = [ids for ids in call.ids(tensor).all if stacked or axis not in varying(ids)]
        for ids in call.ids(tensor).all:
            if varying(ids) == (axis,):
                along.append(ids)
            elif axis in varying(ids) and not stacked:  # parts of heads, as in partial rotation
                call.fix(ids, SPLIT)
        if [varying(i) for i in own] != [varying(i) for i in across] and tensor is not tensors[0]:
            for ids in [*own, *across]:
                call.fix(ids, UNKNOWN_OPERAND)
        for ids, first in zip(own, across or own, strict=False):
            call.join(first, ids)
        across = across or own
    if stacked:
        return call.give(*(ids.unsqueeze(axis) for ids in across))
    if along:
        shape = [-1 if a == axis else 1 for a in range(ndim)]
        parts = []
        for tensor in tensors:
            part = only(call, tensor, axis)
            parts.append(torch.full((tensor.shape[axis],), NONE) if part is None else part)
        across = [*across, torch.cat(parts).reshape(shape)]
    call.give(*across)


@rule(
    *("sum", "mean", "amax", "amin", "max", "min", "prod", "var", "std", "var_mean", "std_mean"),
    *("norm", "linalg_vector_norm", "argmax", "argmin", "logsumexp", "any", "all", "median"),
)
def _reduce(call: Call) -> None:
    source = call.inputs[0]
    if len(call.inputs) > 1:  # max and min of two tensors
        return _pointwise(call)
    given = call.argument("dim")
    axes = axes_of(range(source.ndim) if given is None or given == [] else given, source.ndim)
    reduced = []
    for ids in call.ids(source).all:
        if axes & set(varying(ids)):
            call.fix(ids, f"it is reduced by the operation {call.name!r}")
        else:
            keep = bool(call.argument("keepdim"))
            shape = [n for a, n in enumerate(ids.shape) if keep or a not in axes]
            reduced.append(ids.reshape(shape))
    call.give(*reduced)


@rule("_softmax", "_log_softmax", "_safe_softmax", "cumsum", "cumprod", "sort", "logcumsumexp")
def _along(call: Call) -> None:
    (axis,) = axes_of([call.argument("dim")], call.inputs[0].ndim)
    for ids in call.ids(call.inputs[0]).all:
        if axis in varying(ids):
            call.fix(ids, f"it is reduced by the operation {call.name!r}")
    call.give(*call.ids(call.inputs[0]).all)


@rule("native_layer_norm", "_fused_rms_norm")
def _normalize(call: Call) -> None:
    source = call.inputs[0]
    axes = set(range(source.ndim - len(call.argument("normalized_shape")), source.ndim))
    for tensor in call.inputs[1:]:
        call.trace.fix(tensor, "it goes through layer normalization")
    for ids in call.ids(source).all:
        if axes & set(varying(ids)):
            call.fix(ids, "it goes through layer normalization")
    call.give(*call.ids(source).all)


@rule(
    *("native_batch_norm", "_native_batch_norm_legit_no_training", "_native_batch_norm_legit"),
    *("cudnn_batch_norm", "miopen_batch_norm", "_batch_norm_with_update"),
)
def _batch_norm(call: Call) -> None:
    source = call.inputs[0]
    shape = [-1 if axis == 1 else 1 for axis in range(source.ndim)]
    operands = [(source, list(call.ids(source).all))]
    for tensor in call.inputs[1:]:
        # The source stands in for the vector, which has as many axes only after reshaping.
        operands.append((source, [ids.reshape(shape) for ids in call.ids(tensor).all]))
    combine(call, operands, source.shape)


@rule("glu")
def _glu(call: Call) -> None:
    source = call.inputs[0]
    (axis,) = axes_of([call.argument("dim")], source.ndim)
    for ids in call.ids(source).all:
        if axis in varying(ids):
            _tie_blocks(call, ids, axis)
    call.give(
        *(ids.chunk(2, axis)[0] if axis in varying(ids) else ids for ids in call.ids(source).all)
    )


@rule("im2col", "col2im")
def _windows(call: Call) -> None:
    """Keep ids over windows cut from feature maps, and put together again: [n, C * k, windows]."""
    source, output = call.inputs[0], call.outputs[0]
    kernel = math.prod(call.argument("kernel_size"))
    moved = []
    for ids in call.ids(source).all:
        channels = source.ndim - (3 if call.name == "im2col" else 2)
        if varying(ids) != (channels,):
            call.fix(ids, f"it is mixed by the operation {call.name!r}")
            continue
        flat = ids.flatten()
        if call.name == "im2col":
            flat = flat.repeat_interleave(kernel)
        else:
            windows = flat.reshape(-1, kernel)
            call.join(windows[:, :1], windows)
            flat = windows[:, 0]
        axis = output.ndim - (2 if call.name == "im2col" else 3)
        moved.append(flat.reshape([-1 if a == axis else 1 for a in range(output.ndim)]))
    call.give(*moved)


@rule("_weight_norm_interface")
def _weight_norm(call: Call) -> None:
    """Scale each slice of a weight, along one axis, to a given norm."""
    axis: int = call.argument("dim")
    kept: dict[tuple[int, ...], Tensor] = {}
    for tensor in call.inputs:
        for ids in call.ids(tensor).all:
            if varying(ids) != (axis,):
                call.fix(ids, "its weight is normalized over it")
            elif (axis,) in kept:
                call.join(kept[axis,], ids)
            kept.setdefault(varying(ids), ids)
    call.give(*kept.values())


@rule(
    *("max_pool2d_with_indices", "max_pool3d_with_indices", "avg_pool2d", "avg_pool3d"),
    *("avg_pool1d", "_adaptive_avg_pool2d", "_adaptive_avg_pool3d", "adaptive_max_pool2d"),
    *("adaptive_max_pool3d", "upsample_nearest1d", "upsample_nearest2d", "upsample_nearest3d"),
    *("_upsample_nearest_exact1d", "_upsample_nearest_exact2d", "upsample_linear1d"),
    *("upsample_bilinear2d", "_upsample_bilinear2d_aa", "upsample_trilinear3d"),
    *("upsample_bicubic2d", "_upsample_bicubic2d_aa", "reflection_pad1d", "reflection_pad2d"),
    *("reflection_pad3d", "replication_pad1d", "replication_pad2d", "replication_pad3d"),
    *("mkldnn_max_pool2d", "mkldnn_max_pool3d"),
)
def _spatial(call: Call) -> None:
    """Keep ids over what mixes neighbours in space, channel by channel."""
    rank = int(next(c for c in call.name if c.isdigit()))
    source = call.inputs[0]
    kept = []
    for ids in call.ids(source).all:
        if any(axis >= source.ndim - rank for axis in varying(ids)):
            call.fix(ids, f"it is mixed by the operation {call.name!r}")
        else:
            kept.append(ids)
    call.give(*kept)


@rule("_pack_padded_sequence", "_pad_packed_sequence")
def _pack_sequence(call: Call) -> None:
    source, output = call.inputs[0], call.outputs[0]
    for ids in call.ids(source).all:
        if varying(ids) == (source.ndim - 1,):
            call.trace.set(output, ids.reshape([1] * (output.ndim - 1) + [-1]))
        else:
            call.fix(ids, "it is packed into a sequence along another axis")
