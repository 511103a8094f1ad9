"""The plan: a card and a recipe, checked against each other before anything is computed."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import permutations
from typing import NamedTuple

from zoopress.cards import Card
from zoopress.cells.preferences import preferences_against
from zoopress.errors import PlanError
from zoopress.recipes import Recipe, Stage
from zoopress.techniques import ACTIVATION_RANGES, INITIAL_PROPERTIES, Scope, effects_of

_MOST_STAGES_TO_REORDER = 7


@dataclass(frozen=True)
class Plan:
    """Stages that can run on a card's model, in this order."""

    card: Card
    recipe: Recipe
    advice: tuple[str, ...] = ()
    """What another order would do better, each with its reason."""

    @property
    def stages(self) -> tuple[Stage, ...]:
        return self.recipe.stages


def make_plan(card: Card, recipe: Recipe) -> Plan:
    """Check that every stage finds what it needs, and that none undoes another's work.

    Raises:
        PlanError: with the reason, and an order that works if there is one.
    """
    for position, stage in enumerate(recipe.stages, start=1):
        needs = frozenset[str]().union(*(technique.needs for technique in stage.techniques))
        if needs & {"calibration", "training"} and card.data is None:
            raise PlanError(
                f"Recipe {recipe.name!r}, stage {position} ({stage.name}) needs "
                f"{min(needs & {'calibration', 'training'})} data, "
                f"but card {card.name!r} has no 'data'. Give the card a 'data' section, for "
                "example 'data: {file: inputs.safetensors}'."
            )
    problem = _order_problem(recipe.stages)
    if problem:
        working = _working_order(recipe.stages)
        advice = (
            f"This order works: {', '.join(working)}."
            if working
            else "No order of these stages works; leave one out, or narrow what they select with "
            "'kinds', 'include' and 'exclude'."
        )
        raise PlanError(f"Recipe {recipe.name!r}: {problem} {advice}")
    return Plan(card, recipe, _advice(recipe.stages))


class _Act(NamedTuple):
    """Who did something to a property, and of which weights."""

    who: str
    scope: Scope


def _order_problem(stages: tuple[Stage, ...]) -> str | None:
    """Say why stages cannot run in this order, or None.

    A requirement is refused only where patterns tell that it surely is not met; the model itself
    decides the rest, see `zoopress.cells.feasibility`. What may be undone is refused in any case.
    """
    known = set(INITIAL_PROPERTIES)
    removed: dict[str, list[_Act]] = {}
    added: dict[str, list[_Act]] = {}
    for position, stage in enumerate(stages, start=1):
        for technique in stage.techniques:
            effects, scope = effects_of(technique), technique.scope()
            here = f"stage {position} ({technique.name})"
            for item in sorted(effects.requires):
                if item not in known and item not in removed:
                    return f"{here} works on {item}, but no earlier stage makes any."
                for culprit in removed.get(item, ()):
                    if culprit.scope.surely_covers(scope):
                        return f"{here} works on {item}, but {culprit.who} leaves none{_of(scope)}."
            for item in sorted(effects.destroys):
                for maker in added.get(item, ()):
                    if not maker.scope.surely_misses(scope):
                        return f"{here} would discard the {item} that {maker.who} made."
            if effects.activations != "kept" and (ranges := added.get(ACTIVATION_RANGES)):
                return (
                    f"{here} changes the activations whose ranges {ranges[0].who} holds, so that "
                    "these would no longer be right."
                )
            for item in effects.destroys:
                removed.setdefault(item, []).append(_Act(here, scope))
            for item in effects.adds:
                removed.pop(item, None)
                added.setdefault(item, []).append(_Act(here, scope))
                known.add(item)
    return None


def _of(scope: Scope) -> str:
    return "" if scope.include == ("*",) else f" of those that match {list(scope.include)}"


def _working_order(stages: tuple[Stage, ...]) -> list[str] | None:
    """Name the stages in the best order in which they can run, if there is one."""
    best = _best_order(stages)
    return None if best is None else _named(stages, best)


def _best_order(stages: tuple[Stage, ...]) -> tuple[int, ...] | None:
    """Return the possible order that goes against fewest preferences, the closest of those."""
    if len(stages) > _MOST_STAGES_TO_REORDER:
        return None
    possible = [
        order
        for order in permutations(range(len(stages)))
        if _order_problem(tuple(stages[i] for i in order)) is None
    ]

    def cost(order: tuple[int, ...]) -> tuple[int, int, tuple[int, ...]]:
        against = preferences_against([stages[i] for i in order])
        return len(against), _inversions(order), order

    return min(possible, key=cost, default=None)


def _advice(stages: tuple[Stage, ...]) -> tuple[str, ...]:
    """Say which order would be better than this one, which works, and why."""
    against = preferences_against(stages)
    best = _best_order(stages) if against else None
    if best is None:
        return ()
    left = set(preferences_against([stages[i] for i in best]))
    reasons = [reason for reason in against if reason not in left]
    if not reasons:
        return ()
    names = ", ".join(_named(stages, best))
    return (f"This order works; better is: {names}. {' '.join(dict.fromkeys(reasons))}",)


def _named(stages: tuple[Stage, ...], order: tuple[int, ...]) -> list[str]:
    names = [stage.name for stage in stages]
    # A technique that stands there twice is told apart by its present position.
    return [
        f"{names[i]} (now stage {i + 1})" if names.count(names[i]) > 1 else names[i] for i in order
    ]


def _inversions(order: tuple[int, ...]) -> int:
    return sum(a > b for i, a in enumerate(order) for b in order[i + 1 :])
