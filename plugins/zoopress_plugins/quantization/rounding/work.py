"""Round the weights of a model by a rounder, each with what is known of its inputs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from zoopress.errors import StageError
from zoopress.models.model import Model
from zoopress.models.weights import Weight
from zoopress.statistics import Layer
from zoopress.statistics.named.second_moments import InputSecondMoments
from zoopress.techniques import Context
from zoopress.techniques.rounder import Matrix, Rounded, Rounder, checked_rounding
from zoopress_plugins.quantization.rounding.inputs import MOST_COLUMNS, Rows, rows_of
from zoopress_plugins.quantization.rounding.uniform_grid import nearest, stored

WORTH_A_WORD = 0.1
"""Share of a weight's rows that no sample reached, from which on the notes name it."""


@dataclass(frozen=True)
class Grid:
    """The grid that weights are rounded to, see `Matrix`; a whole row without `group_size`."""

    bits: int
    group_size: int | None
    symmetric: bool
    clipping: bool


@dataclass
class Work:
    """What weights are rounded with, and what is to be said of it.

    Attributes:
        rounder: how.
        grid: to what.
        keep_zeros: whether weights that are zero stay so, though no stage pruned them.
        seed: of the run.
        unreached: by name, the share of a weight's rows that no sample reached.
        alone: weights with so many columns that each was rounded by itself.
    """

    rounder: Rounder[Any]
    grid: Grid
    keep_zeros: bool = True
    seed: int = 0
    unreached: dict[str, float] = field(default_factory=dict)
    alone: list[str] = field(default_factory=list)

    def matrix(self, weight: Weight, mask: Tensor | None) -> Matrix:
        """Return what a rounder sees of a weight, without its inputs, in the weight's type."""
        values = weight.matrix()
        size = min(self.grid.group_size or values.shape[1], values.shape[1])
        return Matrix(
            *(weight.name, values, self.grid.bits, size, self.grid.symmetric, self.grid.clipping),
            keep=None if mask is None else weight_mask(weight, mask),
            seed=self.seed,
        )

    def codes(
        self, weight: Weight, mask: Tensor | None, layer: Layer | None, at_once: int
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Round a weight, and return codes, scales and zero points as they are stored.

        Args:
            weight: which.
            mask: of its parameter; elsewhere it is pruned.
            layer: what was measured of its inputs; None if nothing was.
            at_once: how many weights are rounded at once where rows know nothing of each other.
        """
        matrix = self.matrix(weight, mask)
        if self.rounder.needs_inputs or (layer is not None and weight.kind != "embedding"):
            return stored(self._by_inputs(weight, self.ready(matrix), layer), matrix.bits)
        return joined_codes(
            [
                stored(self._checked(self.ready(some)), matrix.bits)
                for some in in_parts(matrix, at_once)
            ]
        )

    def ready(self, matrix: Matrix) -> Matrix:
        """Return a matrix in float32, with the zeros that stay."""
        values, keep = matrix.values.float(), matrix.keep
        if self.keep_zeros and not bool(values.all()):
            keep = (values != 0) if keep is None else keep & (values != 0)
        return replace(matrix, values=values, keep=keep)

    def _checked(self, matrix: Matrix) -> Rounded:
        return checked_rounding(self.rounder, matrix, self.rounder.round(matrix))

    def _by_inputs(self, weight: Weight, matrix: Matrix, layer: Layer | None) -> Rounded:
        parts = list(rows_of(weight, layer))
        unseen = sum(len(each.rows) for each in parts if each.inputs is None)
        if unseen and (weight.kind != "embedding" or unseen == len(matrix.values)):
            self.unreached[weight.name] = unseen / len(matrix.values)
        diagonals = any(each.inputs is not None and each.inputs.ndim == 1 for each in parts)
        if diagonals and weight.kind != "embedding":
            self.alone.append(weight.name)
        return joined([(each.rows, self._of_rows(matrix, each)) for each in parts])

    def check_inputs(self, name: str, inputs: Tensor) -> None:
        """Refuse to weigh a weight's errors by what is not finite.

        Raises:
            StageError: if they are not.
        """
        if not bool(inputs.isfinite().all()):
            raise StageError(
                f"The inputs of {name!r} hold NaN or infinity on calibration data, so errors "
                "cannot be weighed by them. Repair the data or the model, leave the weight out "
                "with 'exclude', or use 'rounding: hqq' without 'scaling', which needs no data."
            )

    def _of_rows(self, matrix: Matrix, some: Rows) -> Rounded:
        known = some.inputs
        if known is not None:
            self.check_inputs(matrix.name, known)
        whole = len(some.rows) == len(matrix.values)
        part = replace(
            matrix,
            values=matrix.values if whole else matrix.values[some.rows],
            keep=matrix.keep if whole or matrix.keep is None else matrix.keep[some.rows],
            inputs=known,
        )
        # Silent inputs tell as little as none.
        if known is None or not bool(known.count_nonzero()):
            return nearest(part)
        return self._checked(part)

    def notes(self) -> dict[str, Any]:
        """Return what is worth reading of it."""
        found: dict[str, Any] = {}
        unreached = {k: round(v, 4) for k, v in self.unreached.items() if v >= WORTH_A_WORD}
        if unreached:
            found["rounded_to_nearest_as_calibration_did_not_reach_them"] = unreached
        if self.alone:
            found["rounded_column_by_column"] = self.alone
        return found


def weight_mask(weight: Weight, mask: Tensor) -> Tensor:
    """Return a mask of a weight's parameter as that of its matrix."""
    return replace(weight, parameter=mask).matrix()  # type: ignore[arg-type]


def joined(parts: Sequence[tuple[Tensor, Rounded]]) -> Rounded:
    """Return a matrix of its rows, rounded in parts."""
    if len(parts) == 1:
        return parts[0][1]
    order = torch.cat([rows for rows, _ in parts]).argsort()
    zeros = [one.zero_point for _, one in parts]
    return Rounded(
        torch.cat([one.levels.float() for _, one in parts])[order],
        torch.cat([one.scale for _, one in parts])[order],
        None
        if zeros[0] is None
        else torch.cat([zero.float() for zero in zeros if zero is not None])[order],
    )


def in_parts(matrix: Matrix, at_once: int) -> Iterator[Matrix]:
    """Yield some rows of a matrix after the others: what is made of all at once takes much.

    Args:
        matrix: whose rows know nothing of each other.
        at_once: how many numbers a part has at most, but for one row.
    """
    step = max(1, at_once // max(1, matrix.values.shape[1]))
    for start in range(0, len(matrix.values), step):
        some = slice(start, start + step)
        keep = None if matrix.keep is None else matrix.keep[some]
        yield replace(matrix, values=matrix.values[some], keep=keep)


def joined_codes(
    parts: Sequence[tuple[Tensor, Tensor, Tensor | None]],
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return codes, scales and zero points of all rows."""
    if len(parts) == 1:
        return parts[0]
    codes, scales, zeros = zip(*parts, strict=True)
    return torch.cat(codes), torch.cat(scales), None if zeros[0] is None else torch.cat(zeros)


def measured_inputs(
    model: Model, weights: Sequence[Weight], context: Context
) -> Mapping[str, Layer | None]:
    """Measure the second moments of the inputs of weights; None of what was not seen."""
    measured = context.statistics.of(model, InputSecondMoments(MOST_COLUMNS), weights)
    return {weight.name: measured.get(weight) for weight in weights}
