"""Means and variances of each input and output of a layer."""

from __future__ import annotations

import torch
from torch import Tensor

from zoopress.statistics.statistic import Counts, Seen, Sizes, State, Statistic


class InputMeans(Statistic):
    """Mean of each input over all rows: [in]."""

    name = "input_means"
    needs = frozenset({"inputs"})

    def start(self, sizes: Sizes) -> State:
        shape = (sizes.groups, sizes.inputs)
        return {"sums": torch.zeros(shape, dtype=torch.float64, device=sizes.device)}

    def update(self, state: State, seen: Seen) -> None:
        if seen.tokens is not None:
            state["sums"] += seen.counts(state["sums"].shape[1])
        elif seen.inputs is not None:
            state["sums"] += seen.inputs.double().sum(1)

    def result(self, state: State, counts: Counts) -> dict[str, Tensor]:
        return {"value": (state["sums"] / counts.rows).float()}


class OutputMeans(InputMeans):
    """Mean of each output over all rows: [out]."""

    name = "output_means"
    needs = frozenset({"outputs"})

    def start(self, sizes: Sizes) -> State:
        return super().start(sizes._replace(inputs=sizes.outputs))

    def update(self, state: State, seen: Seen) -> None:
        super().update(state, Seen(inputs=seen.outputs))


class OutputVariances(Statistic):
    """Variance of each output over all rows, divided by their number: [out]."""

    name = "output_variances"
    needs = frozenset({"outputs"})

    def start(self, sizes: Sizes) -> State:
        zeros = torch.zeros((sizes.groups, sizes.outputs), dtype=torch.float64, device=sizes.device)
        return {"sums": zeros, "squares": zeros.clone()}

    def update(self, state: State, seen: Seen) -> None:
        if seen.outputs is not None:
            values = seen.outputs.double()
            state["sums"] += values.sum(1)
            state["squares"] += values.square().sum(1)

    def result(self, state: State, counts: Counts) -> dict[str, Tensor]:
        mean = state["sums"] / counts.rows
        return {"value": (state["squares"] / counts.rows - mean.square()).clamp(min=0).float()}
