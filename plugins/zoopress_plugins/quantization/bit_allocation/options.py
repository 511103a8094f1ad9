"""What a weight may become: codes of some bits or floats, in so many bytes, at so much damage."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from zoopress.coding.bits import pack_codes, packed_size
from zoopress_plugins.quantization.bit_allocation.knapsack import Choice, Numbers
from zoopress_plugins.quantization.forms.quantized import QuantizedWeight
from zoopress_plugins.quantization.packing_weights import Form
from zoopress_plugins.quantization.rate_distortion.packing import copy_of_structure
from zoopress_plugins.quantization.weight_quantization import quantize

if TYPE_CHECKING:
    from zoopress.models.model import Model
    from zoopress.models.weights import Weight
    from zoopress_plugins.quantization.mixed_precision import MixedPrecisionConfig

FLOAT = "float"


def quantized_form(weight: Weight, bits: int, config: MixedPrecisionConfig) -> Form:
    """Return a weight in the form in which `weight_quantization` packs it."""
    matrix = weight.matrix()
    codes, scale, zero_point = quantize(
        matrix, bits, config.group_size, config.symmetric, config.clipping == "mse"
    )
    tensors = {"codes": pack_codes(codes, bits), "scale": scale}
    if zero_point is not None:
        tensors["zero_point"] = zero_point
    arguments = {
        "bits": bits,
        "group_size": _group(matrix, config),
        "symmetric": config.symmetric,
    }
    return Form("quantized", arguments, tensors, bits)


def form_bytes(weight: Weight, bits: int, config: MixedPrecisionConfig) -> int:
    """Return what `quantized_form` will take, without rounding anything."""
    rows, columns = weight.matrix().shape
    groups = -(-columns // _group(weight.matrix(), config))
    return int(rows * (packed_size(columns, bits) + groups * (2 if config.symmetric else 3)))


def dense_form(weight: Weight, form: Form) -> Tensor:
    """Return what a form stands for, in the parameter's own shape, type and place."""
    matrix = weight.matrix()
    packed = QuantizedWeight(matrix.shape, matrix.dtype, 0, **form.arguments)  # type: ignore[arg-type]
    for name, tensor in form.tensors.items():
        packed._buffers[name] = tensor
    with torch.no_grad():
        return weight.from_matrix(packed.dense()).to(weight.parameter)


def _group(matrix: Tensor, config: MixedPrecisionConfig) -> int:
    columns = matrix.shape[1]
    return min(config.group_size or columns, columns)


def widths_of(weight: Weight, config: MixedPrecisionConfig) -> list[int | None]:
    """Return the bits that a weight may get, None for staying in floating point.

    Bits that would take as many bytes as the floats are none of them.
    """
    smaller = [
        bits for bits in config.bits if form_bytes(weight, bits, config) < weight.parameter.nbytes
    ]
    return [*smaller, None] if config.floats or not smaller else [*smaller]


@dataclass
class Allocation:
    """Weights with their options: makes candidates of what the solver chooses.

    Attributes:
        model: stays as it is.
        weights: of it.
        config: of the technique.
        widths: of each weight, those that `widths_of` gives.
        damages: of each weight [widths].
    """

    model: Model
    weights: Sequence[Weight]
    config: MixedPrecisionConfig
    widths: Sequence[Sequence[int | None]]
    damages: Sequence[Numbers]
    _forms: dict[str, tuple[int, Form]] = field(default_factory=dict)

    def bytes(self) -> list[Numbers]:
        """Return the bytes that each weight takes [widths]."""
        return [
            np.array(
                [
                    weight.parameter.nbytes if b is None else form_bytes(weight, b, self.config)
                    for b in widths
                ],
                dtype=np.float64,
            )
            for weight, widths in zip(self.weights, self.widths, strict=True)
        ]

    def bits(self, choice: Choice) -> dict[str, int | None]:
        """Return the bits that a choice gives each weight, by name."""
        return {
            weight.name: widths[option]
            for weight, widths, option in zip(
                self.weights, self.widths, choice.options, strict=True
            )
        }

    def form(self, weight: Weight, bits: int) -> Form:
        """Return a weight's form; that of the last candidate is kept, since most stay the same."""
        known = self._forms.get(weight.name)
        if known is None or known[0] != bits:
            known = self._forms[weight.name] = (bits, quantized_form(weight, bits, self.config))
        return known[1]

    def candidate(self, bits: dict[str, int | None]) -> Model:
        """Return a model with these bits, that shares all other tensors with the model."""
        other = copy_of_structure(self.model)
        for weight in list(other.weights(self.config.kinds)):
            width = bits.get(weight.name)
            if width is not None:
                form = self.form(weight, width)
                other.pack(weight, form.packing, form.arguments, form.tensors)
        return other
