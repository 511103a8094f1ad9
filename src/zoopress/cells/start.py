"""What a chain starts from: the properties of a card's model before its first stage.

A compressed model has been through stages already. Each said what it does, so its lineage tells
what is left, as if its chain went on; whether it has masks is seen from how its tensors are stored.
A stage whose technique is not installed here tells nothing: what it packed is then found only by
the stage that meets it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from pydantic import ValidationError

from zoopress.artifacts.forms import AnyEntry, CodesEntry, Masked, Zeros
from zoopress.techniques import (
    EVERYTHING,
    INITIAL_PROPERTIES,
    MASKS,
    Effects,
    Scope,
    Technique,
    effects_of,
)

if TYPE_CHECKING:
    from zoopress.artifacts.manifest import Manifest
    from zoopress.plugins import Plugins


class Act(NamedTuple):
    """Who did something to a property, and of which weights."""

    who: str
    scope: Scope


@dataclass
class Properties:
    """Properties that stages rely on, and which stages brought or took each.

    Attributes:
        known: what the model has, or had.
        added: the stages that brought a property.
        removed: the stages that took a property away and were not made good since.
    """

    known: set[str] = field(default_factory=lambda: set(INITIAL_PROPERTIES))
    added: dict[str, list[Act]] = field(default_factory=dict)
    removed: dict[str, list[Act]] = field(default_factory=dict)

    def copy(self) -> Properties:
        """Return the same, to be changed."""
        added = {item: list(acts) for item, acts in self.added.items()}
        removed = {item: list(acts) for item, acts in self.removed.items()}
        return Properties(set(self.known), added, removed)

    def apply(self, effects: Effects, scope: Scope, who: str) -> None:
        """Let a stage take and bring what it says.

        Args:
            effects: what it says.
            scope: the weights that this is about.
            who: what the stage is called, for people.
        """
        for item in effects.destroys:
            self.removed.setdefault(item, []).append(Act(who, scope))
        for item in effects.adds:
            self.removed.pop(item, None)
            self.added.setdefault(item, []).append(Act(who, scope))
            self.known.add(item)


def start_of(manifest: Manifest | None, plugins: Plugins) -> Properties:
    """Return what a model starts with: everything float and nothing masked, if it is a plain one.

    Args:
        manifest: of a compressed model, None of a plain one.
        plugins: what techniques there are.
    """
    start = Properties()
    if manifest is None:
        return start
    for position, ran in enumerate(manifest.lineage, start=1):
        recovery = ran.get("recovery")
        for item in (ran, recovery if isinstance(recovery, Mapping) else {}):
            technique = _technique(item, plugins)
            if technique is not None:
                who = f"the source's stage {position} ({technique.name})"
                start.apply(effects_of(technique), technique.scope(), who)
    if any(map(_is_pruned, manifest.tensors.values())):
        start.known.add(MASKS)
        start.removed.pop(MASKS, None)
        start.added.setdefault(MASKS, [Act("the card's source", EVERYTHING)])
    else:
        start.known.discard(MASKS)
        start.added.pop(MASKS, None)
    return start


def _technique(ran: Mapping[str, Any], plugins: Plugins) -> Technique[Any] | None:
    """Return a stage of a lineage as it ran, None if nobody here can tell."""
    kind = plugins.techniques.get(str(ran.get("technique")))
    if kind is None:
        return None
    names = kind.config_type.model_fields
    try:
        config = kind.config_type.model_validate({k: v for k, v in ran.items() if k in names})
    except ValidationError:  # of another version, or a stranger's
        return None
    return kind(config)


def _is_pruned(entry: AnyEntry) -> bool:
    return isinstance(entry, (Masked, Zeros)) or (isinstance(entry, CodesEntry) and entry.zeros)
