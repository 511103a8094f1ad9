"""Which tensors of a model can be given other values, and which values fit them."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from zoopress.errors import StageError, nearest
from zoopress.models.edits import submodule, tensor_of
from zoopress.models.packing import PackedWeight
from zoopress.models.weights import Weight


def settable(module: nn.Module, target: Weight | str) -> tuple[str, Tensor]:
    """Find a tensor whose values may be set.

    Args:
        module: the model.
        target: a weight, or a tensor's full name.

    Returns:
        The first of its names, and the tensor itself.

    Raises:
        StageError: if it cannot be set, saying what can.
    """
    name = target if isinstance(target, str) else target.name
    path, _, attribute = name.rpartition(".")
    try:
        owner = submodule(module, path)
        tensor = tensor_of(owner, attribute)
    except ValueError:
        _refuse_packed(module, name)
        known = {each for each, _ in _tensors(module)}
        raise StageError(f"The model has no tensor {name!r}.{nearest(name, known)}") from None
    _refuse_packed(module, name)
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
    if isinstance(target, Weight):
        return name, tensor
    return next(each for each, other in _tensors(module) if other is tensor), tensor


def _refuse_packed(module: nn.Module, name: str) -> None:
    for depth in range(1, name.count(".") + 2):
        path = ".".join(name.split(".")[:depth])
        try:
            packed = isinstance(submodule(module, path), PackedWeight)
        except ValueError:
            return
        if packed:
            raise StageError(
                f"{name}: the weight is packed, and its codes cannot be set. Set values before "
                "the stage that packs it, or train its scales with 'packed: tune'."
            )


def _tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield every tensor with its full name, tied ones each time."""
    for path, owner in module.named_modules(remove_duplicate=False):
        for name, tensor in (*owner._parameters.items(), *owner._buffers.items()):
            if tensor is not None:
                yield f"{path}.{name}" if path else name, tensor


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
