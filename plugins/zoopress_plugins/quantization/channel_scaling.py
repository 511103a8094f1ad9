"""AWQ: channels with strong inputs are scaled up in the weights that read them, down before.

A weight that is multiplied by s, rounded on about the same grid and divided by s errs by 1 / s of
what it would. So channels whose inputs are strong get larger weights, and the layer before, most
often a normalization, divides by as much: the same function. With strength x of a channel's
inputs, s = x^α for the α with which outputs err least after rounding to the nearest; α = 0 leaves
all as it is. The strength is the root of the mean square, as errors are squares here.

Source: Lin et al. 2023, arXiv:2306.00978, section 3.2, eq. 4 and 5.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from zoopress.errors import StageError
from zoopress.models.model import Model
from zoopress.models.reading import reading_axis
from zoopress.models.weights import Weight, as_matrix
from zoopress.statistics import Layer
from zoopress.techniques import Context
from zoopress.techniques.rounder import Matrix
from zoopress_plugins.quantization.activations.inputs import some_samples
from zoopress_plugins.quantization.activations.rescaling import (
    Link,
    find_links,
    outputs_of_run,
    reads_all_channels,
    scaled,
)
from zoopress_plugins.quantization.rounding.inputs import rows_of
from zoopress_plugins.quantization.rounding.output_error import output_error, start_of
from zoopress_plugins.quantization.rounding.uniform_grid import dequantized
from zoopress_plugins.quantization.rounding.work import Work, measured_inputs

_STEPS = 20
_ROWS = 256
"""Of a weight to search on, at most; every so many is taken of more."""
_FAINTEST = 1e-3
"""Of the mean strength: weaker channels count as so strong, so that scales stay moderate."""


@dataclass(frozen=True)
class Reader:
    """Rows of a matrix that read the channels of a link.

    Attributes:
        matrix: what is rounded, inputs known.
        channels: [in], which channel each column reads.
    """

    matrix: Matrix
    channels: Tensor

    def power(self, count: int) -> Tensor:
        """Return the mean square of each channel's inputs, [count]."""
        inputs = self.matrix.inputs
        assert inputs is not None
        alone = inputs.diagonal() if inputs.ndim == 2 else inputs
        return torch.zeros(count).index_add_(0, self.channels, alone.float())

    def cost(self, scale: Tensor) -> float:
        """Return what outputs err with channels scaled by so much: [channels]."""
        inputs = self.matrix.inputs
        assert inputs is not None
        by = scale[self.channels]
        weaker = inputs / (by[:, None] * by if inputs.ndim == 2 else by.square())
        larger = replace(self.matrix, values=self.matrix.values * by, inputs=weaker)
        error = larger.values - dequantized(start_of(larger), larger)
        return float(output_error(error, weaker).sum())


def searched_scale(readers: Sequence[Reader], count: int) -> Tensor:
    """Return by what channels are to be multiplied so that outputs err least: [count], positive.

    Args:
        readers: all that read the channels.
        count: how many there are.
    """
    strength = torch.stack([reader.power(count) for reader in readers]).mean(0).sqrt()
    strength = (strength / strength.mean()).clamp(min=_FAINTEST)
    best, least = torch.ones(count), sum(reader.cost(torch.ones(count)) for reader in readers)
    for step in range(1, _STEPS + 1):
        scale = strength.pow(step / _STEPS)
        scale = scale / (scale.max() * scale.min()).sqrt()
        cost = sum(reader.cost(scale) for reader in readers)
        if cost < least:
            best, least = scale, cost
    return best


def scale_channels(
    model: Model, weights: Sequence[Weight], context: Context, work: Work
) -> tuple[list[str], dict[str, Any]]:
    """Scale what weights read wherever that changes no output and lets them err less when rounded.

    Args:
        model: is changed.
        weights: that are about to be rounded.
        context: of the run.
        work: what they are going to be rounded with.

    Returns:
        Names of parameters with new values, and notes.

    Raises:
        StageError: if nothing can be scaled.
    """
    few = some_samples(context.batches(), 1)
    if not few:
        raise StageError(
            "There are no calibration inputs to scale channels by. Give the card "
            "'calibration_samples', or leave 'scaling' out."
        )
    context.progress("looking for channels that can be scaled")
    links, left = find_links(model, outputs_of_run(context, model, few[0]))
    reading = {link: _weights_of(model, link, weights) for link in links}
    reading = {link: those for link, those in reading.items() if those}
    if not reading:
        some = "; ".join(f"{name}: {reason}" for name, reason in list(left.items())[:2])
        raise StageError(
            f"No selected weight reads channels that can be scaled ({some or 'no layers read any'})"
            ". Leave 'scaling' out, or use 'rounding: gptq', which needs no other layer."
        )
    seen = measured_inputs(model, [one for those in reading.values() for one in those], context)
    touched: dict[str, None] = {}
    found: dict[str, list[str]] = {}
    for done, link in enumerate(reading):
        context.progress(f"scaling {link.source}", done / len(reading))
        readers = list(_readers(model, reading[link], seen, work))
        if not readers:
            left |= dict.fromkeys(link.readers, "no calibration input reached it")
            continue
        scale = searched_scale(readers, link.channels)
        if bool((scale == 1).all()):
            left |= dict.fromkeys(link.readers, "outputs err least with channels as they are")
            continue
        for name, values in scaled(model.module, link, scale).items():
            model.set_values(name, values)
            touched[name] = None
        found[link.source] = list(link.readers)
    return list(touched), {"scaled": found, **({"not_scaled": left} if left else {})}


def _weights_of(model: Model, link: Link, weights: Iterable[Weight]) -> list[Weight]:
    """Return the selected weights that read a link, but those with one channel a row.

    These have a scale for each row, and so for each channel, already.
    """
    parts = [model.module.get_submodule(path) for path in link.readers]
    those = {id(part._parameters["weight"]) for part in parts if reads_all_channels(part)}
    return [weight for weight in weights if id(weight.parameter) in those]


def _readers(
    model: Model, weights: Iterable[Weight], seen: Mapping[str, Layer | None], work: Work
) -> Iterable[Reader]:
    for weight in weights:
        whole = work.ready(work.matrix(weight, model.masks.get(weight.name)))
        channels = _channels(weight)
        for some in rows_of(weight, seen.get(weight.name)):
            if some.inputs is None or not bool(some.inputs.count_nonzero()):
                continue
            work.check_inputs(weight.name, some.inputs)
            rows = some.rows[:: -(-len(some.rows) // _ROWS)]
            part = replace(
                whole,
                values=whole.values[rows],
                keep=None if whole.keep is None else whole.keep[rows],
                inputs=some.inputs.float(),
            )
            yield Reader(part, channels)


def _channels(weight: Weight) -> Tensor:
    """Return which channel each column of a weight's matrix reads: [in]."""
    axis, shape = reading_axis(weight.module), weight.parameter.shape
    assert axis is not None
    index = torch.arange(shape[axis]).view([-1 if a == axis else 1 for a in range(len(shape))])
    return as_matrix(index.expand(shape), weight.output_axis)[0]
