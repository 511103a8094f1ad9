"""What a statistic is: one class that is given what a layer sees, a piece at a time."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor

Need = Literal["inputs", "outputs", "output_gradients", "gradients"]
"""What `Statistic.update` is given: numbers that a product with the weight multiplies, what it
gives, the gradients of these; or the weight's own gradient for one sample."""
Objective = Literal["loss", "own"]
"""What is differentiated: the task's loss, or what the model's own outputs tell (see `probes`)."""
State = dict[str, Tensor]
"""What a statistic has added up of one way in which a weight is read."""
Merge = Literal["sum", "low", "high"]


class Sizes(NamedTuple):
    """How large a state must be.

    Attributes:
        groups: of the product; 1 unless it is a convolution in groups, or one for each expert.
        inputs: how many numbers each row of a group's inputs has.
        outputs: the same of its outputs.
        device: where the state lives.
    """

    groups: int
    inputs: int
    outputs: int
    device: torch.device


class Counts(NamedTuple):
    """How much was seen.

    Attributes:
        rows: of inputs and outputs, float64: a scalar, or spread over a weight as the state is.
        samples: how many reached the weight, of those that gradients were taken of.
    """

    rows: Tensor
    samples: int


@dataclass(frozen=True)
class Seen:
    """A piece of what a layer sees; just one of the attributes is set.

    Attributes:
        inputs: [groups, rows, inputs]; of a convolution, its inputs unfolded into rows.
        tokens: [rows], int64, of a look-up: the inputs are 1 at these and 0 elsewhere.
        outputs: [groups, rows, outputs], a bias included where the layer adds one.
        output_gradients: [groups, rows, outputs], of one sample.
        gradient: of one sample, as the weight's matrix [rows, columns].
    """

    inputs: Tensor | None = None
    tokens: Tensor | None = None
    outputs: Tensor | None = None
    output_gradients: Tensor | None = None
    gradient: Tensor | None = None

    def counts(self, size: int) -> Tensor:
        """Return [1, size], float64: how often each token is there."""
        assert self.tokens is not None
        return torch.bincount(self.tokens, minlength=size)[None].double()


class Statistic(ABC):
    """Something that calibration data shows of a layer; a subclass in one short file.

    Arguments of its constructor are kept as attributes of their names, as plain data.

    Class attributes:
        name: what techniques ask for.
        needs: what `update` is given.
        probes: how many own objectives are drawn for each sample.
        per_weight: whether each number of a weight has a result of its own, once those of inputs or
            outputs are spread.
        merges: how two states become one, by the name of the tensor; "sum" unless given.
        tokens: whether it is defined for look-ups.
    """

    name: ClassVar[str]
    needs: ClassVar[frozenset[Need]]
    probes: int = 1
    per_weight: ClassVar[bool] = True
    merges: ClassVar[Mapping[str, Merge]] = {}
    tokens: ClassVar[bool] = True

    @abstractmethod
    def start(self, sizes: Sizes) -> State:
        """Return the state before anything was seen, on the device of `sizes`."""

    @abstractmethod
    def update(self, state: State, seen: Seen) -> None:
        """Add a piece of what was seen to the state, in place.

        Raises:
            ValueError: if it is not defined for what was seen; the message says why.
        """

    @abstractmethod
    def result(self, state: State, counts: Counts) -> dict[str, Tensor]:
        """Return the result by name; the only one is called "value".

        Args:
            state: as `start` and `update` left it; or, to be spread over a weight, each of its
                tensors [groups, n] taken to the shape of the weight's matrix.
            counts: how much was seen.
        """

    def finish(self, state: State, weight: Tensor) -> None:  # noqa: B027
        """Change a state of gradients, in place, when all was seen.

        Args:
            state: of the whole weight.
            weight: its matrix [rows, columns], as it was then.
        """

    def objective(self, labelled: bool) -> Objective:
        """Return what is to be differentiated, for gradients.

        Args:
            labelled: whether the task's samples have labels.
        """
        return "own"

    def arguments(self) -> dict[str, Any]:
        """Return the constructor's arguments, by which results are kept apart."""
        return dict(vars(self))

    def bytes(self, sizes: Sizes) -> int:
        """Return how many bytes a state takes."""
        state = self.start(sizes._replace(device=torch.device("meta")))
        return sum(tensor.nbytes for tensor in state.values())
