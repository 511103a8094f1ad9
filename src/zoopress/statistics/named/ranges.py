"""Smallest and largest number of each input and output of a layer."""

from __future__ import annotations

import torch
from torch import Tensor

from zoopress.statistics.statistic import Counts, Seen, Sizes, State, Statistic


class InputRanges(Statistic):
    """Smallest and largest number of each input: "low" and "high", [in] each."""

    name = "input_ranges"
    needs = frozenset({"inputs"})
    merges = {"low": "low", "high": "high"}  # noqa: RUF012
    tokens = False

    def start(self, sizes: Sizes) -> State:
        shape = (sizes.groups, sizes.inputs)
        return {
            "low": torch.full(shape, torch.inf, device=sizes.device),
            "high": torch.full(shape, -torch.inf, device=sizes.device),
        }

    def update(self, state: State, seen: Seen) -> None:
        if seen.inputs is not None and seen.inputs.shape[1]:
            state["low"].copy_(torch.minimum(state["low"], seen.inputs.amin(1).float()))
            state["high"].copy_(torch.maximum(state["high"], seen.inputs.amax(1).float()))

    def result(self, state: State, counts: Counts) -> dict[str, Tensor]:
        return dict(state)


class OutputRanges(InputRanges):
    """Smallest and largest number of each output: "low" and "high", [out] each."""

    name = "output_ranges"
    needs = frozenset({"outputs"})
    tokens = True

    def start(self, sizes: Sizes) -> State:
        return super().start(sizes._replace(inputs=sizes.outputs))

    def update(self, state: State, seen: Seen) -> None:
        super().update(state, Seen(inputs=seen.outputs))
