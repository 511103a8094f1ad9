"""Ask a technique, and check that it answers as its contract says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING, Any, get_args

from zoopress.errors import PluginError
from zoopress.interface import not_plain, shown
from zoopress.techniques.technique import (
    Activations,
    Claim,
    Context,
    Effects,
    Kind,
    Outcome,
    Technique,
    float_weights,
)

if TYPE_CHECKING:
    from zoopress.models.model import Model


def effects_of(technique: Technique[Any]) -> Effects:
    """Return what a technique says that it requires, adds and destroys.

    Raises:
        PluginError: if that is something else than `Effects` of frozensets of strings.
    """
    effects = technique.effects()
    if not isinstance(effects, Effects):
        raise _wrong(technique, "effects()", "zoopress.Effects", shown(effects))
    for name in ("requires", "adds", "destroys"):
        properties = getattr(effects, name)
        if not isinstance(properties, frozenset) or not all(
            isinstance(each, str) for each in properties
        ):
            raise _wrong(
                technique, "effects()", f"a frozenset of strings as '{name}'", shown(properties)
            )
    if effects.activations not in get_args(Activations):
        expected = f"one of {', '.join(get_args(Activations))} as 'activations'"
        raise _wrong(technique, "effects()", expected, shown(effects.activations))
    return effects


def applied(technique: Technique[Any], model: Model, context: Context) -> Outcome:
    """Let a technique change a model; what it set in the model counts as touched.

    Raises:
        StageError: if the technique cannot do its work on this model.
        PluginError: if it returns something else than an `Outcome` that can be stored.
    """
    before = set(model.updated)
    with folding(technique, model):
        outcome = technique.apply(model, context)
    if not isinstance(outcome, Outcome):
        raise _wrong(technique, "apply()", "zoopress.Outcome", shown(outcome))
    touched = outcome.touched
    if not _several(touched) or not all(isinstance(name, str) for name in touched):
        raise _wrong(technique, "apply()", "names as 'touched', a list of str", shown(touched))
    if not _several(outcome.claims):
        raise _wrong(technique, "apply()", "zoopress.Claim in a list", shown(outcome.claims))
    if not isinstance(outcome.notes, Mapping):
        raise _wrong(technique, "apply()", "a dict as 'notes'", shown(outcome.notes))
    for claim in outcome.claims:
        figures = (getattr(claim, name, None) for name in ("requested", "reached", "tolerance"))
        if not isinstance(claim, Claim) or not all(isinstance(x, (int, float)) for x in figures):
            raise _wrong(technique, "apply()", "zoopress.Claim of plain numbers", shown(claim))
    if (wrong := not_plain(outcome.notes, "notes")) is not None:
        raise _wrong(technique, "apply()", "plain data as 'notes', as JSON has it", wrong)
    said = set(touched)
    unsaid = [name for name in model.updated if name not in before and name not in said]
    return replace(outcome, touched=[*touched, *unsaid]) if unsaid else outcome


def folding(technique: Technique[Any], model: Model) -> AbstractContextManager[None]:
    """Return within what a model has ordinary weights, if a technique works on those."""
    wanted = technique.effects().requires & set(map(float_weights, get_args(Kind)))
    return model.folded() if technique.folds and wanted else nullcontext()


def _several(answer: object) -> bool:
    return isinstance(answer, Sequence) and not isinstance(answer, str)


def _wrong(technique: Technique[Any], what: str, expected: str, found: str) -> PluginError:
    kind = type(technique)
    return PluginError(
        f"The technique {getattr(kind, 'name', kind.__name__)!r} ({kind.__module__}."
        f"{kind.__qualname__}): {what} must return {expected}; it returned {found}. Repair it, or "
        "leave its plugin out with ZOOPRESS_BLOCK_PLUGINS."
    )
