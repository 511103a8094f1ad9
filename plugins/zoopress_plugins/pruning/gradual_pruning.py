"""Gradual pruning: weights become zero little by little while a teacher trains the others.

Source: Zhu & Gupta 2017, arXiv:1710.01878 (sparsity that rises in training).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
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
from zoopress_plugins.distillation.distillation import Distillation, DistillationConfig
from zoopress_plugins.pruning.magnitude_pruning import smallest_pruned, sparsity_after

if TYPE_CHECKING:
    from torch import Tensor

    from zoopress.models.model import Model
    from zoopress.models.weights import Weight
    from zoopress.techniques import Context

_SQUARES = "gradients.mean_square"
_MEMORY = 0.99
"""Of the mean of squared gradients: it looks back over some hundred steps."""
_VALUE_BITS = 3.0
"""That a weight which is not zero takes besides its place: a sign, and one of few magnitudes."""
_RAREST = 1e-4
"""Places of a lower density cost no more: a coder that adapts does not learn of them in time."""


class GradualPruningConfig(WeightSelection):
    """What to prune, and the training in which that happens."""

    kinds: tuple[Kind, ...] = Field(default=MATRICES, min_length=1, description="kinds of weights")
    sparsity: float = Field(gt=0, lt=1, description="share of the selected weights that are zero")
    criterion: WeightCriterion = Field(
        default=WeightCriterion(name="fisher"),
        description="what tells which weights to keep: a name, or {name: NAME, …} with options; "
        "gradients.mean_square is measured in the training",
    )
    per_bit: bool = Field(
        default=False,
        description="divide scores by the bits that a coder would take: in rows and columns "
        "that are nearly empty, a weight costs more",
    )
    scope: Literal["layer", "global"] = Field(
        default="global", description="whether each layer, or all together, reach the sparsity"
    )
    end: float = Field(
        default=0.65,
        gt=0,
        le=1,
        description="share of the training after which the sparsity is reached",
    )
    interval: int = Field(default=20, ge=1, description="steps from one pruning to the next")
    training: DistillationConfig = Field(
        description="the training, with the keys of `distillation`, such as {epochs: 10}"
    )

    @model_validator(mode="before")
    @classmethod
    def _old_name(cls, given: Any) -> Any:
        if isinstance(given, dict) and "score" in given and "criterion" not in given:
            return {"criterion" if key == "score" else key: v for key, v in given.items()}
        return given


def place_bits(keep: Tensor) -> Tensor:
    """Return how many bits each weight takes if it is kept: those of its place and its value.

    A place is told with −log2 of how likely it is taken, by the density of its row and its column;
    by that of all places where either has but one.

    Args:
        keep: bool [rows, columns], what is kept now.
    """
    import torch

    kept = keep.float()
    density = kept.mean().clamp(min=_RAREST)
    likely = kept.mean(1, keepdim=True) * kept.mean(0, keepdim=True) / density
    if 1 in keep.shape:
        likely = density.expand(keep.shape)
    return _VALUE_BITS - torch.log2(likely.clamp(_RAREST, 1.0))


class RisingSparsity:
    """Prunes weights between steps of a training until the sparsity is reached; a `Constraint`.

    Args:
        weights: what is pruned; those that are trained elsewhere are there by now.
        steps: of the training.
        config: how.
        criterion: what tells which to keep; it may have to know `gradients.mean_square`.
        seed: the run's.

    Raises:
        StageError: if one is not trained, or the criterion has to know something else.
    """

    def __init__(
        self,
        weights: Sequence[Weight],
        steps: int,
        config: GradualPruningConfig,
        criterion: Criterion[Any],
        seed: int = 0,
    ) -> None:
        import torch

        from zoopress.techniques.scoring import lacking

        for weight in weights:
            if not weight.parameter.requires_grad:
                raise StageError(
                    f"{weight.name} is to be pruned in training, but is not trained. Leave it out "
                    "with 'exclude', or 'lora' and its 'learning_rates' out of 'training'."
                )
        unknown = [name for name in criterion.statistics if name != _SQUARES]
        if unknown:
            raise StageError(lacking(criterion, unknown))
        self._weights, self._config = weights, config
        self._criterion, self._seed = criterion, seed
        self._last = max(1, round(config.end * steps))
        self._step = torch.zeros((), dtype=torch.int64)
        parameters = [weight.parameter.detach() for weight in weights]
        self._keeps = [torch.ones_like(tensor, dtype=torch.bool) for tensor in parameters]
        measured = parameters if _SQUARES in criterion.statistics else []
        self._squares = [torch.zeros_like(tensor) for tensor in measured]

    def before_step(self) -> None:
        """Note how large gradients are, and mask those of pruned weights."""
        for i, (weight, keep) in enumerate(zip(self._weights, self._keeps, strict=True)):
            gradient = weight.parameter.grad
            if gradient is None:
                continue  # this batch did not pass by it
            if self._squares:
                self._squares[i].lerp_(gradient.square(), 1 - _MEMORY)
            gradient.masked_fill_(~keep, 0.0)

    def after_step(self) -> None:
        """Prune if it is time to."""
        import torch

        self._step += 1
        step = int(self._step)
        if step == self._last or (step < self._last and step % self._config.interval == 0):
            share = sparsity_after(self._config.sparsity, step / self._last)
            for keep, now in zip(self._keeps, self._kept(share), strict=True):
                keep &= now
        with torch.no_grad():
            for weight, keep in zip(self._weights, self._keeps, strict=True):
                weight.parameter.masked_fill_(~keep, 0.0)

    def tensors(self) -> dict[str, Tensor]:
        """Return the number of steps taken, what is kept and the mean squares."""
        return {
            "step": self._step,
            **{f"keep/{i}": keep for i, keep in enumerate(self._keeps)},
            **{f"squares/{i}": squares for i, squares in enumerate(self._squares)},
        }

    def reached(self) -> bool:
        """Return whether the sparsity is reached."""
        return int(self._step) >= self._last

    def not_reached(self) -> dict[str, Any]:
        """Return a note of weights that the training has not met, whose scores are made up."""
        from zoopress.models.weights import as_matrix
        from zoopress.techniques.scoring import unreached_rows

        found = {}
        for weight, squares in zip(self._weights, self._squares, strict=False):
            unknown = unreached_rows(weight, as_matrix(squares, weight.output_axis))
            if weight.kind != "embedding" and bool(unknown.any()):
                found[weight.name] = round(float(unknown.double().mean()), 4)
        return {"not_reached_by_training": found} if found else {}

    def _kept(self, sparsity: float) -> list[Tensor]:
        scores = [self._score(i) for i in range(len(self._weights))]
        if self._config.scope == "global":
            return smallest_pruned(scores, sparsity)
        return [smallest_pruned([score], sparsity)[0] for score in scores]

    def _known_squares(self, index: int) -> Tensor:
        """Return the mean squares of a weight [rows, columns]; where no sample came, their mean.

        Nothing is known of an expert or a token that the training has not met, not that it is
        worthless.
        """
        from zoopress.models.weights import as_matrix
        from zoopress.techniques.scoring import unreached_rows

        matrices = [
            as_matrix(squares, weight.output_axis)
            for squares, weight in zip(self._squares, self._weights, strict=True)
        ]
        own = matrices[index]
        unknown = unreached_rows(self._weights[index], own)
        if not bool(unknown.any()):
            return own
        like = matrices if bool(unknown.all()) else [own]
        count = sum(int(squares.count_nonzero()) for squares in like)
        mean = sum(float(squares.sum()) for squares in like) / count if count else 1.0
        return own.masked_fill(unknown[:, None], mean)

    def _score(self, index: int) -> Tensor:
        from zoopress.models.weights import as_matrix
        from zoopress.techniques.scoring import weight_scores

        weight, keep = self._weights[index], self._keeps[index]

        def statistic(name: str, weight: Weight) -> Tensor:
            return self._known_squares(index)

        score = weight_scores(self._criterion, weight, self._seed, statistic)
        if self._config.per_bit:
            score = score / weight.from_matrix(place_bits(as_matrix(keep, weight.output_axis)))
        # What is gone stays gone, even beside weights whose score is as low as any.
        return score.masked_fill(~keep, float("-inf"))


class GradualPruning(Technique[GradualPruningConfig]):
    """Prune weights little by little while a teacher trains the others."""

    name = "gradual_pruning"
    family = "pruning"
    config_type = GradualPruningConfig
    needs = Distillation.needs
    timed = False

    def effects(self) -> Effects:
        """Require float weights; add masks."""
        return Effects(requires=self.config.properties(), adds=frozenset({MASKS}))

    def apply(self, model: Model, context: Context) -> Outcome:
        """Train, prune meanwhile, and mask what was pruned."""
        config, weights = self.config, self.config.select(model)
        criterion: Criterion[Any] = config.criterion.make(context.plugins)
        used: list[RisingSparsity] = []

        def constrain(steps: int) -> RisingSparsity:
            used.append(RisingSparsity(weights, steps, config, criterion, context.seed))
            return used[-1]

        within = replace(context, constrain=constrain)
        trained = Distillation(config.training).apply(model, within)
        pruned = 0
        for weight in weights:
            keep = weight.parameter.detach() != 0
            model.mask(weight, keep)
            pruned += int((~keep).sum())
        reached = pruned / sum(weight.parameter.numel() for weight in weights)
        names = [weight.name for weight in weights]
        return Outcome(
            touched=list(dict.fromkeys([*names, *trained.touched])),
            claims=[
                Claim(
                    "sparsity",
                    config.sparsity,
                    reached,
                    unit=len(weights) / sum(weight.parameter.numel() for weight in weights),
                )
            ],
            notes={**trained.notes, **(used[-1].not_reached() if used else {})},
        )

    def cards(self) -> Sequence[str]:
        """Return the teacher's card, if it is another than the model's own."""
        return Distillation(self.config.training).cards()

    def training_work(self, training: int, validation: int) -> tuple[int, int]:
        """Return what the training does."""
        return Distillation(self.config.training).training_work(training, validation)

    def working_bytes(self, total: int, largest: int) -> int:
        """Return room for the training, mean squares, masks, scores and their order."""
        return Distillation(self.config.training).working_bytes(total, largest) + 6 * total


@hookimpl
def zoopress_techniques() -> list[type[GradualPruning]]:
    """Register the technique."""
    return [GradualPruning]
