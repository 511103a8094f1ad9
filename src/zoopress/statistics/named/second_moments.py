"""Second moments of the inputs and outputs of a layer, and how alike its outputs are."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from zoopress.statistics.statistic import Counts, Seen, Sizes, State, Statistic

MOST_COLUMNS = 4096
"""Of layers with more inputs only the diagonal is kept, unless another limit is given."""


class InputSecondMoments(Statistic):
    """XᵀX / rows: [in, in]; of layers with more than `most_columns` inputs its diagonal, [in].

    Args:
        most_columns: up to how many inputs the matrix is kept; 0 keeps diagonals alone.
    """

    name = "input_second_moments"
    needs = frozenset({"inputs"})
    per_weight = False

    def __init__(self, most_columns: int = MOST_COLUMNS) -> None:
        self.most_columns = most_columns

    def start(self, sizes: Sizes) -> State:
        shape: tuple[int, ...] = (sizes.groups, sizes.inputs)
        if sizes.inputs <= self.most_columns:
            shape = (*shape, sizes.inputs)
        # Rows are added up in float64 piece by piece, the pieces are products in float32.
        return {"moments": torch.zeros(shape, dtype=torch.float64, device=sizes.device)}

    def update(self, state: State, seen: Seen) -> None:
        moments = state["moments"]
        if seen.tokens is not None:
            counts = seen.counts(moments.shape[1])
            if moments.ndim == 3:
                moments.diagonal(dim1=1, dim2=2).add_(counts)
            else:
                moments += counts
        elif seen.inputs is not None:
            values = seen.inputs.float()
            moments += values.mT @ values if moments.ndim == 3 else values.square().sum(1)

    def result(self, state: State, counts: Counts) -> dict[str, Tensor]:
        return {"value": (state["moments"] / counts.rows).float()}


class OutputSecondMoments(InputSecondMoments):
    """YᵀY / rows: [out, out], or its diagonal, as for inputs."""

    name = "output_second_moments"
    needs = frozenset({"outputs"})

    def start(self, sizes: Sizes) -> State:
        return super().start(sizes._replace(inputs=sizes.outputs))

    def update(self, state: State, seen: Seen) -> None:
        super().update(state, Seen(inputs=seen.outputs))


class UnitSimilarity(Statistic):
    """How alike the outputs of each two units are over all rows: [out, out], from −1 to 1.

    NaN between units of which one never differs from 0, or for "correlation" from its mean: nothing
    is known of their likeness.

    Args:
        measure: "cosine", or "correlation" (the cosine of what differs from the mean).
    """

    name = "unit_similarity"
    needs = frozenset({"outputs"})
    per_weight = False

    def __init__(self, measure: Literal["cosine", "correlation"] = "cosine") -> None:
        if measure not in ("cosine", "correlation"):
            raise ValueError(f"measure must be 'cosine' or 'correlation', not {measure!r}")
        self.measure = measure

    def start(self, sizes: Sizes) -> State:
        groups, units = sizes.groups, sizes.outputs
        return {
            "moments": torch.zeros(
                (groups, units, units), dtype=torch.float64, device=sizes.device
            ),
            "sums": torch.zeros((groups, units), dtype=torch.float64, device=sizes.device),
        }

    def update(self, state: State, seen: Seen) -> None:
        if seen.outputs is not None:
            values = seen.outputs.double()  # differences of large numbers follow
            state["moments"] += values.mT @ values
            state["sums"] += values.sum(1)

    def result(self, state: State, counts: Counts) -> dict[str, Tensor]:
        products = state["moments"]
        power = products.diagonal(dim1=1, dim2=2)
        if self.measure == "correlation":
            sums = state["sums"]
            products = products - sums[:, :, None] * sums[:, None, :] / counts.rows
        left = products.diagonal(dim1=1, dim2=2)
        # What rounding leaves of a unit that never moves is no variance.
        length = torch.where(left > 1e-12 * power, left, 0.0).sqrt()
        likeness = products / (length[:, :, None] * length[:, None, :])
        likeness = torch.where(likeness.isfinite(), likeness.clamp(-1, 1), torch.nan)
        return {"value": likeness.float()}
