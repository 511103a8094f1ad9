"""How much a model suffers from grids on its layers' inputs, and which it suffers from most."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from zoopress.evaluation.sensitivity import outputs_distance
from zoopress.models.input_grid import InputGrid, hold_input_grid
from zoopress.tasks.batches import batch_length

Run = Callable[[Any], Sequence[Tensor]]


@contextmanager
def held(layers: Mapping[str, nn.Module], grids: Mapping[str, InputGrid]) -> Iterator[None]:
    """Let layers round their inputs for a while."""
    undoing = [hold_input_grid(layers[name], grid) for name, grid in grids.items()]
    try:
        yield
    finally:
        for undo in undoing:
            undo()


@dataclass
class Harm:
    """Measures how unlike a model's outputs are with grids on some of its layers' inputs.

    Harm is 1 − the mean cosine of the output that suffers most, with and without, as reports'
    sensitivities are.

    Attributes:
        layers: by name.
        grids: of their inputs, by the same names.
        run: runs the model on a batch, without gradients, and returns all outputs that count.
        batches: what to run it on.
    """

    layers: Mapping[str, nn.Module]
    grids: Mapping[str, InputGrid]
    run: Run
    batches: Sequence[Any]

    def __post_init__(self) -> None:
        self._before = [self.run(batch) for batch in self.batches]

    def of(self, names: Collection[str]) -> float:
        """Return what grids on the inputs of some layers do together."""
        total, samples = 0.0, 0
        with held(self.layers, {name: self.grids[name] for name in names}):
            for batch, before in zip(self.batches, self._before, strict=True):
                count = batch_length(batch)
                total += count * outputs_distance(before, self.run(batch))
                samples += count
        return total / max(1, samples)


def bearable(
    alone: Mapping[str, float], together: Callable[[Collection[str]], float], most: float
) -> tuple[list[str], float]:
    """Return the most layers, the least harmed first, that together do no more than some harm.

    It takes about log2 of the number of layers measurements, as if harm grew with each layer.

    Args:
        alone: what each does by itself.
        together: measures what some do together.
        most: how much is borne.

    Returns:
        Their names, and what they do; none and 0 if any is too much.
    """
    order = sorted(alone, key=lambda name: alone[name])
    harm = together(order)
    if harm <= most:
        return order, harm
    fits, over, found = 0, len(order), 0.0
    while over - fits > 1:
        middle = (fits + over) // 2
        harm = together(order[:middle])
        if harm <= most:
            fits, found = middle, harm
        else:
            over = middle
    return order[:fits], found
