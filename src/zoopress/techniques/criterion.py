"""What tells which weights and which neurons to keep: a pruning criterion.

A criterion scores; how many go, and where, is the technique's to say. So any technique that prunes
takes any criterion, and a new criterion is a file with one class:

    class Variance(Criterion[NoOptions]):
        name = "variance"
        config_type = NoOptions

        def units(self, evidence):
            return relative_mean([each.values.float().var(dim=1) for each in matrices(evidence)])

A plugin registers it with the hook `zoopress_criteria`; a recipe says `criterion: variance`.
"""

from __future__ import annotations

import hashlib
from abc import ABC
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Literal, TypeVar

from zoopress.choice import Choice, NoOptions
from zoopress.config import Config
from zoopress.errors import StageError
from zoopress.plugins import Registry

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

OptionsT = TypeVar("OptionsT", bound=Config)
Role = Literal["weight", "producer", "consumer", "norm"]


@dataclass(frozen=True)
class Evidence:
    """What a criterion sees of one tensor.

    Attributes:
        name: the tensor's full name, such as "encoder.0.weight".
        module: what holds it.
        attribute: its name there.
        role: what it is to the units: "weight" where single weights are scored; a "producer"
            computes the units, a "consumer" sums over them, a "norm", such as a vector of batch
            normalization, acts on each.
        axes: how many axes the tensor has.
        values: [units, values], what each unit has of the tensor. Where single weights are scored,
            units are the rows of the weight's matrix [out, in].
        statistics: what was measured, [units, values] each, by the names that the criterion
            declares.
        seed: of the run.
    """

    name: str
    module: nn.Module
    attribute: str
    role: Role
    axes: int
    values: Tensor
    statistics: Mapping[str, Tensor] = field(default_factory=dict)
    seed: int = 0

    def generator(self, salt: int = 0) -> torch.Generator:
        """Return a new generator on the CPU that follows from the run's seed and the name alone."""
        import torch

        text = f"{self.seed} {salt} {self.name}".encode()
        seed = int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little")
        return torch.Generator().manual_seed(seed)


class Criterion(ABC, Generic[OptionsT]):
    """Scores what could be pruned; a larger score means keep.

    A subclass overrides `weights`, `units` or both. What overrides only `weights` scores units,
    too, by the sum over their weights.

    Class attributes:
        name: what recipes call it, a noun in snake_case.
        config_type: the class of its options, a subclass of `Config`; `NoOptions` if it has none.
        statistics: what it has to know besides the tensors, by the names under which
            `Context.statistics` measures them, such as ("input_norms",). Each comes in
            `Evidence.statistics`.
    """

    name: ClassVar[str]
    config_type: ClassVar[type[Config]] = NoOptions
    statistics: ClassVar[tuple[str, ...]] = ()

    def __init__(self, config: OptionsT) -> None:
        self.config = config

    def weights(self, evidence: Evidence) -> Tensor:
        """Score single weights of one tensor.

        Returns:
            [units, values], as `evidence.values`; scores of different tensors are compared where a
            technique ranks all layers together.

        Raises:
            StageError: if it cannot score this tensor.
        """
        raise StageError(_only(self.name, "whole neurons"))

    def units(self, evidence: Sequence[Evidence]) -> Tensor:
        """Score units, such as neurons and channels, by all tensors that hold a part of them.

        The default sums the scores of a unit's weights in each matrix, divides by the matrix' mean,
        and averages over the matrices.

        Args:
            evidence: every tensor that shrinks with the units, matrices and vectors.

        Returns:
            [units], of any float type.

        Raises:
            StageError: if it cannot score these units.
        """
        return relative_mean([self.weights(each).float().sum(dim=1) for each in matrices(evidence)])


def matrices(evidence: Sequence[Evidence]) -> list[Evidence]:
    """Return the tensors with two axes or more; a vector would weigh as much as any of them.

    Raises:
        StageError: if there is none.
    """
    found = [each for each in evidence if each.axes > 1]
    if not found:
        names = [each.name for each in evidence]
        raise StageError(f"None of the tensors {names} of these neurons is a matrix.")
    return found


def relative_mean(scores: Sequence[Tensor]) -> Tensor:
    """Average scores of the same units in several tensors, each divided by its mean over the units.

    Args:
        scores: [units] each, ≥ 0. None outweighs the others, whatever the size of its values.

    Source: Fang et al. 2023, DepGraph, arXiv:2301.12900, section 3.3.
    """
    import torch

    shares = [score / score.mean().clamp_min(torch.finfo(score.dtype).tiny) for score in scores]
    return torch.stack(shares).mean(dim=0)


def checked(criterion: Criterion[Any], scores: Tensor, shape: Sequence[int], what: str) -> Tensor:
    """Return scores if they are what a criterion promises: one finite number for each.

    Raises:
        StageError: naming the criterion and what it scored.
    """
    if tuple(scores.shape) != tuple(shape):
        raise StageError(
            f"criterion {criterion.name!r} returned scores of shape {tuple(scores.shape)} for "
            f"{what}, which needs {tuple(shape)}; this is a bug in the criterion."
        )
    if not bool(scores.isfinite().all()):
        bad = int((~scores.isfinite()).sum())
        raise StageError(
            f"criterion {criterion.name!r} gives {bad} of {scores.numel()} scores of {what} that "
            "are NaN or infinite, so nothing can be ranked by it. Leave that layer out with "
            "'exclude', or choose another criterion."
        )
    return scores


class _CriterionChoice(Choice):
    registry: ClassVar[Registry] = "criteria"


class WeightCriterion(_CriterionChoice):
    """A criterion for single weights."""

    def fitting(self, kind: Any) -> str | None:
        """Refuse what scores units alone."""
        scores_weights = kind.weights is not Criterion.weights
        return None if scores_weights else _only(self.name, "whole neurons")


class UnitCriterion(_CriterionChoice):
    """A criterion for neurons, channels and other units that go as a whole."""

    def fitting(self, kind: Any) -> str | None:
        """Take any: what scores weights scores units by their sum."""
        return None


def _only(name: str, what: str) -> str:
    return (
        f"the criterion {name!r} scores {what}, not single weights. Prune those with "
        "'neuron_pruning', or choose a criterion for single weights, such as 'magnitude'."
    )
