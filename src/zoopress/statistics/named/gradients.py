"""Gradients of the loss, and curvature, of each number of a weight."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from zoopress.statistics.statistic import Counts, Objective, Seen, Sizes, State, Statistic


class _Squares(Statistic):
    needs = frozenset({"gradients"})

    def start(self, sizes: Sizes) -> State:
        shape = (sizes.outputs, sizes.inputs)
        return {"sums": torch.zeros(shape, device=sizes.device), **self._start_squares(sizes)}

    def _start_squares(self, sizes: Sizes) -> State:
        shape = (sizes.outputs, sizes.inputs)
        return {"squares": torch.zeros(shape, device=sizes.device)}

    def update(self, state: State, seen: Seen) -> None:
        if seen.gradient is not None:
            gradient = seen.gradient.float()
            if "sums" in state:
                state["sums"] += gradient
            if "squares" in state:
                state["squares"].addcmul_(gradient, gradient)


class Gradients(_Squares):
    """Mean gradient of a sample's loss, and mean of its square, the empirical Fisher information.

    "mean" and "mean_square", of the shape of the weight's matrix.

    Args:
        labels: "true": the task's loss against the labels. "own": what the model's own outputs
            tell, see `probes`. "auto": the first if the task has labels.
    """

    name = "gradients"

    def __init__(self, labels: Literal["auto", "true", "own"] = "auto") -> None:
        if labels not in ("auto", "true", "own"):
            raise ValueError(f"labels must be 'auto', 'true' or 'own', not {labels!r}")
        self.labels = labels

    def objective(self, labelled: bool) -> Objective:
        wanted = self.labels == "true" or (self.labels == "auto" and labelled)
        return "loss" if wanted else "own"

    def result(self, state: State, counts: Counts) -> dict[str, Tensor]:
        return {
            "mean": state["sums"] / counts.samples,
            "mean_square": state["squares"] / counts.samples,
        }


class DiagonalCurvature(_Squares):
    """Mean square of the gradient of a probe of the outputs: the diagonal of the Fisher matrix.

    "value", of the shape of the weight's matrix. For scores of classes it is the diagonal of the
    Gauss–Newton matrix of the Kullback–Leibler divergence, too; what is measured for other outputs
    stands at `probes.probe`.

    Args:
        probes: how many are drawn for each sample.

    Source: Martens 2014, arXiv:1412.1193, section 9.2.
    """

    name = "diagonal_curvature"

    def __init__(self, probes: int = 1) -> None:
        if probes < 1:
            raise ValueError(f"probes must be at least 1, not {probes}")
        self.probes = probes

    def start(self, sizes: Sizes) -> State:
        return self._start_squares(sizes)

    def result(self, state: State, counts: Counts) -> dict[str, Tensor]:
        return {"value": state["squares"] / (counts.samples * self.probes)}


class FirstTaylor(Gradients):
    """w · mean gradient: how much the loss falls, to first order, when a number becomes 0.

    "value", of the shape of the weight's matrix, with its sign. Arguments as for "gradients".

    Source: Molchanov et al. 2019, arXiv:1906.10771, eq. 5.
    """

    name = "first_taylor"

    def start(self, sizes: Sizes) -> State:
        return {"sums": super().start(sizes)["sums"]}

    def finish(self, state: State, weight: Tensor) -> None:
        state["sums"] *= weight

    def result(self, state: State, counts: Counts) -> dict[str, Tensor]:
        return {"value": state["sums"] / counts.samples}


class SecondTaylor(DiagonalCurvature):
    """½ w² · curvature: what it costs, to second order, when a number becomes 0.

    "value", of the shape of the weight's matrix. Arguments as for "diagonal_curvature".

    Source: LeCun, Denker & Solla 1989, Optimal brain damage, eq. 5.
    """

    name = "second_taylor"

    def finish(self, state: State, weight: Tensor) -> None:
        state["squares"] *= weight.float().square() / 2
