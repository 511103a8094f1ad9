"""Which cells a zoo run is about: cards and recipes by name, file, pattern, folder or matrix.

What is malformed does not stop the others: it is kept with its problem, and its cells fail with it.
"""

from __future__ import annotations

import glob
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from pydantic import BaseModel, ConfigDict, Field

from zoopress.cards import Card, load_card, local_cards
from zoopress.errors import InputError, RecipeError, ZoopressError
from zoopress.plugins import Plugins
from zoopress.recipes import Recipe, load_recipe
from zoopress.yaml_source import read_yaml, validate

ItemT = TypeVar("ItemT", Card, Recipe)


@dataclass(frozen=True)
class Selected(Generic[ItemT]):
    """A card or recipe that was asked for.

    Attributes:
        reference: what finds it again, from any folder.
        name: its own, or the reference if it could not be read.
        item: what was read.
        problem: why it could not be.
    """

    reference: str
    name: str
    item: ItemT | None = None
    problem: str | None = None


@dataclass(frozen=True)
class Selection:
    """Every card goes with every recipe."""

    cards: tuple[Selected[Card], ...]
    recipes: tuple[Selected[Recipe], ...]

    def cells(self) -> Iterator[tuple[Selected[Card], Selected[Recipe]]]:
        """Yield cards and recipes, card by card."""
        for card in self.cards:
            for recipe in self.recipes:
                yield card, recipe


class _Matrix(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    cards: list[str] = Field(min_length=1)
    recipes: list[str] = Field(min_length=1)


class _MatrixFile(BaseModel):
    matrix: _Matrix


def select_cells(
    cards: Sequence[str], recipes: Sequence[str], matrix: str | None, plugins: Plugins
) -> Selection:
    """Find what was asked for.

    Args:
        cards: names, files, patterns such as `cards/*.yaml`, or folders of cards.
        recipes: names, files, sections such as `params.yaml#recipes.hybrid`, or of a section all
            recipes: `params.yaml#recipes`.
        matrix: a file such as `params.yaml`; its `matrix` says what `cards` and `recipes` do not.
        plugins: which cards, recipes and techniques there are.

    Raises:
        InputError: if nothing is selected, or two cards or recipes have one name.
    """
    card_references = [found for given in cards for found in _card_references(given, plugins)]
    recipe_references = [found for given in recipes for found in _recipe_references(given)]
    if matrix is not None:
        path = Path(matrix)
        rows = validate(_MatrixFile, read_yaml(path, InputError), InputError).matrix
        if not cards:
            card_references = [_card_beside(path, name, plugins) for name in rows.cards]
        if not recipes:
            recipe_references = [f"{path.absolute()}#recipes.{name}" for name in rows.recipes]
    if not card_references or not recipe_references:
        what = "cards" if not card_references else "recipes"
        raise InputError(
            f"No {what} to run. Name some with --{what}, or give a file that has a 'matrix' with "
            "--matrix params.yaml."
        )
    selected_cards = [_selected(r, load_card, plugins) for r in dict.fromkeys(card_references)]
    selected_recipes = [
        _selected(r, load_recipe, plugins) for r in dict.fromkeys(recipe_references)
    ]
    _check_names("cards", selected_cards)
    _check_names("recipes", selected_recipes)
    return Selection(tuple(selected_cards), tuple(selected_recipes))


def _card_references(given: str, plugins: Plugins) -> list[str]:
    path = Path(given)
    if given in plugins.cards:
        return [given]
    if path.is_dir():
        return _some(given, [str(file) for file in local_cards(path.absolute()).values()])
    if glob.has_magic(given) and not path.exists():
        return _some(given, sorted(str(Path(f).absolute()) for f in glob.glob(given)))
    found = path if path.is_file() else local_cards().get(given)
    return [str(found.absolute()) if found else given]


def _recipe_references(given: str) -> list[str]:
    file, _, section = given.partition("#")
    path = Path(file)
    if glob.has_magic(file) and not path.exists():
        return _some(given, sorted(str(Path(f).absolute()) for f in glob.glob(file)))
    if not path.is_file():
        return [given]
    whole = f"{path.absolute()}#{section}" if section else str(path.absolute())
    source = read_yaml(path, RecipeError)
    data = (source.section(section, RecipeError) if section else source).data
    if section and isinstance(data, dict) and "stages" not in data:
        return _some(given, [f"{whole}.{name}" for name in data])
    return [whole]


def _card_beside(matrix: Path, name: str, plugins: Plugins) -> str:
    """Return how to find a card that a matrix names, seen from the matrix."""
    for path in (matrix.parent / "cards" / f"{name}.yaml", matrix.parent / name):
        if path.is_file() and name not in plugins.cards:
            return str(path.absolute())
    return name


def _some(given: str, found: list[str]) -> list[str]:
    if not found:
        raise InputError(f"{given!r} matches nothing.")
    return found


def _selected(
    reference: str, load: Callable[[str, Plugins], ItemT], plugins: Plugins
) -> Selected[ItemT]:
    try:
        item = load(reference, plugins)
    except ZoopressError as error:
        file, _, section = reference.partition("#")
        name = section.partition(".")[2] or section or Path(file).stem  # it may have dots itself
        return Selected(reference, name, None, str(error))
    return Selected(reference, item.name, item)


def _check_names(what: str, selected: Iterable[Selected[ItemT]]) -> None:
    """Refuse two of one name: their results would have one folder."""
    seen: dict[str, str] = {}
    for one in selected:
        if one.problem is None and one.name in seen:
            raise InputError(
                f"Two {what} are called {one.name!r}: {seen[one.name]} and {one.reference}. Their "
                "results would be written to one folder; give one of them another name."
            )
        if one.problem is None:
            seen[one.name] = one.reference
