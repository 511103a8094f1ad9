"""Which tensors of a model can be given other values, and which values fit them."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from zoopress.errors import StageError, nearest
from zoopress.models.edits import submodule, tensor_of
from zoopress.models.packing import packed_weights
from zoopress.models.weights import Weight


def settable(
    module: nn.Module, tensors: Mapping[str, Tensor], target: Weight | str
) -> tuple[str, Tensor]:
    """Find a tensor whose values may be set.

    Args:
        module: the model.
        tensors: all of its tensors by full name, tied ones under each.
        target: a weight, or a tensor's full name.

    Returns:
        The first of its names, and the tensor itself.

    Raises:
        StageError: if it cannot be set, saying what can.
    """
    name = target if isinstance(target, str) else target.name
    for packed in packed_weights(module):
        if name == packed or name.startswith(f"{packed}."):
            raise StageError(
                f"{name}: the weight is packed, and its codes cannot be set. Set values before "
                "the stage that packs it, or train its scales with 'packed: tune'."
            )
    if name not in tensors:
        raise StageError(f"The model has no tensor {name!r}.{nearest(name, tensors)}")
    owner, attribute = _place(module, name)
    tensor = tensor_of(owner, attribute)
    if isinstance(target, Weight) and target.parameter is not tensor:
        raise StageError(
            f"{name}: this weight was found before the model was changed, or in another model. "
            "Ask model.weights() anew."
        )
    if not tensor.is_floating_point():
        raise StageError(f"{name}: it holds {tensor.dtype}, and only floats can be set.")
    if attribute in owner._non_persistent_buffers_set:
        raise StageError(
            f"{name}: the model's code computes this buffer when it is built; it is no part of the "
            "state dict, and what is set there would be lost elsewhere."
        )
    return next(each for each in tensors if _same(module, each, tensor)), tensor


def check_values(name: str, tensor: Tensor, values: Tensor) -> None:
    """Check that values fit a tensor.

    Raises:
        StageError: saying what would.
    """
    if not isinstance(values, Tensor):
        raise StageError(f"{name}: values must be a tensor, not {type(values).__name__}.")
    if values.shape != tensor.shape:
        raise StageError(
            f"{name}: values must have the shape {tuple(tensor.shape)}, not {tuple(values.shape)}. "
            "A matrix [out, in] takes the weight's own shape by weight.from_matrix(matrix)."
        )
    if values.dtype != tensor.dtype:
        raise StageError(
            f"{name}: values must be {tensor.dtype}, not {values.dtype}. Round them on purpose: "
            f"values.to({tensor.dtype})."
        )
    bad = int((~torch.isfinite(values)).sum())
    if bad:
        raise StageError(
            f"{name}: {bad} of {values.numel()} values are NaN or infinite. Values of "
            f"{tensor.dtype} end at {torch.finfo(tensor.dtype).max:.4g}; look for a division by "
            "zero, or use milder settings."
        )


def _place(module: nn.Module, name: str) -> tuple[nn.Module, str]:
    path, _, attribute = name.rpartition(".")
    return submodule(module, path), attribute


def _same(module: nn.Module, name: str, tensor: Tensor) -> bool:
    return tensor_of(*_place(module, name)) is tensor
