"""Neuron pruning: whole neurons and channels go, and every tensor they touch shrinks.

Sources: Li et al. 2017, arXiv:1608.08710 (filters); Fang et al. 2023, DepGraph, arXiv:2301.12900
(groups of everything that shrinks together).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from fnmatch import fnmatchcase
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, model_validator

from zoopress.errors import StageError
from zoopress.plugins import hookimpl
from zoopress.techniques import (
    Claim,
    Config,
    Criterion,
    Effects,
    Outcome,
    Technique,
    UnitCriterion,
    float_weights,
    weights_below,
)

if TYPE_CHECKING:
    from torch import Tensor, nn

    from zoopress.dependencies import Dependencies, NeuronGroup
    from zoopress.models.model import Model
    from zoopress.techniques import Context


_KINDS = ("linear", "conv", "recurrent")
_HOLDERS = (*_KINDS, "experts", "parameter")
"""Kinds of what can have neurons: experts, for one, often are bare parameters of their module."""

_NORMS = {"l1": "magnitude", "l2": "l2_norm"}
"""What the key `norm` chose, before there were criteria."""


class NeuronPruningConfig(Config):
    """Names are those of the layers whose outputs the neurons are."""

    sparsity: float = Field(gt=0, lt=1, description="share of the prunable neurons to remove")
    scope: Literal["layer", "global"] = Field(
        default="layer", description="whether each layer, or all together, reach the sparsity"
    )
    criterion: UnitCriterion = Field(
        default=UnitCriterion(name="l2_norm"),
        description="what tells which neurons to keep: a name, or {name: NAME, …} with options",
    )
    multiple_of: int = Field(
        default=1, ge=1, description="round the neurons a layer keeps up to a multiple of this"
    )
    min_neurons: int = Field(default=1, ge=1, description="fewest neurons a layer keeps")
    include: tuple[str, ...] = Field(
        default=("*",), description="shell patterns; a layer's name must match one"
    )
    exclude: tuple[str, ...] = Field(
        default=(), description="shell patterns; a layer's name must match none"
    )

    @model_validator(mode="before")
    @classmethod
    def _old_name(cls, given: Any) -> Any:
        if isinstance(given, dict) and "criterion" not in given and given.get("norm") in _NORMS:
            options = {key: value for key, value in given.items() if key != "norm"}
            return {**options, "criterion": _NORMS[given["norm"]]}
        return given

    def selects(self, name: str) -> bool:
        """Return whether the patterns select a group of this name."""
        wanted = any(fnmatchcase(name, pattern) for pattern in self.include)
        return wanted and not any(fnmatchcase(name, pattern) for pattern in self.exclude)

    def kept(self, size: int, removed: int, multiple_of: int = 1) -> int:
        """Return how many of `size` neurons stay if `removed` should go.

        Args:
            size: how many there are.
            removed: how many should go.
            multiple_of: what the model's kernels want besides the config.
        """
        step = math.lcm(self.multiple_of, multiple_of)
        multiple = math.ceil((size - removed) / step) * step
        return min(size, max(multiple, self.min_neurons))


def removed_counts(scores: Sequence[Tensor], weights: Sequence[int], sparsity: float) -> list[int]:
    """Return how many neurons each layer loses if those that score least over all layers go.

    Args:
        scores: [neurons] of each layer, comparable between layers.
        weights: how many neurons stand behind each score of a layer.
        sparsity: share of all neurons to remove; at least one of each layer stays.
    """
    ranked = sorted(
        (score, layer)
        for layer, values in enumerate(scores)
        for score in values.sort().values[:-1].tolist()
    )
    goal = math.ceil(
        sparsity * sum(len(s) * w for s, w in zip(scores, weights, strict=True)) - 1e-9
    )
    counts = [0] * len(scores)
    for _, layer in ranked:
        if goal <= 0:
            break
        counts[layer] += 1
        goal -= weights[layer]
    return counts


class NeuronPruning(Technique[NeuronPruningConfig]):
    """Remove the neurons of smallest norm, or those that another criterion is for."""

    name = "neuron_pruning"
    family = "pruning"
    config_type = NeuronPruningConfig
    needs = frozenset({"calibration"})

    def effects(self) -> Effects:
        """Require float weights, and leave fewer neurons."""
        return Effects(
            requires=frozenset(map(float_weights, _KINDS)),
            scope=weights_below(self.config.include, self.config.exclude),
            activations="resized",
        )

    def refusal(self, model: Model) -> str | None:
        """Refuse a model without layers of neurons that are still floating point."""
        weights = list(model.weights(_HOLDERS))
        if any(map(self.config.selects, (n for w in weights for n in (w.path, w.name) if n))):
            return None
        there = list(dict.fromkeys(weight.path or weight.name for weight in weights))
        return (
            f"No layer with float weights matches include {list(self.config.include)}, exclude "
            f"{list(self.config.exclude)}. Such layers of this model: {there[:8] or 'none'}."
        )

    def apply(self, model: Model, context: Context) -> Outcome:
        """Find the neurons with inputs that reach all they can; rank, check and remove them."""
        from zoopress.dependencies import Removal, exact_removal, find_dependencies

        context.progress("tracing which neurons depend on each other")
        runs = _runs(model, context)
        found = find_dependencies(model.module, *runs)
        groups = self._selected(found)
        chosen = self._choose(model, groups, context)
        context.progress("checking what can be removed exactly")
        all_outputs = [partial(_every_output, model.module, run) for run in runs]
        kept, wrong = exact_removal(model.module, groups, chosen, *all_outputs)
        if not kept:
            raise StageError(_nothing_exact(wrong, model))
        touched = Removal(model.module, groups, kept).make(model)
        # What cannot be removed without harm was not prunable.
        prunable = [group for group in groups if group.name not in wrong]
        before = sum(group.size for group in prunable)
        removed = sum(len(indices) for indices in kept.values())
        planned = sum(map(len, chosen.values())) / sum(group.size for group in groups)
        return Outcome(
            touched=touched,
            claims=[
                Claim(
                    "neurons removed",
                    self.config.sparsity,
                    removed / before,
                    # `multiple_of` and `min_neurons` may ask for less than the sparsity.
                    max(0.01, 1.001 - planned / self.config.sparsity),
                    unit=len({group.cluster for group in prunable}) / before,
                )
            ],
            notes={
                "groups": len(prunable),
                "neurons_before": before,
                "neurons_after": before - removed,
                "fixed": dict(Counter(found.fixed.values()).most_common()),
                "skipped": wrong,
                "unreached": list(found.unreached),
                "kept_for_unreached": found.held,
            },
        )

    def working_bytes(self, total: int, largest: int) -> int:
        """Return room for the smaller tensors and for trying them out."""
        return 2 * total

    def _selected(self, found: Dependencies) -> list[NeuronGroup]:
        """Return the groups that the patterns select, clusters as a whole.

        Raises:
            StageError: if there are none.
        """
        barred = {group.cluster for group in found.groups if not self.config.selects(group.name)}
        selected = [group for group in found.groups if group.cluster not in barred]
        if selected:
            return selected
        if found.groups:
            raise StageError(
                f"No prunable layer matches include {list(self.config.include)}, exclude "
                f"{list(self.config.exclude)}. Prunable here: "
                f"{[group.name for group in found.groups][:8]}."
            )
        reasons = Counter(found.fixed.values()).most_common(3)
        because = "; ".join(f"{reason} ({count} layers)" for reason, count in reasons)
        raise StageError(
            "This model has no neurons that can be removed: no layer's outputs are all consumed by "
            f"weights that can shrink with them. Most common reasons: {because or 'no layers'}. "
            "Prune single weights instead (magnitude_pruning) or put this stage before those that "
            "pack or tie weights."
        )

    def _choose(
        self, model: Model, groups: Sequence[NeuronGroup], context: Context
    ) -> Mapping[str, Tensor]:
        """Return the neurons to remove, by group.

        Raises:
            StageError: if rounding leaves none, or some cannot be scored.
        """
        from zoopress.techniques.scoring import in_groups, measured, unit_scores

        criterion: Criterion[Any] = self.config.criterion.make(context.plugins)
        statistic = measured(criterion, context, model, in_groups(model, groups))
        scores = unit_scores(criterion, model, groups, context.seed, statistic)
        counts = self._counts(groups, scores)
        steps: dict[int, int] = {}  # groups of a cluster lose equally many
        for group in groups:
            steps[group.cluster] = math.lcm(steps.get(group.cluster, 1), group.multiple_of)
        chosen = {}
        for group in groups:
            removed = group.size - self.config.kept(
                group.size, counts[group.cluster], steps[group.cluster]
            )
            if removed:
                chosen[group.name] = scores[group.name].argsort(stable=True)[:removed]
        if not chosen:
            raise StageError(
                f"sparsity {self.config.sparsity} with multiple_of {self.config.multiple_of} and "
                f"min_neurons {self.config.min_neurons} removes nothing from layers of "
                f"{sorted({group.size for group in groups})} neurons; raise the first or lower "
                "the others."
            )
        return chosen

    def _counts(
        self, groups: Sequence[NeuronGroup], scores: Mapping[str, Tensor]
    ) -> dict[int, int]:
        """Return how many neurons each group of a cluster should lose, by cluster."""
        import torch

        if self.config.scope == "layer":
            sparsity = self.config.sparsity
            return {g.cluster: min(math.ceil(sparsity * g.size - 1e-9), g.size - 1) for g in groups}
        clusters: dict[int, list[Tensor]] = {}
        for group in groups:
            clusters.setdefault(group.cluster, []).append(scores[group.name].sort().values)
        profiles = [torch.stack(sorted_).mean(dim=0) for sorted_ in clusters.values()]
        sizes = [len(sorted_) for sorted_ in clusters.values()]
        counts = removed_counts(profiles, sizes, self.config.sparsity)
        return dict(zip(clusters, counts, strict=True))


def _runs(model: Model, context: Context) -> list[Callable[[], Tensor]]:
    """Return runs of the model that reach what calibration data can reach of it."""
    from zoopress.dependencies import other_inputs, reaching

    batches = context.batches()
    first, *others = (
        partial(context.call, model.module, inputs)
        for inputs in (batches[0], *other_inputs(batches))
    )
    return reaching(model.module, first, others)


def _every_output(module: nn.Module, run: Callable[[], Tensor]) -> list[Tensor]:
    """Return all that a run lets a model return, but for what it hands to itself."""
    from zoopress.tasks import is_cache, named_outputs, outputs_of

    with outputs_of(module) as calls:
        main = run()
    named = [(name, tensor) for each in calls for name, tensor in named_outputs(each).items()]
    return [main, *(tensor for name, tensor in named if not is_cache(name))]


def _nothing_exact(wrong: Mapping[str, str], model: Model) -> str:
    """Word the error when no group can be removed without harm."""
    name, problem = next(iter(wrong.items()))
    several = f" and {len(wrong) - 1} more" if len(wrong) > 1 else ""
    kind = type(model.module.get_submodule(name))
    said = (
        f"Removing neurons of {name!r}{several} would not be exact: {problem}. The model was left "
        "as it was. "
    )
    if _computes_its_own(kind):
        return (
            f"{said}{kind.__name__} makes something of its weight in a forward of its own, such as "
            "to standardize it, which may follow from its size: prune single weights instead "
            "(magnitude_pruning)."
        )
    return (
        f"{said}A kernel may want sizes in steps: try 'multiple_of: 16'. Else the model's code "
        f"relies on the layer's size: leave it out with 'exclude: [{name!r}]'."
    )


def _computes_its_own(kind: type) -> bool:
    """Tell whether a class is below one of torch's layers and computes something else."""
    base: Any = next(
        (k for k in kind.__mro__ if k.__module__.startswith("torch.nn.modules.")), kind
    )
    return getattr(kind, "forward", None) is not getattr(base, "forward", None)


@hookimpl
def zoopress_techniques() -> list[type[NeuronPruning]]:
    """Register the technique."""
    return [NeuronPruning]
