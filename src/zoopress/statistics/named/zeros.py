"""How often each output of a layer is zero or below."""

from __future__ import annotations

import torch
from torch import Tensor

from zoopress.statistics.statistic import Counts, Seen, Sizes, State, Statistic


class OutputZeros(Statistic):
    """Share of rows in which an output is 0, and in which a ReLU makes it 0: [out] each.

    "zero" counts outputs that are 0, "not_positive" those that are at most 0. A unit with 1 there
    was seen, and never active: another thing than one that was never seen.
    """

    name = "output_zeros"
    needs = frozenset({"outputs"})

    def start(self, sizes: Sizes) -> State:
        zeros = torch.zeros((sizes.groups, sizes.outputs), dtype=torch.float64, device=sizes.device)
        return {"zero": zeros, "not_positive": zeros.clone()}

    def update(self, state: State, seen: Seen) -> None:
        if seen.outputs is not None:
            state["zero"] += (seen.outputs == 0).sum(1)
            state["not_positive"] += (seen.outputs <= 0).sum(1)

    def result(self, state: State, counts: Counts) -> dict[str, Tensor]:
        return {name: (number / counts.rows).float() for name, number in state.items()}
