"""How a technique asks a criterion: what it sees of single weights, and of units of a group."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from zoopress.errors import StageError
from zoopress.techniques.criterion import Criterion, Evidence, checked

if TYPE_CHECKING:
    from torch import Tensor

    from zoopress.dependencies import Member, NeuronGroup
    from zoopress.models.model import Model
    from zoopress.models.weights import Weight
    from zoopress.techniques.technique import Context

Statistic = Callable[[str, "Weight"], "Tensor"]
"""Returns a statistic of a weight by name, of a shape that broadcasts to its matrix [out, in]."""


def measured(
    criterion: Criterion[Any], context: Context, model: Model, weights: Iterable[Weight]
) -> Statistic | None:
    """Measure what a criterion has to know of weights; None if that is nothing.

    Raises:
        StageError: if there is no such statistic, or nothing to measure it on.
    """
    names = list(dict.fromkeys(name.partition(".")[0] for name in criterion.statistics))
    if not names:
        return None
    found = dict(zip(names, context.statistics.measure(model, names, list(weights)), strict=True))

    def statistic(name: str, weight: Weight) -> Tensor:
        of, _, result = name.partition(".")
        return found[of][weight].spread(result or "value")

    return statistic


def weight_scores(
    criterion: Criterion[Any],
    weight: Weight,
    seed: int = 0,
    statistic: Statistic | None = None,
    pruned: Tensor | None = None,
) -> Tensor:
    """Return the score of each weight of a parameter, in the parameter's shape.

    Args:
        criterion: what scores.
        weight: the parameter.
        seed: the run's.
        statistic: where what the criterion declares in `statistics` comes from.
        pruned: bool, of the parameter's shape: what went before. It scores −∞, so it is the first
            to go again, beside others of any score.

    Raises:
        StageError: if it cannot be scored.
    """
    values = weight.matrix()
    known = _statistics(criterion, weight, statistic)
    evidence = Evidence(
        name=weight.name,
        module=weight.module,
        attribute=weight.attribute,
        role="weight",
        axes=weight.parameter.ndim,
        values=values,
        statistics={name: tensor.expand(values.shape) for name, tensor in known.items()},
        seed=seed,
    )
    scores = checked(criterion, criterion.weights(evidence), values.shape, weight.name)
    scores = weight.from_matrix(scores)
    return scores if pruned is None else scores.masked_fill(pruned, float("-inf"))


def unit_scores(
    criterion: Criterion[Any],
    model: Model,
    groups: Sequence[NeuronGroup],
    seed: int = 0,
    statistic: Statistic | None = None,
) -> dict[str, Tensor]:
    """Return the scores of each group's units, [units], by the group's name.

    Args:
        criterion: what scores.
        model: the model that the groups are of.
        groups: units, and every tensor that shrinks with them.
        seed: the run's.
        statistic: where what the criterion declares in `statistics` comes from.

    Raises:
        StageError: naming the groups that cannot be scored.
    """
    named = {place.name: weight for weight in model.weights() for place in weight.locations}
    scores: dict[str, Tensor] = {}
    refused: dict[str, str] = {}
    for group in groups:
        try:
            evidence = [
                _evidence(criterion, model, member, named, seed, statistic)
                for member in group.members
            ]
            found = criterion.units(evidence)
            scores[group.name] = checked(criterion, found, (group.size,), group.name)
        except StageError as error:
            refused[group.name] = str(error)
    if refused:
        first, reason = next(iter(refused.items()))
        raise StageError(
            f"The criterion {criterion.name!r} cannot score {len(refused)} of the {len(groups)} "
            f"prunable layers, such as {first!r}: {reason.rstrip('.')}. Leave them out with "
            f"'exclude: {list(refused)}', or choose another criterion."
        )
    return scores


def _evidence(
    criterion: Criterion[Any],
    model: Model,
    member: Member,
    named: Mapping[str, Weight],
    seed: int,
    statistic: Statistic | None,
) -> Evidence:
    from zoopress.models.edits import submodule, tensor_of

    module = submodule(model.module, member.path)
    tensor = tensor_of(module, member.tensor).detach().cpu()
    name = f"{member.path}.{member.tensor}" if member.path else member.tensor

    def by_unit(whole: Tensor) -> Tensor:
        part = whole.movedim(member.axis, 0)[member.index.flatten()]
        return part.reshape(len(member.index), -1)

    known: dict[str, Tensor] = {}
    weight = named.get(name)
    if weight is not None:
        shape = weight.matrix().shape
        for key, value in _statistics(criterion, weight, statistic).items():
            known[key] = by_unit(weight.from_matrix(value.expand(shape)).cpu())
    return Evidence(
        name=name,
        module=module,
        attribute=member.tensor,
        role=member.role,
        axes=tensor.ndim,
        values=by_unit(tensor),
        statistics=known,
        seed=seed,
    )


def _statistics(
    criterion: Criterion[Any], weight: Weight, statistic: Statistic | None
) -> dict[str, Tensor]:
    if criterion.statistics and statistic is None:
        raise StageError(lacking(criterion, criterion.statistics))
    return {name: statistic(name, weight) for name in criterion.statistics if statistic}


def in_groups(model: Model, groups: Iterable[NeuronGroup]) -> list[Weight]:
    """Return the weights, but for vectors, that hold a part of any unit of the groups."""
    held = {
        f"{member.path}.{member.tensor}" if member.path else member.tensor
        for group in groups
        for member in group.members
    }
    return [w for w in model.weights() if any(place.name in held for place in w.locations)]


def lacking(criterion: Criterion[Any], names: Sequence[str]) -> str:
    """Word the error that nothing here measures what a criterion has to know."""
    return (
        f"the criterion {criterion.name!r} has to know {', '.join(names)}, which this stage does "
        "not measure. Choose a criterion that looks at the weights alone, such as 'magnitude', or "
        "another technique."
    )
