"""Curvature of a layer as a Kronecker product of its inputs' and outputs' sides."""

from __future__ import annotations

import torch
from torch import Tensor

from zoopress.statistics.named.second_moments import MOST_COLUMNS
from zoopress.statistics.statistic import Counts, Seen, Sizes, State, Statistic


class FactoredCurvature(Statistic):
    """Fisher matrix ≈ inputs ⊗ outputs: "inputs" [in, in], "outputs" [out, out].

    "inputs" is the mean of xxᵀ over all rows; "outputs" the sum of ggᵀ over the rows of a sample,
    where g is the gradient of a probe of the model's outputs with respect to the layer's, in the
    mean over samples. A side with more than `most_columns` numbers is its diagonal.

    Args:
        probes: how many are drawn for each sample.
        most_columns: up to how many numbers a side is a matrix.

    Source: Martens & Grosse 2015, arXiv:1503.05671, section 3; Grosse & Martens 2016,
        arXiv:1602.01407, theorem 1 (convolutions); Martens et al. 2018, Kronecker-factored
        curvature approximations for recurrent networks, section 3.
    """

    name = "factored_curvature"
    needs = frozenset({"inputs", "output_gradients"})
    per_weight = False

    def __init__(self, probes: int = 1, most_columns: int = MOST_COLUMNS) -> None:
        if probes < 1:
            raise ValueError(f"probes must be at least 1, not {probes}")
        self.probes, self.most_columns = probes, most_columns

    def start(self, sizes: Sizes) -> State:
        return {
            "inputs": self._side(sizes.groups, sizes.inputs, sizes.device),
            "outputs": self._side(sizes.groups, sizes.outputs, sizes.device),
        }

    def _side(self, groups: int, size: int, device: torch.device) -> Tensor:
        matrix = size <= self.most_columns
        shape = (groups, size, size) if matrix else (groups, size)
        return torch.zeros(shape, dtype=torch.float64, device=device)

    def update(self, state: State, seen: Seen) -> None:
        if seen.tokens is not None:
            counts = seen.counts(state["inputs"].shape[1])
            side = state["inputs"]
            (side.diagonal(dim1=1, dim2=2) if side.ndim == 3 else side).add_(counts)
        for name, values in (("inputs", seen.inputs), ("outputs", seen.output_gradients)):
            if values is not None:
                rows = values.float()
                matrix = state[name].ndim == 3
                state[name] += rows.mT @ rows if matrix else rows.square().sum(1)

    def result(self, state: State, counts: Counts) -> dict[str, Tensor]:
        return {
            "inputs": (state["inputs"] / counts.rows).float(),
            "outputs": (state["outputs"] / (counts.samples * self.probes)).float(),
        }
