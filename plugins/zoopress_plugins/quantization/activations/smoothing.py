"""By how much channels are scaled before they are rounded, by what layers err.

Source: Xiao et al. 2023, arXiv:2211.10438, eq. 4. The share that moves into weights is searched for
each layer, as Lin et al. 2023, arXiv:2306.00978, eq. 5, do for weights alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from zoopress.models.input_grid import InputGrid, input_axis
from zoopress.models.reading import multiplied, output_axis, reading_axis
from zoopress.models.weights import as_matrix, from_matrix
from zoopress.techniques.rounder import Matrix
from zoopress_plugins.quantization.activations.inputs import by_channel, inputs_told
from zoopress_plugins.quantization.activations.rescaling import changed, largest_of
from zoopress_plugins.quantization.rounding.uniform_grid import dequantized, nearest

_STRENGTHS = (0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
_BITS = 8
_KEPT = 1 << 20
"""Numbers of a layer's input that a search looks at, at most."""


@dataclass
class Observed:
    """What entered a layer.

    Attributes:
        largest: [channels], size.
        example: the first of what it was given, as it was given.
    """

    largest: Tensor
    example: Tensor


def observed(
    layers: Mapping[str, nn.Module],
    run: Callable[[Any], object],
    batches: Sequence[Any],
    told: Callable[[float], None],
) -> dict[str, Observed]:
    """Return what enters layers, of those that are called at all.

    Args:
        layers: by name.
        run: runs the model on a batch.
        batches: what to run it on.
        told: called with the part that is done.
    """
    found: dict[str, Observed] = {}

    def note(name: str, x: Tensor) -> None:
        axis = input_axis(layers[name])
        assert axis is not None
        sizes = by_channel(x.float().abs().nan_to_num(0.0, 0.0, 0.0), axis).amax(1)
        if name in found:
            found[name].largest = torch.maximum(found[name].largest, sizes)
        else:
            some = max(1, _KEPT // max(1, x[:1].numel())) if x.ndim > 1 else 1
            found[name] = Observed(sizes, x[:some].clone())

    with inputs_told(layers, note):
        for done, batch in enumerate(batches, start=1):
            run(batch)
            told(done / len(batches))
    return found


def smoothing_scale(activations: Tensor, weights: Tensor, strength: float) -> Tensor:
    """Return by what each channel of activations is to be divided.

    Args:
        activations: [channels], largest size of each.
        weights: [channels], largest size of the weights that read it.
        strength: 0 leaves activations alone, 1 makes all channels equally large.

    Returns:
        [channels], positive; 1 for a channel without activations or weights.

    Source: Xiao et al. 2023, arXiv:2211.10438, eq. 4.
    """
    scale = activations.double().pow(strength) / weights.double().pow(1 - strength)
    usable = scale.isfinite() & (activations > 0) & (weights > 0)
    return torch.where(usable, scale, 1.0).clamp(1e-4, 1e4).float()


def chosen_scale(
    layers: Sequence[nn.Module], seen: Observed, strength: float | None
) -> tuple[float, Tensor]:
    """Return the strength of smoothing for layers that read one tensor, and its scale.

    Args:
        layers: with plain weights.
        seen: what enters them.
        strength: None to search for that with which they err least in 8 bits; 0 is none at all.

    Returns:
        The strength and the scale, [channels], by which inputs are to be divided.
    """
    weights = torch.stack([largest_of(layer, "", reading=True) for layer in layers]).amax(0)
    activations = seen.largest.to(weights.device)
    if strength is not None:
        return strength, smoothing_scale(activations, weights, strength)
    wanted = [_output(layer, seen.example, None) for layer in layers]
    best, least = (0.0, torch.ones_like(weights)), float("inf")
    for each in (0.0, *_STRENGTHS):
        scale = (
            torch.ones_like(weights) if not each else smoothing_scale(activations, weights, each)
        )
        error = sum(
            float((_output(layer, seen.example, scale) - before).square().sum())
            / max(float(before.square().sum()), 1e-30)
            for layer, before in zip(layers, wanted, strict=True)
        )
        if error < least:
            best, least = (each, scale), error
    return best


def _output(layer: nn.Module, x: Tensor, scale: Tensor | None) -> Tensor:
    """Return what a layer gives, with input and weight scaled and rounded if there is a scale."""
    with torch.no_grad():
        if scale is None:
            plain: Tensor = layer.forward(x)
            return plain.float()
        axis, channels = reading_axis(layer), input_axis(layer)
        assert axis is not None
        assert channels is not None
        large = multiplied(layer.get_parameter("weight"), axis, scale)
        rows = as_matrix(large, output_axis(layer)).float()
        matrix = Matrix("", rows, _BITS, rows.shape[1], symmetric=True, clipping=False)
        rounded = dequantized(nearest(matrix), matrix)
        weight = from_matrix(rounded, large.shape, output_axis(layer))
        small = x / scale.to(x).view(-1, *(1,) * (-1 - channels))
        grid = InputGrid(_BITS, symmetric=False, per="tensor", dynamic=True)
        with changed(layer, {"weight": weight}):
            result: Tensor = layer.forward(grid(small))
        return result.float()
