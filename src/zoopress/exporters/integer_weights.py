"""Weights that stay integers in a program: dequantized by plain operations where they are used."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from zoopress.models.export_form import ExportForm
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

    def forward(self) -> Tensor:
        """Return the weight in its own shape and type."""
        form = ExportForm(
            self.codes, self.bits, self.scale, self.zero_point, self.axis, self.group_size
        )
        values = from_matrix(form.matrix().to(self.dtype), self.shape, self.output_axis)
        return values.reshape(self.stands_for)


def use_integers(root: nn.Module) -> int:
    """Leave no packed weight below `root`, in place: those with an export form become integers.

    The others become dense, and those of recurrent layers, which keep their weights in a list.

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
                form = None if isinstance(owner, nn.RNNBase) else packed.export_form()
            if form is not None:
                # Tied weights share their buffers, and go on to.
                key = next(packed.buffers()).data_ptr()
                found.append((owner, name, made.setdefault(key, IntegerWeight(packed, form))))
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
    owner.__class__ = type(f"Integer{base.__name__}", (base,), {name: property(compute)})
