"""Histograms of all inputs and outputs of a layer."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from zoopress.statistics.statistic import Counts, Seen, Sizes, State, Statistic


class InputHistogram(Statistic):
    """How many numbers of a layer's inputs fall into each bin: "counts" [bins], "edges" [bins + 1].

    Bins are equally wide, from −2^e to 2^e, where 2^e is the first power of two above all sizes. It
    grows with what is seen: two bins become one, so that counts are exact and in any order the
    same. A number on an edge falls into the bin above.

    Args:
        bins: how many, a multiple of 4.
    """

    name = "input_histogram"
    needs = frozenset({"inputs"})
    per_weight = False
    tokens = False

    def __init__(self, bins: int = 2048) -> None:
        if bins < 4 or bins % 4:
            raise ValueError(f"bins must be a multiple of 4 from 4 on, not {bins}")
        self.bins = bins

    def start(self, sizes: Sizes) -> State:
        counts = torch.zeros((1, self.bins), dtype=torch.float64, device=sizes.device)
        # The exponent is NaN until there is a number that is not 0.
        exponent = torch.full((1, 1), torch.nan, dtype=torch.float64, device=sizes.device)
        return {"counts": counts, "exponent": exponent}

    def update(self, state: State, seen: Seen) -> None:
        if seen.inputs is None or not seen.inputs.numel():
            return
        values = seen.inputs.flatten().double()
        largest = float(values.abs().max())
        if not math.isfinite(largest):
            raise ValueError("there are numbers that are NaN or infinite, which have no bin")
        before = float(state["exponent"])
        exponent = math.frexp(largest)[1] if largest else before
        if not math.isnan(before):
            exponent = max(exponent, before)
            for _ in range(min(int(exponent - before), 64)):
                self._widen(state["counts"])
        state["exponent"].fill_(exponent)
        width = 1.0 if math.isnan(exponent) else 2.0 ** (exponent + 1) / self.bins
        places = (values / width).floor().long() + self.bins // 2
        state["counts"] += torch.bincount(places, minlength=self.bins)

    def _widen(self, counts: Tensor) -> None:
        """Let bins be twice as wide: pairs become one, in the middle half."""
        pairs = counts.reshape(1, -1, 2).sum(2)
        quarter = self.bins // 4
        counts.zero_()
        counts[:, quarter : 3 * quarter] = pairs

    def result(self, state: State, counts: Counts) -> dict[str, Tensor]:
        exponent = float(state["exponent"])
        half = 1.0 if math.isnan(exponent) else 2.0**exponent
        edges = torch.linspace(-half, half, self.bins + 1, dtype=torch.float64)[None]
        return {"counts": state["counts"].long(), "edges": edges.to(state["counts"].device)}


class OutputHistogram(InputHistogram):
    """The same of a layer's outputs."""

    name = "output_histogram"
    needs = frozenset({"outputs"})
    tokens = True

    def update(self, state: State, seen: Seen) -> None:
        super().update(state, Seen(inputs=seen.outputs))
