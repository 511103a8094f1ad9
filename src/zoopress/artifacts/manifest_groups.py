"""Edits and forms of tensors in groups, as a manifest writes them.

What is the same in many places is written once, with a pattern of the places' names (`names.py`).
Patterns are expanded within bounds before anything else is done with them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any

from zoopress.artifacts.forms import AnyEntry
from zoopress.artifacts.names import expand, to_pattern
from zoopress.models.edit_records import AnyEdit, Keep, Pack

MAX_NAMES = 1 << 18
MAX_CHARACTERS = 16 << 20
"""How much the patterns of one field may stand for, all together."""


def group_edits(edits: Sequence[AnyEdit]) -> list[dict[str, Any]]:
    """Return edits in groups that are alike but for their place.

    The order changes only where it makes no difference, see `_runs`.
    """
    groups = []
    for run in _runs(edits):
        alike: dict[str, tuple[dict[str, Any], list[str]]] = {}
        for edit in run:
            body = edit.model_dump(exclude_defaults=True, exclude={"edit", "module", "attribute"})
            key = json.dumps(body, sort_keys=True)
            alike.setdefault(key, (body, []))[1].append(_place(edit))
        for body, places in alike.values():
            kind = run[0].edit
            groups.append({"edit": kind, _places_field(kind): to_pattern(places), **body})
    return groups


def ungroup_edits(groups: Any) -> list[dict[str, Any]]:
    """Return edits one by one, still to be validated.

    Raises:
        ValueError: naming the group, if its pattern is none or stands for too much.
    """
    edits = []
    for kind, body, names in _ungroup(groups, "edit", _places_field):
        for name in names:
            place = {"module": name}
            if kind == "pack":
                module, _, attribute = name.rpartition(".")
                place = {"module": module, "attribute": attribute}
            edits.append({"edit": kind, **body, **place})
    return edits


def group_tensors(entries: Mapping[str, AnyEntry]) -> list[dict[str, Any]]:
    """Return forms of tensors in groups that are alike but for the name."""
    alike: dict[AnyEntry, list[str]] = {}
    for name, entry in entries.items():
        alike.setdefault(entry, []).append(name)
    return [
        {"form": entry.form, **entry.model_dump(exclude_defaults=True), "names": to_pattern(names)}
        for entry, names in alike.items()
    ]


def ungroup_tensors(groups: Any) -> dict[str, dict[str, Any]]:
    """Return forms of tensors by name, still to be validated.

    Raises:
        ValueError: naming the group, if its pattern is none, stands for too much, or names what
            has a form already.
    """
    entries: dict[str, dict[str, Any]] = {}
    for form, body, names in _ungroup(groups, "form", lambda form: "names"):
        for name in names:
            if name in entries:
                raise ValueError(f"{name!r} has two forms")
            entries[name] = {"form": form, **body}
    return entries


def _ungroup(
    groups: Any, kind: str, names_field: Callable[[Any], str]
) -> Iterator[tuple[Any, dict[str, Any], list[str]]]:
    """Yield of each group its kind, what else it says, and the names that it stands for."""
    if not isinstance(groups, list):
        raise ValueError("must be a list")
    names_left, characters_left = MAX_NAMES, MAX_CHARACTERS
    for position, group in enumerate(groups):
        if not isinstance(group, dict):
            raise ValueError(f"item {position} must be an object, not {group!r:.80}")
        body = dict(group)
        what = body.pop(kind, None)
        field = names_field(what)
        pattern = body.pop(field, None)
        if not isinstance(pattern, str) or body.keys() & {"module", "attribute"}:
            raise ValueError(f"item {position} must name its places in a string {field!r} alone")
        try:
            names = expand(pattern, names_left, characters_left)
        except ValueError as error:
            raise ValueError(f"item {position}: {error}") from error
        names_left -= len(names)
        characters_left -= sum(map(len, names))
        yield what, body, names


def _places_field(kind: Any) -> str:
    return "parameters" if kind == "pack" else "modules"


def _place(edit: AnyEdit) -> str:
    """Return the module that an edit changes, or the parameter that it packs."""
    if not isinstance(edit, Pack):
        return edit.module
    return f"{edit.module}.{edit.attribute}" if edit.module else edit.attribute


def _runs(edits: Sequence[AnyEdit]) -> Iterator[list[AnyEdit]]:
    """Cut edits into runs of one kind whose order makes no difference.

    Neither of two edits of a run is made within the other's place. What a `keep` counts may stand
    far above its list, so it is a run of its own.
    """
    for _, group in groupby(edits, key=lambda edit: edit.edit):
        run: list[AnyEdit] = []
        places: set[str] = set()
        around: set[str] = set()  # all that these lie within, and they themselves
        for edit in group:
            place = _place(edit)
            parts = place.split(".")
            within = {".".join(parts[:depth]) for depth in range(len(parts) + 1)}
            if isinstance(edit, Keep) or place in around or within & places:
                if run:
                    yield run
                run, places, around = [], set(), set()
            run.append(edit)
            places.add(place)
            around |= within
        yield run
