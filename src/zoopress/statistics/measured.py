"""What was measured: a statistic of each weight, and how much of it was seen."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from zoopress.errors import StageError, nearest
from zoopress.models.weights import Weight, as_matrix
from zoopress.statistics.statistic import Counts, State, Statistic


@dataclass(frozen=True)
class Part:
    """One way in which a weight is read.

    Number k of group g's inputs multiplies, for output n, what has the index
    inputs[g, k] + outputs[g, n] in the flattened parameter.

    Attributes:
        inputs: [groups or 1, k], int64.
        outputs: [groups or 1, n], int64.
        rows: how many rows were multiplied, in each group.
        tokens: [k], how often each row was looked up; None unless it was by tokens.
        state: what the statistic added up.
    """

    inputs: Tensor
    outputs: Tensor
    rows: int
    tokens: Tensor | None
    state: State


@dataclass(frozen=True)
class Layer:
    """A statistic of one weight.

    Attributes:
        name: the weight's.
        statistic: what was measured.
        shape: the parameter's.
        output_axis: of its rows.
        parts: the ways in which it is read, nearly always one.
        whole: of gradients, what was added up; else None.
        samples: of gradients, how many samples reached the weight.
        readers: operators that read it and are no product.
        refused: why the statistic is not defined for it; "" if it is.
    """

    name: str
    statistic: Statistic
    shape: torch.Size
    output_axis: int
    parts: Sequence[Part] = ()
    whole: State | None = None
    samples: int = 0
    readers: Sequence[str] = ()
    refused: str = ""

    @property
    def seen(self) -> int:
        """How many rows its products had, or for gradients how many samples reached it."""
        if "gradients" in self.statistic.needs:
            return self.samples
        return max((part.rows for part in self.parts), default=0)

    @property
    def reached(self) -> Tensor:
        """How many rows each number of the weight has multiplied: [rows, columns], int64.

        Zero where nothing is known: of experts that no row was sent to, of tokens that no text had.
        """
        return as_matrix(self._reached().reshape(self.shape), self.output_axis)

    def results(self) -> dict[str, Tensor]:
        """Return the results by name, float32, with shapes as the statistic's class tells.

        Of a layer in groups each has one more axis in front, the groups.

        Raises:
            StageError: if the layer was not seen, or is read in several ways that differ.
        """
        self._require_seen()
        if self.whole is not None:
            return self.statistic.result(self.whole, Counts(torch.tensor(0.0), self.samples))
        if len(self.parts) > 1:
            how = "can be joined with `spread`" if self.statistic.per_weight else "are in `parts`"
            raise StageError(
                f"{self.name!r} is read in {len(self.parts)} ways, as an attention's projection is "
                f"that gets other keys than queries; the {self.statistic.name} of each {how}."
            )
        return self.of_part(self.parts[0])

    def of_part(self, part: Part) -> dict[str, Tensor]:
        """Return the results of one way in which the weight is read.

        Raises:
            StageError: if no row was multiplied in this way.
        """
        if not part.rows:
            raise StageError(self._unseen())
        counts = Counts(torch.tensor(part.rows, dtype=torch.float64), self.samples)
        results = self.statistic.result(part.state, counts)
        return {name: v.squeeze(0) if len(v) == 1 else v for name, v in results.items()}

    @property
    def value(self) -> Tensor:
        """The only result.

        Raises:
            StageError: as `results` does, or if there are several: ask for one by its name.
        """
        return self["value"]

    def __getitem__(self, name: str) -> Tensor:
        results = self.results()
        if name not in results:
            raise StageError(
                f"{self.statistic.name} has no result {name!r}.{nearest(name, results)}"
            )
        return results[name]

    def spread(self, name: str = "value", unseen: float | None = None) -> Tensor:
        """Return what each number of the weight was multiplied with or gives: [rows, columns].

        A statistic of inputs gets the same number for all outputs, and the other way round. So
        layers in groups, look-ups, weights that are read transposed and those that are read in
        several ways are all alike.

        Args:
            name: of the result.
            unseen: what stands where no row was multiplied; without it, that is an error.

        Raises:
            StageError: if some numbers were not seen, or the statistic has no result for each.
        """
        if self.whole is not None:
            return self[name]
        if not self.statistic.per_weight:
            raise StageError(
                f"{self.statistic.name} of {self.name!r} is no number for each input or output, so "
                "it cannot be spread over the weight. Use `results()`, or `of_part` for each of "
                "`parts`."
            )
        if self.refused or not self.parts:
            self._require_seen()
        states, rows = self._joined()
        if not states and "gradients" in self.statistic.needs:
            raise StageError(
                f"There is no {self.statistic.name} of {self.name!r}: the model reads it, and no "
                "gradient flows back to it. Its code detaches it, or computes without gradients. "
                "Leave it out with `exclude`, or choose what needs no gradients."
            )
        results = self.statistic.result(states, Counts(rows, self.samples))
        if name not in results:
            raise StageError(
                f"{self.statistic.name} has no result {name!r}.{nearest(name, results)}"
            )
        result, unknown = results[name], self._reached() == 0
        if unseen is not None:
            result = torch.where(unknown, unseen, result)
        elif bool(unknown.any()):
            raise StageError(
                f"{self.name!r}: no calibration sample reached {int(unknown.sum())} of its "
                f"{unknown.numel()} numbers, as of experts that nothing was sent to and of tokens "
                "that no text had. Say what is to stand there with `spread(unseen=…)`; `reached` "
                "tells where that is."
            )
        return as_matrix(result.reshape(self.shape), self.output_axis)

    def _reached(self) -> Tensor:
        total = torch.zeros(math.prod(self.shape), dtype=torch.int64)
        for part in self.parts:
            groups = max(len(part.inputs), len(part.outputs))
            counts = torch.full((groups, part.inputs.shape[1]), part.rows)
            if part.tokens is not None:
                counts = part.tokens[None]
            places, values = _places(part, counts, part.inputs)
            total.index_put_((places,), values, accumulate=True)
        return total

    def _joined(self) -> tuple[State, Tensor]:
        """Return the states and the rows seen, of each number of the flattened parameter."""
        size = math.prod(self.shape)
        rows = torch.zeros(size, dtype=torch.float64)
        joined: State = {}
        side = "inputs" if "inputs" in self.statistic.needs else "outputs"
        for part in self.parts:
            groups = max(len(part.inputs), len(part.outputs))
            places, counts = _places(
                part, torch.full((groups, part.inputs.shape[1]), float(part.rows)), part.inputs
            )
            rows.index_put_((places,), counts.double(), accumulate=True)
            for key, tensor in part.state.items():
                along = part.inputs if side == "inputs" else part.outputs
                places, values = _places(part, tensor, along)
                merge = self.statistic.merges.get(key, "sum")
                start = {"sum": 0.0, "low": torch.inf, "high": -torch.inf}[merge]
                into = joined.setdefault(key, torch.full((size,), start, dtype=tensor.dtype))
                how = {"sum": "sum", "low": "amin", "high": "amax"}[merge]
                into.scatter_reduce_(0, places, values.to(into.dtype), how)
        return joined, rows

    def _require_seen(self) -> None:
        if self.refused or not self.seen:
            raise StageError(self._unseen())

    def _unseen(self) -> str:
        what = f"There is no {self.statistic.name} of {self.name!r}: "
        if self.refused:
            return f"{what}{self.refused}."
        if self.readers and not self.parts and "gradients" not in self.statistic.needs:
            return (
                f"{what}it multiplies no data, but is read by {', '.join(sorted(self.readers))}. "
                "Select other layers (`exclude` leaves this one out), or ask `seen` first."
            )
        return (
            f"{what}no calibration sample reached it. Nothing is known of it, not that it is "
            "worthless. Give the card more 'calibration_samples' that use it, leave it out with "
            "`exclude`, or let the technique ask `seen` first."
        )


@dataclass(frozen=True)
class Measured:
    """A statistic of each weight that was asked for, by the weight's name.

    Indexed by a name, any of a tied weight's, by a `Weight`, or by the path of a module that has
    just one. Whoever is not there, or was not seen, is told so; `get` and `seen` ask first.
    """

    statistic: Statistic
    layers: Mapping[str, Layer]
    aliases: Mapping[str, str] = field(default_factory=dict)

    def __getitem__(self, weight: str | Weight) -> Layer:
        layer = self._layer(weight)
        if layer.refused or not layer.seen:
            raise StageError(layer._unseen())
        return layer

    def get(self, weight: str | Weight) -> Layer | None:
        """Return the statistic of a weight, None if nothing of it was seen.

        Raises:
            StageError: if there is no such weight.
        """
        layer = self._layer(weight)
        return None if layer.refused or not layer.seen else layer

    def seen(self, weight: str | Weight) -> int:
        """Return how many rows or, of gradients, samples reached a weight.

        Raises:
            StageError: if there is no such weight.
        """
        layer = self._layer(weight)
        return 0 if layer.refused else layer.seen

    def is_unreached(self, weight: str | Weight) -> bool:
        """Tell whether no sample reached a weight, though the statistic is defined for it.

        Raises:
            StageError: if there is no such weight.
        """
        layer = self._layer(weight)
        gradients = "gradients" in layer.statistic.needs
        return not layer.refused and not layer.seen and (gradients or not layer.readers)

    def __contains__(self, weight: object) -> bool:
        name = weight.name if isinstance(weight, Weight) else weight
        return name in self.layers or name in self.aliases

    def __iter__(self) -> Iterator[str]:
        return iter(self.layers)

    def __len__(self) -> int:
        return len(self.layers)

    def _layer(self, weight: str | Weight) -> Layer:
        name = weight.name if isinstance(weight, Weight) else weight
        name = self.aliases.get(name, name)
        if name not in self.layers:
            raise StageError(
                f"{self.statistic.name} was not measured of {name!r}: there is no such weight, or "
                f"it was not asked for.{nearest(name, [*self.layers, *self.aliases])}"
            )
        return self.layers[name]


def _places(part: Part, values: Tensor, along: Tensor) -> tuple[Tensor, Tensor]:
    """Return the index in the parameter of each pair of input and output, and its value, flat."""
    indices = part.inputs[:, :, None] + part.outputs[:, None, :]
    values = values.cpu()
    values = values[:, :, None] if along is part.inputs else values[:, None, :]
    return indices.flatten(), values.expand(indices.shape).flatten()
