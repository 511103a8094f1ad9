"""The label space: which classes a model's outputs stand for, and how a dataset calls them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zoopress.errors import CardError, nearest
from zoopress.tasks import Table

Label = str | int
_UNNAMED = re.compile(r"LABEL_\d+")


@dataclass(frozen=True)
class LabelSpace:
    """Classes in the order of the model's outputs.

    Attributes:
        names: of the classes.
        index: the class of each label as the dataset writes it.
    """

    names: tuple[str, ...]
    index: Mapping[Label, int]

    def encode(self, labels: Iterable[Any]) -> list[int]:
        """Return the classes of labels, each as the dataset writes it."""
        return [self.index[plain_label(label)] for label in labels]


def find_label_space(
    found: Mapping[Label, str],
    card: str,
    given: Sequence[str] = (),
    dataset: Sequence[str] = (),
    model: Sequence[str] = (),
) -> LabelSpace:
    """Return the classes of a dataset's labels.

    The names are the card's; else the model's, if they are those of the dataset in any order; else
    the dataset's; else its sorted labels. Text is looked up by name, in any case of letters if it
    is not there as it is. Integers count the dataset's names, unless all of them are names.

    Args:
        found: where each label stands for the first time.
        card: the card's name, for errors.
        given: the names in the card's `data.label_names`.
        dataset: the names that the dataset tells.
        model: the names that the model's config tells.

    Raises:
        CardError: if a label is outside of the space, naming it and where it stands.
    """
    texts = any(isinstance(label, str) for label in found)
    own = tuple(given or dataset) or (tuple(sorted(map(str, found))) if texts else ())
    names = tuple(given) or (tuple(model) if own and _cover(model, own) else own)
    if not names:  # integers that nobody names
        names = tuple(model) or tuple(map(str, range(_count(found, card))))
    by_name = texts or all(str(label) in names for label in found)
    index: dict[Label, int] = {}
    for label, where in found.items():
        if by_name:
            place = _find(str(label), names)
        else:
            number = int(label)
            inside = 0 <= number < len(own or names)
            place = (_find(own[number], names) if own else number) if inside else None
        if place is None:
            raise CardError(_outside(label, where, names, card))
        index[label] = place
    return LabelSpace(names, index)


def plain_label(value: Any) -> Label:
    """Return a label as text or integer: numpy's scalars and 3.0 as well.

    Raises:
        CardError: if it is anything else, or missing.
    """
    value = value.item() if hasattr(value, "item") and getattr(value, "ndim", 0) == 0 else value
    if isinstance(value, (bool, int)):
        return int(value)
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, str):
        return value
    raise CardError(f"a label must be text or an integer, not {value!r}")


def first_places(
    tables: Mapping[str, Table], column: str, card: str, ignored: frozenset[int] = frozenset()
) -> dict[Label, str]:
    """Return where each label of a column stands for the first time, in words.

    Args:
        tables: the dataset's parts.
        column: of labels, or of lists of labels.
        card: the card's name, for errors.
        ignored: integers that are no labels, such as -100 for a token that has none.

    Raises:
        CardError: if a value is not a label.
    """
    found: dict[Label, str] = {}
    for part, table in tables.items():
        for row, value in enumerate(table.values(column, range(len(table)))):
            for item in _items(value):
                try:
                    label = plain_label(item)
                except CardError as error:
                    raise CardError(
                        f"Card {card!r}: column {column!r}, row {row} of part {part!r}: {error}."
                    ) from None
                if label not in ignored:
                    found.setdefault(label, f"row {row} of part {part!r}")
    return found


def model_label_names(folder: Path) -> tuple[str, ...]:
    """Return the names in the `id2label` of a model's config.json, none if it has no real ones."""
    try:
        config = json.loads((folder / "config.json").read_bytes())
        pairs = {int(number): str(name) for number, name in config["id2label"].items()}
    except (OSError, ValueError, LookupError, AttributeError, TypeError, RecursionError):
        return ()
    names = tuple(pairs[i] for i in range(len(pairs)) if i in pairs)
    real = len(names) == len(pairs) and not all(_UNNAMED.fullmatch(name) for name in names)
    return names if real else ()


def _items(value: Any) -> Iterator[Any]:
    if isinstance(value, (list, tuple)) or getattr(value, "ndim", 0) > 0:
        yield from value
    else:
        yield value


def _count(found: Mapping[Label, str], card: str) -> int:
    """Return how many classes integers count from 0, if they do."""
    largest = max((int(label) for label in found), default=0)
    if largest >= max(1000, 10 * len(found)):
        raise CardError(
            f"Card {card!r}: {len(found)} different labels reach up to {largest} "
            f"({found[largest]}), so they do not count classes from 0. Name another column in "
            "'data.columns', or the classes in 'data.label_names', numbers quoted."
        )
    return 1 + largest


def _cover(model: Sequence[str], names: Sequence[str]) -> bool:
    folded = {name.casefold() for name in model}
    return len(folded) == len(model) and all(name.casefold() in folded for name in names)


def _find(name: str, names: Sequence[str]) -> int | None:
    if name in names:
        return list(names).index(name)
    folded = [other.casefold() for other in names]
    return folded.index(name.casefold()) if folded.count(name.casefold()) == 1 else None


def _outside(label: Label, where: str, names: Sequence[str], card: str) -> str:
    space = f"{', '.join(names[:20])}{', …' if len(names) > 20 else ''}"
    if isinstance(label, str):
        return (
            f"Card {card!r}: the label {label!r} ({where}) is none of the {len(names)} classes "
            f"{space}.{nearest(label, names)} Correct it, or name all classes in "
            "'data.label_names'."
        )
    return (
        f"Card {card!r}: the label {label} ({where}) is outside of the label space, integers from "
        f"0 to {len(names) - 1} ({space}). Name all classes in 'data.label_names', numbers quoted "
        "where they are names; rows without a label must be left out, or their part not used "
        "('data.parts')."
    )
