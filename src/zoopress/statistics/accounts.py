"""What is known of each weight while a model runs, and after."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from zoopress.errors import StageError
from zoopress.statistics.layout import Watched
from zoopress.statistics.products import Use
from zoopress.statistics.statistic import Need, Seen, Sizes, State, Statistic


@dataclass
class PartAccount:
    """One way in which a weight is read: some of its numbers, in one product.

    Attributes:
        inputs: [groups or 1, k], see `Use`.
        outputs: [groups or 1, n].
        rows: how many rows it multiplied, in each group.
        tokens: [k], int64, how often each row was looked up; None if it is no look-up.
        states: of each statistic.
    """

    inputs: Tensor
    outputs: Tensor
    rows: int = 0
    tokens: Tensor | None = None
    states: dict[int, State] = field(default_factory=dict)


@dataclass
class Account:
    """One weight, and what several statistics add up of it.

    Attributes:
        watched: the weight.
        statistics: which; states are found by their positions.
        parts: the ways in which it is read.
        whole: states of its gradients.
        samples: how many reached it, of those that gradients were taken of.
        readers: operators that read it and are no product.
        refused: why a statistic is not defined for it, by position.
    """

    watched: Watched
    statistics: Sequence[Statistic]
    parts: list[PartAccount] = field(default_factory=list)
    whole: dict[int, State] = field(default_factory=dict)
    samples: int = 0
    readers: set[str] = field(default_factory=set)
    refused: dict[int, str] = field(default_factory=dict)
    _index: dict[tuple[bytes, bytes], PartAccount] = field(default_factory=dict)

    def part(self, use: Use) -> PartAccount:
        """Return the account of the way in which a product reads the weight."""
        key = (_bytes(use.inputs), _bytes(use.outputs))
        if key not in self._index:
            part = PartAccount(use.inputs, use.outputs)
            groups = max(len(use.inputs), len(use.outputs))
            sizes = Sizes(groups, use.inputs.shape[1], use.outputs.shape[1], use.result.device)
            # Those made in inference mode could not be added to outside of it.
            with torch.inference_mode(False):
                for position, statistic in enumerate(self.statistics):
                    if "gradients" not in statistic.needs:
                        part.states[position] = statistic.start(sizes)
            self._index[key] = part
            self.parts.append(part)
        return self._index[key]

    def take(self, use: Use) -> None:
        """Add what a product shows of inputs and outputs."""
        part = self.part(use)
        part.rows += use.rows
        if use.tokens is not None:
            counts = torch.bincount(use.tokens, minlength=use.inputs.shape[1]).cpu()
            part.tokens = counts if part.tokens is None else part.tokens + counts
        if not use.rows:
            return
        if self._needs("inputs"):
            if use.tokens is not None:
                self._update(part, "inputs", Seen(tokens=use.tokens))
            elif use.blocks is not None:
                for block in use.blocks():
                    self._update(part, "inputs", Seen(inputs=block))
        if self._needs("outputs"):
            self._update(part, "outputs", Seen(outputs=use.as_rows(use.result)))

    def take_output_gradient(
        self, part: PartAccount, rows: Tensor, positions: Sequence[int]
    ) -> None:
        """Add the gradient of what a product gave, for some of the statistics."""
        self._update(part, "output_gradients", Seen(output_gradients=rows), positions)

    def take_gradient(self, gradient: Tensor, positions: Sequence[int]) -> None:
        """Add the weight's gradient, as its matrix, for some of the statistics."""
        rows, columns = gradient.shape
        for position in positions:
            statistic = self.statistics[position]
            if "gradients" not in statistic.needs:
                continue
            if position not in self.whole:
                self.whole[position] = statistic.start(Sizes(1, columns, rows, gradient.device))
            statistic.update(self.whole[position], Seen(gradient=gradient))

    def _needs(self, need: Need) -> bool:
        return any(need in statistic.needs for statistic in self.statistics)

    def _update(
        self, part: PartAccount, need: Need, seen: Seen, positions: Sequence[int] | None = None
    ) -> None:
        for position, state in part.states.items():
            statistic = self.statistics[position]
            if need not in statistic.needs or (positions is not None and position not in positions):
                continue
            if seen.tokens is not None and not statistic.tokens:
                self.refused[position] = "its rows are looked up, and multiply nothing"
                continue
            try:
                statistic.update(state, seen)
            except ValueError as error:
                raise StageError(
                    f"{statistic.name} of {self.watched.name!r} cannot be measured: {error}."
                ) from error


def _bytes(tensor: Tensor) -> bytes:
    return tensor.contiguous().numpy().tobytes()
