"""Quantize all weights of a model at one slope, and pack them."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from zoopress.models.edits import Argument
from zoopress.models.fitness import unfit_for_few_bits
from zoopress.models.model import Model
from zoopress.models.weights import Weight, as_matrix
from zoopress_plugins.quantization.rate_distortion.sensitivity import Sensitivity
from zoopress_plugins.quantization.rate_distortion.solver import Grid, Settings, quantize_matrix

PACKING = "grid"
_OVERHEAD_BITS = 8 * 24
"""What it takes to say that a weight is packed: names, shapes and an edit."""
_CODED = 0.85
"""Of a float's bits, that it takes where its bytes are coded without loss."""
_INT8 = torch.iinfo(torch.int8)


@dataclass(frozen=True)
class Packing:
    """What takes the place of a weight; see `GridWeight`.

    Attributes:
        arguments: of the packed weight.
        tensors: its buffers.
        bits: that they take when they are coded, by estimate.
    """

    arguments: Mapping[str, Argument]
    tensors: Mapping[str, Tensor]
    bits: float


def bits_per_weight(packings: Sequence[Packing | None]) -> float:
    """Return how many bits each number takes that is packed, steps included, by estimate."""
    packed = [packing for packing in packings if packing is not None]
    return sum(p.bits for p in packed) / max(1, sum(p.tensors["codes"].numel() for p in packed))


def packing_of(grid: Grid) -> Packing:
    """Return a grid in the form in which it is stored."""
    codes = grid.codes
    small = _INT8.min <= int(codes.min()) and int(codes.max()) <= _INT8.max
    steps, tensors = _stored_steps(grid.row_step, grid.column_step)
    return Packing(
        {"bits": 8 if small else 16, "steps": steps, "scan": grid.scan, "trellis": grid.trellis},
        {"codes": codes.to(torch.int8) if small else codes, **tensors},
        grid.bits,
    )


def _stored_steps(row: Tensor | None, column: Tensor | None) -> tuple[str, dict[str, Tensor]]:
    """Return what has a step, and the buffers of steps; one that all share is stored once."""
    present = {"row_step": row, "column_step": column}
    tensors = {name: step.bfloat16() for name, step in present.items() if step is not None}
    if all(bool((step == step[0]).all()) for step in tensors.values()):
        shared = torch.tensor([math.prod(float(step[0]) for step in tensors.values())])
        if torch.equal(shared, shared.bfloat16().float()):
            return "tensor", {"row_step": shared.bfloat16()}
    return "both" if len(tensors) == 2 else next(iter(tensors)).removesuffix("_step"), tensors


def quantize_weights(
    weights: Sequence[Weight],
    masks: Mapping[str, Tensor],
    sensitivities: Mapping[str, Sensitivity],
    settings: Settings,
    slope: float,
    progress: Callable[[str, float], None] = lambda name, fraction: None,
) -> list[Packing | None]:
    """Quantize every weight at the same slope, which shares bits among them as well as can be.

    Args:
        weights: what to quantize.
        masks: bool, of the shape of the weight of that name, True where it is kept.
        sensitivities: by name; a weight without one counts each of its numbers alike.
        settings: how.
        slope: the distortion that a bit is worth.
        progress: is told each weight's name, and the share that is done.

    Returns:
        For each weight its packing, or None where it takes as many bits as it is, as a bias of a
        few numbers may, or steps cannot stand for its values.
    """

    def quantize(weight: Weight) -> Packing | None:
        if unfit_for_few_bits(weight) is not None:
            return None
        mask = masks.get(weight.name)
        keep = None if mask is None else as_matrix(mask, weight.output_axis)
        matrix = weight.matrix().float()
        grid = quantize_matrix(matrix, sensitivities.get(weight.name), settings, slope, keep)
        smaller = grid.bits + _OVERHEAD_BITS < _CODED * 8 * weight.parameter.nbytes
        return packing_of(grid) if smaller else None

    packings = []
    # One weight a thread: so sums, and what follows from them, are the same on any machine.
    workers = torch.get_num_threads()
    with _one_thread_each(), ThreadPoolExecutor(workers) as pool:
        results = pool.map(quantize, weights)
        for done, (weight, packing) in enumerate(zip(weights, results, strict=True), start=1):
            packings.append(packing)
            progress(weight.name, done / len(weights))
    return packings


@contextmanager
def _one_thread_each() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def pack(model: Model, weights: Sequence[Weight], packings: Sequence[Packing | None]) -> list[str]:
    """Pack weights of a model and return the names of those that were."""
    packed = []
    for weight, packing in zip(weights, packings, strict=True):
        if packing is not None:
            model.pack(weight, PACKING, packing.arguments, packing.tensors)
            packed.append(weight.name)
    model.storage = "zpz"
    return packed


def packed_copy(
    model: Model,
    select: Callable[[Model], Sequence[Weight]],
    packings: Sequence[Packing | None],
) -> Model:
    """Return a model with packed weights; all other tensors are shared with `model`."""
    other = copy_of_structure(model)
    pack(other, select(other), packings)
    return other


def copy_of_structure(model: Model) -> Model:
    """Return a model of its own that shares all tensors with another."""
    tensors = (*model.module.parameters(), *model.module.buffers())
    module = copy.deepcopy(model.module, {id(tensor): tensor for tensor in tensors})
    return replace(model, module=module, edits=list(model.edits), masks=dict(model.masks))


def starting_slope(
    weights: Sequence[Weight], sensitivities: Mapping[str, Sensitivity], bits: float
) -> float:
    """Return the slope at which weights should take about so many bits each.

    At a high rate a number of variance v that matters by s costs ½·log₂(s·v ÷ D) bits, where D is
    the distortion of all alike, and the slope is 2·ln 2 · D.

    Source: Cover and Thomas 2006, Elements of Information Theory, section 10.3.3.
    """
    total, count = 0.0, 0
    for weight in weights:
        matrix = weight.matrix().float()
        sensitivity = sensitivities.get(weight.name) or Sensitivity()
        energy = matrix.square()
        if sensitivity.rows is not None:
            energy = energy * sensitivity.rows[:, None]
        matters = energy.mean(0)
        if sensitivity.columns is not None:
            columns = sensitivity.columns
            matters = matters * (columns.diagonal() if columns.ndim == 2 else columns)
        matters = matters.double()
        matters = matters[matters > 0]
        total += float(matters.log2().sum()) * len(matrix)
        count += len(matters) * len(matrix)
    return 2 * math.log(2) * 2 ** (total / max(1, count) - 2 * bits)
