"""The plan: a card and a recipe, checked against each other before anything is computed."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import permutations

from zoopress.cards import Card
from zoopress.errors import PlanError
from zoopress.recipes import Recipe, Stage
from zoopress.techniques import INITIAL_PROPERTIES

_MOST_STAGES_TO_REORDER = 7


@dataclass(frozen=True)
class Plan:
    """Stages that can run on a card's model, in this order."""

    card: Card
    recipe: Recipe

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
    return Plan(card, recipe)


def _order_problem(stages: tuple[Stage, ...]) -> str | None:
    """Say why stages cannot run in this order, or None."""
    present = set(INITIAL_PROPERTIES)
    removed: dict[str, str] = {}  # property -> the stage that took it away
    added: dict[str, str] = {}  # property -> the stage that brought it
    steps = [
        (position, technique)
        for position, stage in enumerate(stages, start=1)
        for technique in stage.techniques
    ]
    for position, technique in steps:
        effects = technique.effects()
        here = f"stage {position} ({technique.name})"
        missing = sorted(effects.requires - present)
        if missing:
            culprit = removed.get(missing[0])
            why = f"{culprit} leaves none" if culprit else "no earlier stage makes any"
            return f"{here} works on {missing[0]}, but {why}."
        undone = sorted(effects.destroys & added.keys())
        if undone:
            return f"{here} would discard the {undone[0]} that {added[undone[0]]} made."
        for item in effects.destroys & present:
            removed[item] = here
        present -= effects.destroys
        present |= effects.adds
        added.update(dict.fromkeys(effects.adds, here))
    return None


def _working_order(stages: tuple[Stage, ...]) -> list[str] | None:
    """Name the stages in the closest order in which they can run, if there is one."""
    if len(stages) > _MOST_STAGES_TO_REORDER:
        return None
    possible = [
        order
        for order in permutations(range(len(stages)))
        if _order_problem(tuple(stages[i] for i in order)) is None
    ]
    if not possible:
        return None
    best = min(possible, key=lambda order: (_inversions(order), order))
    names = [stage.name for stage in stages]
    # A technique that stands there twice is told apart by its present position.
    return [
        f"{names[i]} (now stage {i + 1})" if names.count(names[i]) > 1 else names[i] for i in best
    ]


def _inversions(order: tuple[int, ...]) -> int:
    return sum(a > b for i, a in enumerate(order) for b in order[i + 1 :])
