"""Weights kept in packed form, and the modules that hold them.

A packed weight takes the place of a parameter: module `m` with a parameter `weight` becomes a
module of a subclass of its class whose `weight` is computed from packed tensors, stored under
`weight.codes`, `weight.scale` and so on. So any module works with a packed weight (recurrent,
attention, convolution, custom), and those that need no more than a product or a look-up (linear,
embedding) never build the dense weight where a kernel serves.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class CodeLayout:
    """How a uint8 buffer [rows, bytes] holds `per_row` integer codes of `bits` bits a row.

    `fill` is the code of the value zero: a number, or the name of the sibling buffer
    [rows, groups] that holds it for each group of `group` codes of a row.
    """

    bits: int
    per_row: int
    fill: int | str
    group: int


class PackedWeight(nn.Module, ABC):
    """A weight of a known shape, kept in packed form.

    A subclass allocates its buffers in `__init__` on torch's current default device (the meta
    device while an artifact is rebuilt) from the shape and plain arguments alone.
    """

    def __init__(self, shape: torch.Size, dtype: torch.dtype, output_axis: int) -> None:
        super().__init__()
        self.shape = shape
        self.dtype = dtype
        self.output_axis = output_axis

    @abstractmethod
    def dense(self) -> Tensor:
        """Return the weight in its own shape and type."""

    @property
    def kernel(self) -> str:
        """Name what computes with this weight on this machine."""
        return "dequantize"

    def code_layouts(self) -> dict[str, CodeLayout]:
        """Return which buffers hold bit-packed codes, so that storage can see the codes."""
        return {}

    def linear(self, input: Tensor, bias: Tensor | None) -> Tensor:
        """Compute input [..., in] times the weight [out, in] transposed, plus bias [out]."""
        return F.linear(input, self.dense(), bias)

    def embedding(self, indices: Tensor) -> Tensor:
        """Return the rows [..., columns] of the weight [rows, columns] at `indices` [...]."""
        return F.embedding(indices, self.dense())


def packed_weights(module: nn.Module) -> dict[str, PackedWeight]:
    """Return every packed weight below `module` by the name of the weight it stands for."""
    return {n: m for n, m in module.named_modules() if isinstance(m, PackedWeight)}


def hold_packed(module: nn.Module, attribute: str, packed: PackedWeight) -> None:
    """Replace the parameter `attribute` of `module` by a packed weight, in place.

    Raises:
        ValueError: if the parameter is missing or has another shape.
    """
    parameter = module._parameters.get(attribute)
    if parameter is None:
        raise ValueError(f"{type(module).__name__} has no parameter {attribute!r} to pack")
    if parameter.shape != packed.shape:
        shapes = f"{tuple(packed.shape)} for a parameter of shape {tuple(parameter.shape)}"
        raise ValueError(f"{attribute!r}: a packed weight of shape {shapes}")
    del module._parameters[attribute]
    if isinstance(module, nn.RNNBase):  # its caches of parameters would keep them alive
        module.__dict__.pop("_flat_weights", None)
        module.__dict__.pop("_flat_weight_refs", None)
    names = (*getattr(type(module), "_packed_names", ()), attribute)
    module.__class__ = _holding_class(getattr(type(module), "_unpacked_class", type(module)), names)
    # The class's property would refuse a normal assignment, and must win over the child module.
    module._modules[attribute] = packed


def unpack(root: nn.Module) -> None:
    """Turn every packed weight below `root` back into a dense parameter, in place.

    Takes as much memory as the original, and computes at its speed; useful for large batches where
    no kernel serves the packed weights.
    """
    dense: dict[int, nn.Parameter] = {}
    for module in root.modules():
        names = getattr(type(module), "_packed_names", ())
        if not names:
            continue
        parameters = {}
        for name in names:
            packed = module._modules.pop(name)
            assert isinstance(packed, PackedWeight)
            # Tied weights share their packed tensors, and so one dense weight.
            key = next(packed.buffers()).data_ptr()
            dense.setdefault(key, nn.Parameter(packed.dense(), requires_grad=False))
            parameters[name] = dense[key]
        module.__class__ = type(module)._unpacked_class
        if isinstance(module, nn.RNNBase):
            module._flat_weights = [getattr(module, n, None) for n in module._flat_weights_names]
        for name, parameter in parameters.items():
            setattr(module, name, parameter)


_CLASSES: dict[tuple[type, tuple[str, ...]], type] = {}


def _holding_class(base: type, names: tuple[str, ...]) -> type:
    """Return the subclass of `base` whose attributes `names` are computed from packed weights."""
    key = (base, tuple(sorted(names)))
    if key not in _CLASSES:
        body: dict[str, Any] = {
            "_packed_names": key[1],
            "_unpacked_class": base,
            **{name: property(_dense_attribute(name)) for name in names},
        }
        forward = getattr(base, "forward", None)
        if forward is nn.Linear.forward and "weight" in names:
            body["forward"] = _linear_forward
        elif forward is nn.Embedding.forward and "weight" in names:
            body["forward"] = _embedding_forward
        elif issubclass(base, nn.RNNBase):
            # nn.RNNBase caches its parameters in this list, which would keep them dense.
            body["_flat_weights"] = property(_flat_weights, _ignore_assignment)
        _CLASSES[key] = type(f"Packed{base.__name__}", (base,), body)
    return _CLASSES[key]


def _dense_attribute(name: str) -> Any:
    def get(self: nn.Module) -> Tensor:
        packed = self._modules[name]
        assert isinstance(packed, PackedWeight)
        return packed.dense()

    return get


def _linear_forward(self: Any, input: Tensor) -> Tensor:
    packed: PackedWeight = self._modules["weight"]
    return packed.linear(input, self.bias)


def _embedding_forward(self: Any, input: Tensor) -> Tensor:
    packed: PackedWeight = self._modules["weight"]
    if self.max_norm is not None:
        return F.embedding(input, packed.dense(), self.padding_idx, self.max_norm, self.norm_type)
    return packed.embedding(input)


def _flat_weights(self: Any) -> list[Tensor]:
    return [getattr(self, name) for name in self._flat_weights_names]


def _ignore_assignment(self: Any, value: list[Tensor]) -> None:
    return None
