"""Check that packed weights keep what they promise of their codes, and compute what they are."""

from __future__ import annotations

import pickle

import torch

from zoopress.models.agreement import ROWS, disagreement, wrong_rows
from zoopress.models.model import Model
from zoopress.models.packed_call import packed_linear
from zoopress.models.packing import PackedWeight, packed_weights, tensor_in
from zoopress.models.weights import as_matrix

_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def wrong_codes(model: Model) -> str | None:
    """Return what is wrong with the codes of a model's packed weights, None if nothing is."""
    for name, packed in packed_weights(model.module).items():
        try:
            problem = _wrong_of(packed)
        except ValueError as error:
            problem = str(error)
        if problem is not None:
            return f"the packed weight {name!r} ({type(packed).__name__}): {problem}"
    return None


def wrong_products(model: Model) -> str | None:
    """Return which products with a model's packed weights are wrong, None if none is.

    Each is compared with its dense weight, on ordinary inputs and on large ones that nearly cancel
    out, as a copy that went through pickle, and cast to other types.
    """
    for name, packed in packed_weights(model.module).items():
        problem = _wrong_product(packed)
        if problem is not None:
            return f"the packed weight {name!r} ({type(packed).__name__}): {problem}."
    return None


def _wrong_product(packed: PackedWeight) -> str | None:
    copy: PackedWeight = pickle.loads(pickle.dumps(packed))
    if not torch.equal(copy.dense(), packed.dense()):
        return "a copy that went through pickle is another weight"
    for dtype in _DTYPES:
        copy.to(dtype)
        if copy.value().dtype != dtype or not torch.equal(copy.dense(), packed.dense()):
            return f"cast to {dtype}, it is another weight. Keep `_apply` of PackedWeight"
        problem = (
            _wrong_matrix(copy) if packed.output_axis == 0 and len(packed.shape) == 2 else None
        )
        if problem is not None:
            return problem
    return None


def _wrong_matrix(packed: PackedWeight) -> str | None:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(max(ROWS), packed.shape[1], generator=generator)
    bias = torch.randn(packed.shape[0], generator=generator)
    for given in (inputs, 1000 + inputs):
        problem = disagreement(packed, given, bias, _DTYPES)
        if problem is not None:
            return problem
    bias.requires_grad_()
    product = packed_linear(packed, inputs, bias)
    if not product.requires_grad:
        return "`linear` adds the bias by an operation that has no derivative"
    return wrong_rows(packed)


def _wrong_of(packed: PackedWeight) -> str | None:
    matrix = as_matrix(packed.dense(), packed.output_axis)
    for buffer, codes in packed.integers().items():
        if codes.values.is_floating_point() or codes.values.ndim != 2:
            return (
                f"`integers` gives {codes.values.dtype} of shape {tuple(codes.values.shape)} for "
                f"{buffer!r}, not integers [rows, columns]"
            )
        again = packed.pack_integers(buffer, codes.values)
        if not torch.equal(again, tensor_in(packed, buffer)):
            return (
                f"{buffer!r} is not what its integers are packed to. In `code_layouts`, `pack` and "
                "`unpack` must be inverse to each other, and what fills up a row or a byte zero"
            )
        zeros = codes.zeros()
        if zeros.numel() == matrix.numel() and bool(matrix.reshape(zeros.shape)[zeros].any()):
            return (
                f"a code that `code_layouts` calls that of zero stands for another value in "
                f"{buffer!r}. Give the right `fill`, or None if no code is zero"
            )
    return None
