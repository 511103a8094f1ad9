"""What a weight may become: codes of some bits or floats, in so many bytes, at so much damage."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from zoopress.coding.bits import pack_codes, packed_size
from zoopress_plugins.quantization.bit_allocation.knapsack import Numbers
from zoopress_plugins.quantization.forms.quantized import QuantizedWeight
from zoopress_plugins.quantization.packing_weights import Form
from zoopress_plugins.quantization.rate_distortion.packing import copy_of_structure
from zoopress_plugins.quantization.rounding.work import Grid, Work, measured_inputs
from zoopress_plugins.quantization.weight_quantization import AT_ONCE

if TYPE_CHECKING:
    from zoopress.models.model import Model
    from zoopress.models.weights import Weight
    from zoopress.techniques import Context
    from zoopress_plugins.quantization.mixed_precision import MixedPrecisionConfig


class Forms:
    """Makes the forms in which `weight_quantization` packs weights, by the same rounders."""

    def __init__(
        self,
        model: Model,
        weights: Sequence[Weight],
        config: MixedPrecisionConfig,
        context: Context,
    ) -> None:
        self._config, self._masks = config, model.masks
        rounder = config.rounding.make(context.plugins)
        # Measured once, before anything is packed.
        self._seen = measured_inputs(model, weights, context) if rounder.needs_inputs else {}
        self._works = {
            bits: Work(
                rounder,
                Grid(bits, config.group_size, config.symmetric, config.clipping == "mse"),
                config.keep_zeros,
                context.seed,
            )
            for bits in config.bits
        }
        self._last: dict[str, tuple[int, Form]] = {}

    def of(self, weight: Weight, bits: int) -> Form:
        """Return a weight's form; that of the last bits is kept, since most stay the same."""
        known = self._last.get(weight.name)
        if known is None or known[0] != bits:
            known = self._last[weight.name] = (bits, self._make(weight, bits))
        return known[1]

    def notes(self) -> dict[str, Any]:
        """Return what is worth reading of how weights were rounded."""
        notes: dict[str, Any] = {}
        for work in self._works.values():
            notes |= work.notes()
        return notes

    def _make(self, weight: Weight, bits: int) -> Form:
        codes, scale, zero_point = self._works[bits].codes(
            weight, self._masks.get(weight.name), self._seen.get(weight.name), AT_ONCE
        )
        tensors = {"codes": pack_codes(codes, bits), "scale": scale}
        if zero_point is not None:
            tensors["zero_point"] = zero_point
        arguments = {
            "bits": bits,
            "group_size": _group(weight.matrix(), self._config),
            "symmetric": self._config.symmetric,
        }
        return Form("quantized", arguments, tensors, bits)


def form_bytes(weight: Weight, bits: int, config: MixedPrecisionConfig) -> int:
    """Return what a form will take, without rounding anything."""
    matrix = weight.matrix()
    rows, columns = matrix.shape
    groups = -(-columns // _group(matrix, config))
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
        forms: makes those that are asked for.
    """

    model: Model
    weights: Sequence[Weight]
    config: MixedPrecisionConfig
    widths: Sequence[Sequence[int | None]]
    damages: Sequence[Numbers]
    forms: Forms

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

    def bits(self, options: Sequence[int]) -> dict[str, int | None]:
        """Return the bits that options give each weight, by name."""
        return {
            weight.name: widths[option]
            for weight, widths, option in zip(self.weights, self.widths, options, strict=True)
        }

    def candidate(self, bits: dict[str, int | None]) -> Model:
        """Return a model with these bits, that shares all other tensors with the model."""
        other = copy_of_structure(self.model)
        for weight in list(other.weights(self.config.kinds)):
            width = bits.get(weight.name)
            if width is not None:
                form = self.forms.of(weight, width)
                other.pack(weight, form.packing, form.arguments, form.tensors)
        return other
