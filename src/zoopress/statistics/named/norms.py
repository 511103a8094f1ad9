"""L2 norms of each input and output of a layer."""

from __future__ import annotations

import torch
from torch import Tensor

from zoopress.statistics.statistic import Counts, Seen, Sizes, State, Statistic


class InputNorms(Statistic):
    """L2 norm of each input over all rows: [in]; of a look-up the root of each token's count."""

    name = "input_norms"
    needs = frozenset({"inputs"})

    def start(self, sizes: Sizes) -> State:
        shape = (sizes.groups, sizes.inputs)
        return {"squares": torch.zeros(shape, dtype=torch.float64, device=sizes.device)}

    def update(self, state: State, seen: Seen) -> None:
        if seen.tokens is not None:
            state["squares"] += seen.counts(state["squares"].shape[1])
        elif seen.inputs is not None:
            state["squares"] += seen.inputs.double().square().sum(1)

    def result(self, state: State, counts: Counts) -> dict[str, Tensor]:
        return {"value": state["squares"].sqrt().float()}


class OutputNorms(InputNorms):
    """L2 norm of each output over all rows: [out]."""

    name = "output_norms"
    needs = frozenset({"outputs"})

    def start(self, sizes: Sizes) -> State:
        return super().start(sizes._replace(inputs=sizes.outputs))

    def update(self, state: State, seen: Seen) -> None:
        super().update(state, Seen(inputs=seen.outputs))
