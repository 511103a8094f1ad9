"""How weights are rounded to a grid, better than to the nearest point: a rounder.

What quantizes says which grid; a rounder chooses scales, zero points and integers on it. A new one
is a file with one class:

    class Down(Rounder[NoOptions]):
        name = "down"
        config_type = NoOptions

        def round(self, matrix):
            ...
            return Rounded(levels, scale, zero_point)

A plugin registers it with the hook `zoopress_rounders`; a recipe says `rounding: down`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar

from zoopress.choice import Choice, NoOptions
from zoopress.config import Config
from zoopress.errors import StageError
from zoopress.plugins import Registry

if TYPE_CHECKING:
    from torch import Tensor

OptionsT = TypeVar("OptionsT", bound=Config)


@dataclass(frozen=True)
class Matrix:
    """What a rounder sees: rows of a weight that multiply the same inputs, and their grid.

    The number in row r and column c becomes (level − zero point) · scale, with a scale and a zero
    point for each row and for each `group_size` columns, the last group maybe of fewer.

    Attributes:
        name: the weight's.
        values: [out, in], float32.
        bits: of a level.
        group_size: columns that share a scale.
        symmetric: whether there are no zero points; levels then are −2^(bits−1) + 1 to
            2^(bits−1) − 1, else 0 to 2^bits − 1.
        clipping: whether scales may be smaller than the largest weights need.
        keep: [out, in], bool; elsewhere weights are pruned and must become 0. None: nowhere.
        inputs: what calibration data shows of the inputs x that rows multiply, the mean of x xᵀ,
            [in, in], or its diagonal alone, [in]; None if the rounder does not ask for it, or
            nothing is known.
        seed: of the run.
    """

    name: str
    values: Tensor
    bits: int
    group_size: int
    symmetric: bool
    clipping: bool
    keep: Tensor | None = None
    inputs: Tensor | None = None
    seed: int = 0


@dataclass(frozen=True)
class Rounded:
    """A matrix on a grid.

    Attributes:
        levels: [out, in], whole numbers of any type.
        scale: [out, groups], bfloat16, positive.
        zero_point: [out, groups], whole numbers from 0 to 2^bits − 1; None if it is symmetric.
    """

    levels: Tensor
    scale: Tensor
    zero_point: Tensor | None = None


class Rounder(ABC, Generic[OptionsT]):
    """Rounds matrices to a uniform grid.

    Class attributes:
        name: what recipes call it, a noun in snake_case.
        config_type: the class of its options, a subclass of `Config`; `NoOptions` if it has none.
        needs_inputs: whether it has to know of the inputs that a weight multiplies. A weight of
            which no calibration sample tells is rounded to the nearest point then, and named.
    """

    name: ClassVar[str]
    config_type: ClassVar[type[Config]] = NoOptions
    needs_inputs: ClassVar[bool] = False

    def __init__(self, config: OptionsT) -> None:
        self.config = config

    @abstractmethod
    def round(self, matrix: Matrix) -> Rounded:
        """Round a matrix.

        Raises:
            StageError: if it cannot.
        """


class RounderChoice(Choice):
    """A rounder to quantize with."""

    registry: ClassVar[Registry] = "rounders"

    def make(self, plugins: Any = None) -> Rounder[Any]:
        """Return the rounder, with its options."""
        rounder: Rounder[Any] = super().make(plugins)
        return rounder


def checked_rounding(rounder: Rounder[Any], matrix: Matrix, rounded: Rounded) -> Rounded:
    """Return what a rounder made if it is what it promises.

    Raises:
        StageError: naming the rounder and the weight.
    """
    rows, columns = matrix.values.shape
    groups = (rows, -(-columns // matrix.group_size))
    low, high = level_limits(matrix.bits, matrix.symmetric)
    levels, scale, zero_point = rounded.levels, rounded.scale, rounded.zero_point
    wrong = ""
    if tuple(levels.shape) != (rows, columns) or tuple(scale.shape) != groups:
        wrong = f"levels {tuple(levels.shape)} and scales {tuple(scale.shape)} for {groups}"
    elif not bool(scale.isfinite().all()) or not bool((scale > 0).all()):
        wrong = "scales that are not positive and finite"
    elif not bool(((levels >= low) & (levels <= high) & (levels == levels.round())).all()):
        wrong = f"levels that are not whole or not between {low} and {high}"
    elif (zero_point is None) != matrix.symmetric:
        wrong = "zero points" if matrix.symmetric else "no zero points"
    elif zero_point is not None and (
        tuple(zero_point.shape) != groups
        or not bool(((zero_point >= 0) & (zero_point <= high)).all())
    ):
        wrong = f"zero points of another shape or not between 0 and {high}"
    elif matrix.keep is not None:
        zero = levels if zero_point is None else levels - spread(zero_point, matrix)
        if bool(zero[~matrix.keep].count_nonzero()):
            wrong = "values other than 0 for pruned weights"
    if wrong:
        raise StageError(
            f"rounder {rounder.name!r} returned {wrong} of {matrix.name!r}; this is a bug in it."
        )
    return rounded


def level_limits(bits: int, symmetric: bool) -> tuple[int, int]:
    """Return the lowest and the highest level of a grid."""
    return (1 - 2 ** (bits - 1), 2 ** (bits - 1) - 1) if symmetric else (0, 2**bits - 1)


def spread(groups: Tensor, matrix: Matrix) -> Tensor:
    """Return numbers of groups [out, groups] for each column: [out, in]."""
    return groups.repeat_interleave(matrix.group_size, 1)[:, : matrix.values.shape[1]]
