"""Check that packed weights keep what they promise of their codes."""

from __future__ import annotations

import torch

from zoopress.models.model import Model
from zoopress.models.packing import PackedWeight, packed_weights, tensor_in
from zoopress.models.weights import as_matrix


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
