"""The guard on quality: is a compressed model still like its original?

What the task gives decides. Where there are labels, how much of the task's metric is left: a model
that learned in a stage may answer otherwise than the original and be the better one. Where there
are none, whether the outputs are the original's: the labels that they give, and their direction. A
target of the recipe for a quantity takes the place of the guard on it: its bound is the user's
choice, and a gate holds the result to it. docs/decisions/0038-quality-guard.md says why these
bounds.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from zoopress.recipes import Recipe, Targets
from zoopress.results.stage_result import StageResult
from zoopress.units import show_number

MIN_COSINE = 0.9
MIN_LABEL_LOYALTY = 0.8
MAX_METRIC_DROP = 0.1
"""How much worse the metric may be, as a share of the original's."""

_LIFTED_BY = {
    "cosine": ("min_cosine",),
    "label_loyalty": ("min_label_loyalty",),
    "metric": ("max_metric_drop", "worst_metric"),
}


@dataclass(frozen=True)
class Judgement:
    """One quantity that a stage's result was judged by.

    Attributes:
        quantity: "cosine" or another measure, and of which output if there are several;
            "label_loyalty", or the name of the task's metric.
        value: what was measured; None if it was no number.
        bound: the worst value that is still like the original's.
        good: whether the value is within the bound.
        target: the recipe's target that would take the guard's place.
    """

    quantity: str
    value: float | None
    bound: float
    good: bool
    target: str

    def __str__(self) -> str:
        shown = "no number" if self.value is None else show_number(self.value, 4)
        return (
            f"{self.quantity.replace('_', ' ')} is {shown}, the bound {show_number(self.bound, 4)}"
        )


@dataclass(frozen=True)
class Quality:
    """What the guard says of a stage's result.

    Attributes:
        judged: by what, and how; empty if targets of the recipe took the guard's place.
        lifted: the targets that did.
    """

    judged: list[Judgement]
    lifted: list[str]

    @property
    def like_original(self) -> bool:
        """Whether nothing is beyond its bound."""
        return all(judgement.good for judgement in self.judged)

    @property
    def problem(self) -> str:
        """What is beyond its bound, in words; empty if nothing is."""
        return "; ".join(str(each) for each in self.judged if not each.good)

    @property
    def targets(self) -> list[str]:
        """The targets with which a recipe would say that what is beyond its bound is meant."""
        return [each.target for each in self.judged if not each.good]

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Quality:
        """Rebuild from `dataclasses.asdict`, also after it was JSON."""
        return cls([Judgement(**each) for each in data["judged"]], list(data["lifted"]))


def judge_quality(result: StageResult, targets: Targets) -> Quality:
    """Say whether a stage left the model like its original.

    Args:
        result: what was measured after it.
        targets: what the recipe holds it to.
    """
    fidelity = result.fidelity
    if result.metric is not None and result.metric_drop is not None:
        judgements = {"metric": _judge_metric(result, result.metric, result.metric_drop)}
    else:
        worst = fidelity.worst(MIN_COSINE)
        judgements = {
            "cosine": Judgement(
                worst.of_output,
                _finite(worst.value),
                MIN_COSINE,
                worst.value >= MIN_COSINE,
                "min_cosine",
            )
        }
        if fidelity.label_loyalty is not None:
            judgements["label_loyalty"] = _judge(
                "label_loyalty", fidelity.label_loyalty, MIN_LABEL_LOYALTY
            )
    set_by = {
        kind: [name for name in _LIFTED_BY[kind] if getattr(targets, name) is not None]
        for kind in judgements
    }
    return Quality(
        judged=[judgement for kind, judgement in judgements.items() if not set_by[kind]],
        lifted=[name for names in set_by.values() for name in names],
    )


def judge_stages(
    recipe: Recipe | Mapping[str, Any], results: Iterable[StageResult]
) -> list[Quality]:
    """Judge the results of a recipe's stages, each by the targets that it is held to.

    Args:
        recipe: the recipe, or what a report says of it.
        results: of its stages, in order.
    """
    if isinstance(recipe, Recipe):
        recipe = recipe.as_dict()
    shared, stages = recipe.get("targets", {}), recipe.get("stages", [])
    own = [stage.get("targets", {}) for stage in stages]
    return [
        judge_quality(result, Targets(**{**shared, **(own[i] if i < len(own) else {})}))
        for i, result in enumerate(results)
    ]


def _judge(quantity: str, value: float, bound: float) -> Judgement:
    return Judgement(quantity, _finite(value), bound, value >= bound, f"min_{quantity}")


def _judge_metric(result: StageResult, name: str, drop: float) -> Judgement:
    value = result.metrics[name]
    original = value - drop if result.lower_is_better else value + drop
    allowed = MAX_METRIC_DROP * abs(original)
    bound = original + allowed if result.lower_is_better else original - allowed
    # Differences of shares that are equal on paper differ in their last bits.
    return Judgement(name, _finite(value), bound, drop <= allowed + 1e-9, "max_metric_drop")


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
