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
    from zoopress.statistics import Measured
    from zoopress.techniques.technique import Context

Statistic = Callable[[str, "Weight"], "Tensor"]
"""Returns a statistic of a weight by name, of a shape that broadcasts to its matrix [out, in]."""


def measured(
    criterion: Criterion[Any], context: Context, model: Model, weights: Iterable[Weight]
) -> Statistic | None:
    """Measure what a criterion has to know of weights; None if that is nothing.

    What no sample reached, as of an expert that nothing was sent to, is taken to be like the mean
    of what samples did: nothing is known of it, not that it is worthless.

    Raises:
        StageError: if there is no such statistic, or nothing to measure it on.
    """
    names = list(dict.fromkeys(name.partition(".")[0] for name in criterion.statistics))
    return measured_named(names, context, model, weights) if names else None


def measured_named(
    names: Sequence[str], context: Context, model: Model, weights: Iterable[Weight]
) -> Statistic:
    """Measure statistics by name, as `measured` does for a criterion.

    Raises:
        StageError: if there is no such statistic, or nothing to measure it on.
    """
    chosen = list(weights)
    found = dict(zip(names, context.statistics.measure(model, names, chosen), strict=True))

    def statistic(name: str, weight: Weight) -> Tensor:
        of, _, result = name.partition(".")
        own = known(found[of], weight, result or "value")
        if own is not None and not bool(own.isnan().any()):
            return own
        like = [] if own is None or bool(own.isnan().all()) else [own]
        if not like:
            every = (known(found[of], other, result or "value") for other in chosen)
            like = [values for values in every if values is not None]
        mean = _mean_known(like)
        if mean is None:
            return found[of][weight].spread(result or "value")  # says that nothing was seen
        return weight.matrix().new_full((1, 1), mean) if own is None else own.nan_to_num(mean)

    return statistic


def unreached_rows(weight: Weight, gradients: Tensor) -> Tensor:
    """Tell which rows of a weight no sample has reached, bool [rows], given sums of squares or so.

    A row of a layer without any gradient is that of a neuron that was asked and is dead. But all of
    a layer, all of an expert, or a token without any were never asked.

    Args:
        weight: what it is of.
        gradients: [rows, columns], 0 where none came.
    """
    dead = ~gradients.any(1)
    if weight.kind == "embedding":
        return dead
    experts = weight.parameter.shape[0] if weight.kind == "experts" else 1
    return dead.view(experts, -1).all(1).repeat_interleave(len(dead) // experts)


def known(measured: Measured, weight: Weight, result: str) -> Tensor | None:
    """Return a statistic spread over a weight, NaN where no sample came; None if none did at all.

    Raises:
        StageError: if the statistic is not defined for the weight.
    """
    layer = measured.get(weight)
    if layer is None:
        if measured.seen(weight) == 0 and not measured.is_unreached(weight):
            measured[weight]  # it is refused, and says why
        return None
    spread = layer.spread(result, unseen=float("nan"))
    if layer.whole is None:
        return spread
    return spread.masked_fill(unreached_rows(weight, spread)[:, None], float("nan"))


def _mean_known(values: Sequence[Tensor]) -> float | None:
    some = [value[~value.isnan()].float() for value in values]
    count = sum(value.numel() for value in some)
    return sum(float(value.sum()) for value in some) / count if count else None


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
