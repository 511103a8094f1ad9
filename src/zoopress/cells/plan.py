"""The plan: a card and a recipe, checked against each other before anything is computed."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import permutations

from zoopress.artifacts.card_model import manifest_of
from zoopress.cards import Card
from zoopress.cards.maker import card_maker, list_files
from zoopress.cells.preferences import preferences_against
from zoopress.cells.start import Properties, start_of
from zoopress.errors import PlanError, ZoopressError
from zoopress.plugins import Plugins
from zoopress.recipes import Recipe, Stage
from zoopress.techniques import ACTIVATION_RANGES, Scope, effects_of

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


def make_plan(card: Card, recipe: Recipe, start: Properties | None = None) -> Plan:
    """Check that every stage finds what it needs, and that none undoes another's work.

    Args:
        card: which model.
        recipe: which stages.
        start: what the model has before the first of them; that of a plain model by default.

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
    start = start or Properties()
    problem = _order_problem(recipe.stages, start)
    if problem:
        working = _working_order(recipe.stages, start)
        advice = (
            f"This order works: {', '.join(working)}."
            if working
            else "No order of these stages works; leave one out, or narrow what they select with "
            "'kinds', 'include' and 'exclude'."
        )
        if not working and (start.added or start.removed):
            advice += (
                f" {card.source!r} is a compressed model: what a stage of its own took away or "
                "made stays so. To do it differently, start from what it was made of."
            )
        raise PlanError(f"Recipe {recipe.name!r}: {problem} {advice}")
    return Plan(card, recipe, _advice(recipe.stages, start))


def plan_early(card: Card, recipe: Recipe, plugins: Plugins) -> Plan:
    """Check what can be checked before a card's files are fetched.

    A plain model's plan needs none. Where that is refused, the card's source is asked whether its
    model is compressed, which may have what the recipe needs; of such a one the settings are
    fetched, never the weights.

    Raises:
        PlanError: if the plan is refused.
    """
    try:
        return make_plan(card, recipe)
    except PlanError as error:
        if card_maker(card.scheme, plugins) is None:
            raise
        try:
            manifest = manifest_of(list_files(card, plugins, ["config"]).files)
        except ZoopressError:
            raise error from None  # one thing after the other
        if manifest is None:
            raise
        return make_plan(card, recipe, start_of(manifest, plugins))


def _order_problem(stages: tuple[Stage, ...], start: Properties) -> str | None:
    """Say why stages cannot run in this order, or None.

    A requirement is refused only where patterns tell that it surely is not met; the model itself
    decides the rest, see `zoopress.cells.feasibility`. What may be undone is refused in any case.
    """
    now = start.copy()
    for position, stage in enumerate(stages, start=1):
        for technique in stage.techniques:
            effects, scope = effects_of(technique), technique.scope()
            here = f"stage {position} ({technique.name})"
            for item in sorted(effects.requires):
                if item not in now.known and item not in now.removed:
                    return f"{here} works on {item}, but no earlier stage makes any."
                for culprit in now.removed.get(item, ()):
                    if culprit.scope.surely_covers(scope):
                        return f"{here} works on {item}, but {culprit.who} leaves none{_of(scope)}."
            for item in sorted(effects.destroys):
                for maker in now.added.get(item, ()):
                    if not maker.scope.surely_misses(scope):
                        return f"{here} would discard the {item} that {maker.who} made."
            outdated = effects.activations not in ("kept", "rounded")
            if outdated and (ranges := now.added.get(ACTIVATION_RANGES)):
                return (
                    f"{here} changes the activations whose ranges {ranges[0].who} holds, so that "
                    "these would no longer be right."
                )
            now.apply(effects, scope, here)
    return None


def _of(scope: Scope) -> str:
    return "" if scope.include == ("*",) else f" of those that match {list(scope.include)}"


def _working_order(stages: tuple[Stage, ...], start: Properties) -> list[str] | None:
    """Name the stages in the best order in which they can run, if there is one."""
    best = _best_order(stages, start)
    return None if best is None else _named(stages, best)


def _best_order(stages: tuple[Stage, ...], start: Properties) -> tuple[int, ...] | None:
    """Return the possible order that goes against fewest preferences, the closest of those."""
    if len(stages) > _MOST_STAGES_TO_REORDER:
        return None
    possible = [
        order
        for order in permutations(range(len(stages)))
        if _order_problem(tuple(stages[i] for i in order), start) is None
    ]

    def cost(order: tuple[int, ...]) -> tuple[int, int, tuple[int, ...]]:
        against = preferences_against([stages[i] for i in order])
        return len(against), _inversions(order), order

    return min(possible, key=cost, default=None)


def _advice(stages: tuple[Stage, ...], start: Properties) -> tuple[str, ...]:
    """Say which order would be better than this one, which works, and why."""
    against = preferences_against(stages)
    best = _best_order(stages, start) if against else None
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
