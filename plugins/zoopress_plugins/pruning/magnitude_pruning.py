"""Magnitude pruning: the weights worth least become zero, one by one or N of M kept.

Sources: Han et al. 2015, arXiv:1506.02626 (magnitude, in rounds); Zhu & Gupta 2017,
arXiv:1710.01878 (how sparsity rises); Mishra et al. 2021, arXiv:2104.08378 (N:M).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, model_validator

from zoopress.errors import StageError
from zoopress.plugins import hookimpl
from zoopress.techniques import (
    MASKS,
    MATRICES,
    Claim,
    Criterion,
    Effects,
    Kind,
    Outcome,
    Technique,
    WeightCriterion,
    WeightSelection,
)

if TYPE_CHECKING:
    from torch import Tensor

    from zoopress.models.model import Model
    from zoopress.models.weights import Weight
    from zoopress.techniques import Context


class MagnitudePruningConfig(WeightSelection):
    """Give `sparsity` or `pattern`."""

    kinds: tuple[Kind, ...] = Field(default=MATRICES, min_length=1, description="kinds of weights")
    sparsity: float | None = Field(
        default=None, gt=0, lt=1, description="share of the selected weights that become zero"
    )
    pattern: str | None = Field(
        default=None, description='"N:M": of every M weights in a row, N are kept, such as "2:4"'
    )
    scope: Literal["layer", "global"] = Field(
        default="layer", description="whether each layer, or all together, reach the sparsity"
    )
    criterion: WeightCriterion = Field(
        default=WeightCriterion(name="magnitude"),
        description="what tells which weights to keep: a name, or {name: NAME, …} with options",
    )
    rounds: int = Field(
        default=1,
        ge=1,
        description="prune a part, let the stage's `recovery` train, prune more, and so on",
    )

    @model_validator(mode="after")
    def _check(self) -> MagnitudePruningConfig:
        if self.rounds > 1 and self.sparsity is None:
            raise ValueError("'rounds' raise the 'sparsity' step by step; a 'pattern' has none")
        if (self.sparsity is None) == (self.pattern is None):
            raise ValueError("give either 'sparsity' or 'pattern'")
        if self.pattern is not None:
            if self.scope == "global":
                raise ValueError("a 'pattern' is a matter of each row; leave 'scope' out")
            match = re.fullmatch(r"(\d{1,3}):(\d{1,3})", self.pattern)
            if not match or not 0 < int(match[1]) < int(match[2]):
                raise ValueError('\'pattern\' must be "N:M" with 0 < N < M, such as "2:4"')
        return self

    def n_of_m(self) -> tuple[int, int]:
        """Return N and M of the pattern."""
        assert self.pattern is not None
        n, m = self.pattern.split(":")
        return int(n), int(m)


def smallest_pruned(scores: Sequence[Tensor], sparsity: float) -> list[Tensor]:
    """Return which weights to keep if those with the smallest scores go.

    Args:
        scores: tensors of any shape; larger means keep.
        sparsity: share of all of them together to prune.

    Returns:
        Bool tensors of the same shapes, True where kept; exactly round(sparsity · n) are False.
    """
    import torch

    flat = torch.cat([score.reshape(-1) for score in scores])
    count = round(sparsity * flat.numel())
    keep = torch.ones(flat.shape, dtype=torch.bool, device=flat.device)
    keep[flat.topk(count, largest=False, sorted=False).indices] = False
    parts = keep.split([score.numel() for score in scores])
    return [part.view(score.shape) for part, score in zip(parts, scores, strict=True)]


def rising_sparsity(sparsity: float, rounds: int) -> list[float]:
    """Return the sparsity after each round: much in the first, little when little is left.

    Args:
        sparsity: after the last.
        rounds: how many, evenly spaced in time; the start is a dense model.
    """
    return [sparsity_after(sparsity, done / rounds) for done in range(1, rounds + 1)]


def sparsity_after(sparsity: float, done: float) -> float:
    """Return the sparsity after a share of the time in which it rises from 0.

    Source: Zhu & Gupta 2017, arXiv:1710.01878, eq. 1.
    """
    return sparsity * (1 - (1 - done) ** 3)


def n_of_m_kept(scores: Tensor, n: int, m: int) -> Tensor:
    """Return which weights to keep if of every m neighbours in a row the n best stay.

    Args:
        scores: [out, in]; larger means keep.
        n: how many to keep.
        m: of how many. The last in % m weights of a row form a group that keeps up to n.

    Returns:
        [out, in], bool.

    Source: Mishra et al. 2021, arXiv:2104.08378, section 3.
    """
    import torch
    from torch.nn.functional import pad

    rows, columns = scores.shape
    groups = pad(scores, (0, -columns % m), value=-torch.inf).view(rows, -1, m)
    best = groups.topk(n, dim=-1).indices
    keep = torch.zeros(groups.shape, dtype=torch.bool).scatter_(-1, best, True)
    return keep.view(rows, -1)[:, :columns]


class MagnitudePruning(Technique[MagnitudePruningConfig]):
    """Prune the weights of smallest magnitude, or those that another criterion is for."""

    name = "magnitude_pruning"
    family = "pruning"
    config_type = MagnitudePruningConfig
    weight_by_weight = True

    def __init__(self, config: MagnitudePruningConfig) -> None:
        super().__init__(config)
        # Of the stage, not of the class: what ranks all weights together needs all at once.
        if config.scope == "global" or config.rounds > 1:
            self.__dict__["weight_by_weight"] = False

    def effects(self) -> Effects:
        """Require float weights; add masks."""
        return Effects(requires=self.config.properties(), adds=frozenset({MASKS}))

    def apply(self, model: Model, context: Context) -> Outcome:
        """Mask the selected weights."""
        from zoopress.models.weights import as_matrix
        from zoopress.techniques.scoring import Statistic, measured, weight_scores

        config = self.config
        if config.rounds > 1 and context.recover is None:
            raise StageError(
                f"{config.rounds} rounds train between them: give the stage a 'recovery'."
            )
        weights = config.select(model)
        criterion: Criterion[Any] = config.criterion.make(context.plugins)

        statistic: Statistic | None = None

        def scores_of(weight: Weight) -> Tensor:
            kept = model.masks.get(weight.name)
            pruned = None if kept is None else ~kept
            return weight_scores(criterion, weight, context.seed, statistic, pruned)

        def keeps_at(sparsity: float) -> list[Tensor]:
            nonlocal statistic
            statistic = measured(criterion, context, model, weights)
            if config.scope == "global":
                return smallest_pruned([scores_of(weight) for weight in weights], sparsity)
            return [smallest_pruned([scores_of(weight)], sparsity)[0] for weight in weights]

        def kept_of(weight: Weight) -> Tensor:
            if config.pattern is None:
                return smallest_pruned([scores_of(weight)], requested)[0]
            matrix = as_matrix(scores_of(weight), weight.output_axis)
            return weight.from_matrix(n_of_m_kept(matrix, *config.n_of_m()))

        requested = self._requested()
        for sparsity in rising_sparsity(requested, config.rounds)[:-1]:
            for weight, keep in zip(weights, keeps_at(sparsity), strict=True):
                model.mask(weight, keep)
            assert context.recover is not None
            context.recover(model)
        done: dict[str, Any] = {"pruned": 0}
        together = None
        if config.scope == "global":
            names = [weight.name for weight in weights]
            together = dict(zip(names, keeps_at(requested), strict=True))
        else:
            statistic = measured(criterion, context, model, weights)
        for weight in context.track(weights, done):
            keep = kept_of(weight) if together is None else together[weight.name]
            model.mask(weight, keep)
            done["pruned"] += int((~keep).sum())
        reached = done["pruned"] / sum(weight.parameter.numel() for weight in weights)
        return Outcome(
            touched=[weight.name for weight in weights],
            claims=[Claim("sparsity", requested, reached, unit=self._unit(weights))],
        )

    def _requested(self) -> float:
        """Return the share of the selected weights that is to go."""
        if self.config.sparsity is not None:
            return self.config.sparsity
        n, m = self.config.n_of_m()
        return 1 - n / m

    def _unit(self, weights: Sequence[Weight]) -> float:
        """Return how much less sparse whole weights, or whole groups of M, may leave it."""
        total = sum(weight.parameter.numel() for weight in weights)
        if self.config.pattern is None:
            return (len(weights) if self.config.scope == "layer" else 1) / total
        n, m = self.config.n_of_m()
        kept = 0
        for weight in weights:
            rows, columns = weight.matrix().shape
            kept += rows * (columns // m * n + min(n, columns % m))
        return max(0.0, kept / total - n / m)

    def rounds(self) -> int:
        """Return the config's."""
        return self.config.rounds

    def working_bytes(self, total: int, largest: int) -> int:
        """Return room for all scores and masks, and for the order of what is ranked together."""
        ranked = total if self.config.scope == "global" else largest
        return total + total // 4 + 7 * ranked


@hookimpl
def zoopress_techniques() -> list[type[MagnitudePruning]]:
    """Register the technique."""
    return [MagnitudePruning]
