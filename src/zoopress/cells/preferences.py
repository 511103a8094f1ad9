"""Which of two stages should come first, where both orders are possible.

Each preference follows from what stages say of themselves, so that it holds for techniques that
nobody here knows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from zoopress.recipes import Stage
from zoopress.techniques import MASKS, Technique


class _Preference(NamedTuple):
    """A stage that `first` tells should come before one that `second` tells."""

    first: Callable[[Stage], bool]
    second: Callable[[Stage], bool]
    reason: str


def preferences_against(stages: Sequence[Stage]) -> list[str]:
    """Return the reason for each pair of stages that would better stand the other way round."""
    found = [
        preference.reason.format(first=later.name, second=earlier.name)
        for position, earlier in enumerate(stages)
        for later in stages[position + 1 :]
        for preference in _PREFERENCES
        if preference.first(later)
        and preference.second(earlier)
        # Otherwise they would be a reason to swap two stages that are alike in this.
        and not (preference.first(earlier) and preference.second(later))
    ]
    last = max((i for i, stage in enumerate(stages) if _trains(stage)), default=None)
    if last is not None and stages[last].technique.family != "transfer":
        found += [
            f"What {stages[last].name} teaches, {stage.name} takes away again, and nothing after "
            "it trains."
            for stage in stages[last + 1 :]
            if _removes(stage)
        ]
    return found


def _any(stage: Stage, told: Callable[[Technique[Any]], bool]) -> bool:
    return any(told(technique) for technique in stage.techniques)


def _resizes(stage: Stage) -> bool:
    return _any(stage, lambda each: each.effects().activations == "resized")


def _packs(stage: Stage) -> bool:
    """Return whether it leaves weights that are no longer floating point."""
    return _any(stage, lambda each: any("float" in item for item in each.effects().destroys))


def _masks(stage: Stage) -> bool:
    return _any(stage, lambda each: MASKS in each.effects().adds)


def _works_on_weights(stage: Stage) -> bool:
    """Return whether it works on each weight for itself, in its present size."""
    return not _resizes(stage) and _any(stage, lambda each: bool(each.effects().requires))


def _folds(stage: Stage) -> bool:
    return stage.technique.family == "redesign" and not _resizes(stage)


def _codes(stage: Stage) -> bool:
    return stage.technique.family == "coding"


def _trains(stage: Stage) -> bool:
    return "training" in stage.technique.needs or stage.recovery is not None


def _removes(stage: Stage) -> bool:
    """Return whether it takes something away that only training brings back."""
    return (_resizes(stage) or _masks(stage)) and not _trains(stage)


_PREFERENCES = (
    _Preference(
        _resizes,
        lambda stage: _works_on_weights(stage) and not _folds(stage),
        "What {first} removes need not be worked on by {second} before.",
    ),
    _Preference(
        _folds,
        lambda stage: _packs(stage) or _masks(stage) or _resizes(stage),
        "{second} should see the weights that {first} leaves: folding changes their sizes.",
    ),
    _Preference(
        lambda stage: not _codes(stage),
        _codes,
        "{second} stores what it is given, so it is measured for nothing before {first}.",
    ),
)
