"""Weights that stay integers in a program: dequantized by plain operations where they are used."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoopress.models.export_form import ExportForm
from zoopress.models.packed_call import flat_weights, ignore_assignment, keep_flat_weights
from zoopress.models.packing import PackedWeight, unpack
from zoopress.models.weights import from_matrix


class IntegerWeight(nn.Module):
    """A weight in its export form.

    Buffers:
        codes: [rows, columns].
        scale, zero_point: as `ExportForm` has them.
    """

    codes: Tensor
    scale: Tensor
    zero_point: Tensor | None

    def __init__(self, packed: PackedWeight, form: ExportForm) -> None:
        super().__init__()
        self.shape, self.dtype, self.output_axis = packed.shape, packed.dtype, packed.output_axis
        self.stands_for = packed.stands_for or packed.shape
        self.bits, self.axis, self.group_size = form.bits, form.axis, form.group_size
        self.register_buffer("codes", form.codes)
        self.register_buffer("scale", form.scale)
        self.register_buffer("zero_point", form.zero_point)

    @property
    def makes_rows(self) -> bool:
        """Whether rows of the weight can be made without the others."""
        return len(self.shape) == 2 and self.output_axis == 0 and self.stands_for == self.shape

    def forward(self) -> Tensor:
        """Return the weight in its own shape and type."""
        values = from_matrix(self.matrix().to(self.dtype), self.shape, self.output_axis)
        return values.reshape(self.stands_for)

    def matrix(self) -> Tensor:
        """Return the weight's matrix [rows, columns]."""
        form = ExportForm(
            self.codes, self.bits, self.scale, self.zero_point, self.axis, self.group_size
        )
        return form.matrix()

    def rows(self, indices: Tensor) -> Tensor:
        """Return the rows [..., columns] of the weight's matrix at `indices` [...]."""
        values = F.embedding(indices, self.codes).to(torch.float32)
        for each, combine in ((self.zero_point, torch.sub), (self.scale, torch.mul)):
            if each is not None:
                values = combine(values, self._of_rows(each, indices))
        return values.to(self.dtype)

    def _of_rows(self, each: Tensor, indices: Tensor) -> Tensor:
        """Return what broadcasts to looked-up rows of scales or zero points."""
        if self.axis != 0:
            return each.to(torch.float32)
        # Widened first: few runtimes repeat small integers.
        found = F.embedding(indices, each).to(torch.float32)  # [..., groups]
        if self.group_size is None:
            return found
        return found.repeat_interleave(self.group_size, -1)[..., : self.codes.shape[1]]


def use_integers(root: nn.Module, kind: type[IntegerWeight] = IntegerWeight) -> int:
    """Leave no packed weight below `root`, in place: those with an export form become integers.

    The others become dense. An embedding looks integers up, and makes weights of those alone.

    Args:
        root: the model.
        kind: what computes a weight from integers.

    Returns:
        How many weights are integers now, in each place that has one.
    """
    found: list[tuple[nn.Module, str, IntegerWeight]] = []
    made: dict[int, IntegerWeight] = {}
    for owner in root.modules():
        for name in getattr(type(owner), "_packed_names", ()):
            packed = owner._modules[name]
            assert isinstance(packed, PackedWeight)
            with torch.no_grad():
                form = packed.export_form()
            if form is not None:
                # Tied weights share their buffers, and go on to.
                key = next(packed.buffers()).data_ptr()
                found.append((owner, name, made.setdefault(key, kind(packed, form))))
    unpack(root, "all")
    for owner, name, integers in found:
        _hold(owner, name, integers)
    return len(found)


def _hold(owner: nn.Module, name: str, integers: IntegerWeight) -> None:
    """Compute a module's parameter from integers, which it keeps under another name.

    torch.export looks modules up by their names, so the weight's own must not be that of a module.
    """
    beside = f"{name}_integers"

    def compute(self: Any) -> Tensor:
        weight: Tensor = self._modules[beside]()
        return weight

    del owner._parameters[name]
    owner.add_module(beside, integers)
    base = type(owner)
    body: dict[str, Any] = {name: property(compute)}
    looks_up = getattr(base, "forward", None) is nn.Embedding.forward and name == "weight"
    if looks_up and owner.max_norm is None and integers.makes_rows:
        body["forward"] = lambda self, input: self._modules[beside].rows(input)
    elif isinstance(owner, nn.RNNBase):  # its list of weights would be of no use
        owner.__dict__.pop("_flat_weights", None)
        owner._flat_weight_refs = []
        body["_flat_weights"] = property(flat_weights, ignore_assignment)
        body["_update_flat_weights"] = keep_flat_weights
    owner.__class__ = type(f"Integer{base.__name__}", (base,), body)
