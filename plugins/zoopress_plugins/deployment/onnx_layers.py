"""Layers of integers in the form of ONNX for which runtimes have kernels of integers.

Both changes are exact but for the rounding of floats: nothing is quantized here.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir

from zoopress_plugins.deployment.onnx_weights import add_initializer, constant_of

Array = np.ndarray[Any, Any]


def split_products(model: ir.Model) -> None:
    """Make MatMul and Add of each Gemm whose input is rounded to a grid, in place.

    ONNX Runtime has a kernel of integers for a Gemm only where its bias is rounded too, and one for
    MatMul in any case.
    """
    graph = model.graph
    for node in list(graph):
        if node.op_type != "Gemm" or not _is_dequantized(node.inputs[0]):
            continue
        scaled = any(node.attributes.get_float(name, 1.0) != 1.0 for name in ("alpha", "beta"))
        if scaled or node.attributes.get_int("transA", 0):
            continue
        x, weight, bias = (*node.inputs, None)[:3]
        output = node.outputs[0]
        made = []
        if node.attributes.get_int("transB", 0):
            made.append(ir.node("Transpose", [weight], {"perm": [1, 0]}))
            weight = made[-1].outputs[0]
        made.append(ir.node("MatMul", [x, weight]))
        if bias is not None:
            made.append(ir.node("Add", [made[-1].outputs[0], bias]))
        for k, each in enumerate(made):
            each.name = f"{output.name}.{each.op_type}"
            each.outputs[0].name = f"{output.name}.{k}"
        new = made[-1].outputs[0]
        _put(graph, node, made, new)


def fold_normalizations(model: ir.Model) -> None:
    """Multiply batch normalizations into the scales of the convolutions before them, in place.

    A convolution whose result is rounded next, with at most a ReLU between, is then one kernel of
    integers in ONNX Runtime. Codes change their sign where a channel's factor is negative; what has
    no code of the other sign, or a factor too small for a scale, stays as it is.
    """
    graph = model.graph
    for norm in list(graph):
        if norm.op_type != "BatchNormalization" or len(norm.outputs) != 1:
            continue
        conv = norm.inputs[0].producer() if norm.inputs[0] is not None else None
        if conv is None or conv.op_type != "Conv" or len(list(conv.outputs[0].uses())) != 1:
            continue
        weight = conv.inputs[1].producer() if conv.inputs[1] is not None else None
        if weight is None or weight.op_type != "DequantizeLinear":
            continue
        if len(list(weight.outputs[0].uses())) != 1 or conv.outputs[0].is_graph_output():
            continue
        numbers = [constant_of(value) for value in norm.inputs[1:]]
        bias = constant_of(conv.inputs[2]) if len(conv.inputs) > 2 else np.float32(0)
        if bias is None or any(each is None for each in numbers):
            continue
        gain, shift, mean, variance = (np.asarray(each, np.float64) for each in numbers)
        factor = gain / np.sqrt(variance + norm.attributes.get_float("epsilon", 1e-5))
        arrays = _multiplied(weight, factor)
        if arrays is None:
            continue
        output = norm.outputs[0]
        whole = ((bias - mean) * factor + shift).astype(np.float32)
        inputs = [
            add_initializer(graph, f"{output.name}.{part}", array) for part, array in arrays.items()
        ]
        dequantize = ir.node("DequantizeLinear", inputs, {"axis": 0})
        made = ir.node(
            "Conv",
            [
                conv.inputs[0],
                dequantize.outputs[0],
                add_initializer(graph, f"{output.name}.bias", whole),
            ],
            dict(conv.attributes),
        )
        for each in (dequantize, made):
            each.name = f"{output.name}.{each.op_type}"
        dequantize.outputs[0].name = f"{output.name}.weight"
        dequantize.outputs[0].shape = weight.outputs[0].shape
        dequantize.outputs[0].type = weight.outputs[0].type
        _put(graph, norm, [dequantize, made], made.outputs[0])


def _multiplied(node: ir.Node, factor: Array) -> dict[str, Array] | None:
    """Return a DequantizeLinear's arrays, of a weight whose rows are multiplied, if it has them."""
    given = [constant_of(value) for value in node.inputs]
    codes, scale, zero = (*given, None, None)[:3]
    if codes is None or scale is None or (len(given) > 2 and zero is None):
        return None
    if codes.dtype not in (np.dtype(np.int8), np.dtype(np.uint8)):
        return None  # fewer bits are no integers of a kernel, and would only be copied
    axis = node.attributes.get_int("axis", 1)
    if scale.ndim > 1 or (scale.size > 1 and axis != 0):
        return None
    rows = factor.shape[0]
    scale = np.broadcast_to(scale.reshape(-1), (rows,)) * np.abs(factor)
    least = np.finfo(np.float32).tiny
    if codes.shape[0] != rows or not bool((np.isfinite(scale) & (scale >= least)).all()):
        return None
    zeros = None if zero is None else np.broadcast_to(zero.reshape(-1), (rows,))
    whole = codes.astype(np.int16)
    negative = (factor < 0).reshape(-1, *(1,) * (codes.ndim - 1))
    middle: Any = 0 if zeros is None else zeros.astype(np.int16).reshape(negative.shape)
    whole = np.where(negative, 2 * middle - whole, whole)
    limits = np.iinfo(codes.dtype)
    if whole.min() < limits.min or whole.max() > limits.max:
        return None
    arrays = {"codes": whole.astype(codes.dtype), "scale": scale.astype(np.float32)}
    if zeros is not None:
        arrays["zero_point"] = zeros
    return arrays


def _is_dequantized(value: ir.Value | None) -> bool:
    """Tell whether a value comes from a grid."""
    node = None if value is None else value.producer()
    return node is not None and node.op_type == "DequantizeLinear"


def _put(graph: ir.Graph, node: ir.Node, made: list[ir.Node], new: ir.Value) -> None:
    """Put nodes in the place of another, their last output under its name."""
    old = node.outputs[0]
    name = old.name
    new.shape, new.type = old.shape, old.type
    graph.insert_before(node, made)
    ir.convenience.replace_all_uses_with(old, new, replace_graph_outputs=True)
    old.name, new.name = None, name
    graph.remove(node, safe=True)
