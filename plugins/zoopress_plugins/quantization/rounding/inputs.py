"""Which inputs each row of a weight multiplies, whatever layer has it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from zoopress.models.weights import Weight, as_matrix
from zoopress.statistics import Layer

MOST_COLUMNS = 16_384
"""Of weights with more columns only the power of each input is known."""


@dataclass(frozen=True)
class Rows:
    """Rows of a weight's matrix that multiply the same inputs.

    Attributes:
        rows: [n], int64.
        inputs: the mean of x xᵀ, [in, in], or its diagonal [in], float32; zero between inputs that
            no product has together. None if no sample reached the rows.
    """

    rows: Tensor
    inputs: Tensor | None


def rows_of(weight: Weight, layer: Layer | None) -> Iterator[Rows]:
    """Yield the rows of a weight by what they multiply, each row once.

    Convolutions in groups, transposed ones, experts, fused projections and weights that are read in
    several places are all alike: a row's inputs are those of every product it is part of, added up.
    Where rows are looked up, as those of an embedding, they multiply nothing; each error then
    counts alike.

    Args:
        weight: which.
        layer: its measured `input_second_moments`; None if nothing of it was seen.
    """
    count, width = weight.matrix().shape
    places = as_matrix(
        torch.arange(weight.parameter.numel()).view(weight.parameter.shape), weight.output_axis
    )
    where = torch.empty(places.numel(), dtype=torch.int64)
    where[places.flatten()] = torch.arange(places.numel())
    products: list[tuple[Tensor, Tensor]] = []  # columns, and moments among these
    of_rows: dict[int, list[int]] = {row: [] for row in range(count)}
    looked_up = torch.zeros(count, dtype=torch.bool)
    for part in () if layer is None else layer.parts:
        if not part.rows:
            continue
        assert layer is not None
        groups = max(len(part.inputs), len(part.outputs))
        moments = layer.of_part(part)["value"] * part.rows
        if groups == 1:
            moments = moments[None]
        for group in range(groups):
            inputs = part.inputs[group if len(part.inputs) > 1 else 0]
            outputs = part.outputs[group if len(part.outputs) > 1 else 0]
            rows = where[inputs[0] + outputs] // width
            columns = where[inputs + outputs[0]] % width
            if part.tokens is not None:
                looked_up[where[inputs[part.tokens > 0] + outputs[0]] // width] = True
                continue
            products.append((columns, moments[group]))
            for row in rows.tolist():
                of_rows[row].append(len(products) - 1)
    classes: dict[tuple[int, ...], list[int]] = {}
    for row, those in of_rows.items():
        classes.setdefault(tuple(those), []).append(row)
    for which, members in classes.items():
        rows = torch.tensor(members)
        if which:
            yield Rows(rows, _joined([products[one] for one in which], width))
            continue
        seen = rows[looked_up[rows]]
        if len(seen):
            yield Rows(seen, torch.ones(width))
        if len(seen) < len(rows):
            yield Rows(rows[~looked_up[rows]], None)


def _joined(products: list[tuple[Tensor, Tensor]], width: int) -> Tensor:
    """Return what rows multiply in several products, in the order of their columns."""
    whole = all(moments.ndim == 2 for _, moments in products)
    total = torch.zeros(width, width) if whole else torch.zeros(width)
    for columns, moments in products:
        if whole:
            total[columns[:, None], columns] += moments.cpu()
        else:
            diagonal = moments.diagonal() if moments.ndim == 2 else moments
            total[columns] += diagonal.cpu()
    # Sizes do not matter to a rounder, and sums of many rows might leave float32.
    mean = total.diagonal().mean() if whole else total.mean()
    return total / mean if bool(mean > 0) else total
