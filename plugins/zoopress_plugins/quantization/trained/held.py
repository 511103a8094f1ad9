"""Quantizers in a model's layers while it trains, and what they leave behind."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from zoopress.models.input_grid import hold_input_grid
from zoopress.models.model import Model
from zoopress.models.packing import PackedWeight, hold_packed, release_packed
from zoopress.models.weights import LAST_IS_INPUT, Weight, from_matrix, row_count
from zoopress.training.constraints import Constraint
from zoopress_plugins.quantization.trained.quantizer import InputQuantizer, WeightQuantizer


class TrainedWeight(PackedWeight):
    """Stands in a weight's place while a quantizer trains; it is in no artifact.

    So any module computes with what is stored, recurrent ones and attention too.

    Args:
        weight: whose place it takes.
        trained: what rounds it.
    """

    def __init__(self, weight: Weight, trained: WeightQuantizer) -> None:
        shape, axis = weight.parameter.shape, weight.output_axis
        if axis == LAST_IS_INPUT:  # experts are a matrix of all their rows
            shape, axis = torch.Size((row_count(shape, axis), shape[-1])), 0
        super().__init__(shape, weight.parameter.dtype, axis)
        self.trained = trained

    @property
    def device(self) -> torch.device:
        """Where the shadow is."""
        return self.trained.shadow.device

    def dense(self) -> Tensor:
        """Return the rounded weight, with gradients."""
        return from_matrix(self.trained(), self.shape, self.output_axis).to(self.dtype)


class AfterSteps:
    """Lets quantizers change what a step of the optimizer has made; a `Constraint`.

    Args:
        quantizers: which.
        other: what is to hold as well.
    """

    def __init__(
        self, quantizers: Sequence[WeightQuantizer | InputQuantizer], other: Constraint | None
    ) -> None:
        self._quantizers, self._other = quantizers, other

    def before_step(self) -> None:
        """Do what the other does."""
        if self._other is not None:
            self._other.before_step()

    def after_step(self) -> None:
        """Ask each quantizer."""
        if self._other is not None:
            self._other.after_step()
        for quantizer in self._quantizers:
            quantizer.after_step()

    def tensors(self) -> dict[str, Tensor]:
        """Return what the other keeps: quantizers keep all in their parameters."""
        return {} if self._other is None else self._other.tensors()

    def reached(self) -> bool:
        """Return whether the other holds."""
        return self._other is None or self._other.reached()


@contextmanager
def held(
    model: Model,
    weights: Sequence[tuple[Weight, WeightQuantizer]],
    inputs: Mapping[str, InputQuantizer],
) -> Iterator[None]:
    """Let quantizers stand in the places of weights, and before layers.

    When the context is left, the weights are float parameters again, of the values that training
    computed with; the quantizers have what they have learned.

    Args:
        model: what is trained; no edit is recorded.
        weights: with what rounds each.
        inputs: by the layer's name.
    """
    module, undo = model.module, list[Callable[[], None]]()
    places = [
        (module.get_submodule(place.path), place.attribute, weight, quantizer)
        for weight, quantizer in weights
        for place in weight.locations
    ]
    stand_ins = {
        weight.name: TrainedWeight(weight, quantizer.to(weight.parameter.device))
        for weight, quantizer in weights
    }
    masked = {
        f"{weight.name}.trained.shadow": model.masks[weight.name]
        for weight in (weight for weight, _ in weights)
        if weight.name in model.masks
    }
    put: list[tuple[nn.Module, str, Weight]] = []
    try:
        for owner, attribute, weight, _ in places:
            hold_packed(owner, attribute, stand_ins[weight.name])
            put.append((owner, attribute, weight))
        for name, grid in inputs.items():
            undo.append(hold_input_grid(module.get_submodule(name), grid))
        model.masks |= masked
        yield
    finally:
        for name in masked:
            model.masks.pop(name, None)
        for take_back in undo:
            take_back()
        for weight, _ in weights:
            with torch.no_grad():
                value = stand_ins[weight.name].dense().view(weight.parameter.shape)
                weight.parameter.copy_(value)
        for owner, attribute, weight in put:
            release_packed(owner, attribute, weight.parameter)
