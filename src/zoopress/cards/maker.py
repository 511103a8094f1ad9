"""Make cards from models: what a source contributes, and how a card becomes a file.

A plugin registers a `CardMaker` for a source's scheme. It looks at a model's configuration, never
at its weights, and never runs a model's own code.
"""

from __future__ import annotations

import re
import unicodedata
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from zoopress.cards.card import Card
from zoopress.errors import CardError, PluginError
from zoopress.sources import SourceFiles, pull
from zoopress.yaml_source import parse_yaml, validate

if TYPE_CHECKING:
    from zoopress.plugins import Plugins

_ORDER = (
    *("name", "description", "source", "factory", "factory_arguments", "model_class", "task"),
    *("data", "base_model", "license", "license_name", "license_link", "pipeline_tag"),
    *("library_name", "language", "tags", "datasets", "metrics"),
)
_WIDTH = 96
_PINNED = re.compile(r"^source: .*\S  # pinned from (\S+)$", re.MULTILINE)
_INVISIBLE = ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp")


@dataclass(frozen=True)
class Wish:
    """What the user has decided of a card already.

    Attributes:
        folder: where the card will be; relative paths in it start there.
        task: its task.
        data: its `data`.
    """

    folder: Path
    task: str | None = None
    data: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Draft:
    """A card before it is written.

    Attributes:
        values: keys and values, as a card's file has them.
        origin: which model it is of, for people.
        owner: whose model it is; tells two models of one name apart.
        notes: comments for the file, by the key that they stand before.
        missing: what could not be inferred and is for the user to add, by key; a comment as well.
        pinned_from: the branch or tag whose commit the source names.
    """

    values: Mapping[str, Any]
    origin: str
    owner: str = ""
    notes: Mapping[str, str] = field(default_factory=dict)
    missing: Mapping[str, str] = field(default_factory=dict)
    pinned_from: str | None = None

    @property
    def name(self) -> str:
        return str(self.values["name"])

    def renamed(self, name: str) -> Draft:
        """Return the same card under another name."""
        return replace(self, values={**self.values, "name": card_name(name)})

    def text(self) -> str:
        """Return the card as YAML.

        Raises:
            CardError: if it would not be a valid card.
        """
        lines = []
        for key in _ORDER:
            for comment in (self.notes.get(key), self.missing.get(key)):
                lines += _comment(comment) if comment else []
            if key in self.values:
                lines.append(_entry(key, self.values[key]))
            if key == "source" and self.pinned_from and re.fullmatch(r"\S+", self.pinned_from):
                lines[-1] += f"  # pinned from {self.pinned_from}"
        text = "\n".join(lines) + "\n"
        validate(Card, parse_yaml(text, Path(f"{self.name}.yaml"), CardError), CardError)
        return text


@dataclass(frozen=True)
class Listing:
    """A card's files, whether or not they have been fetched.

    Attributes:
        files: their names; what was asked for is in its folder.
        sizes: bytes by name.
        present: names of those that are on disk.
        place: where they come from, for people.
    """

    files: SourceFiles
    sizes: Mapping[str, int]
    present: frozenset[str]
    place: str

    @property
    def absent(self) -> list[str]:
        return [name for name in self.files.all if name not in self.present]


class CardMaker(ABC):
    """Makes cards of the models of one source, and tells of a card's files before fetching them.

    Args:
        plugins: what tasks and architectures there are.
        scheme: of the source.
    """

    def __init__(self, plugins: Plugins, scheme: str) -> None:
        self.plugins = plugins
        self.scheme = scheme

    def models(self, place: str) -> list[str]:
        """Return the places of all models at a place, such as a folder of models."""
        return [place]

    @abstractmethod
    def draft(self, place: str, wish: Wish) -> Draft:
        """Return a card for a model.

        Raises:
            ZoopressError: saying why it cannot become one, and what would have to be done.
        """

    @abstractmethod
    def listing(self, card: Card, wanted: Collection[str] = ()) -> Listing:
        """Return a card's files, weights not fetched.

        Args:
            card: whose files.
            wanted: "config" fetches files of settings, "others" all that are no weights.

        Raises:
            ZoopressError: if they cannot be found.
        """

    def commit(self, card: Card, revision: str | None = None) -> str | None:
        """Ask the source for the commit of a card's own revision, or of another.

        None if the source has no revisions.

        Raises:
            ZoopressError: if there is none.
        """
        return None

    def shapes(self, card: Card, listing: Listing) -> dict[str, tuple[int, ...]] | None:
        """Return the shapes of a card's tensors by name, without reading them.

        None if that is not cheap.

        Raises:
            ZoopressError: if a file is damaged.
        """
        return None


def as_yaml(values: Mapping[str, Any]) -> str:
    """Return a card's keys and values as YAML, in the usual order."""
    return "".join(f"{_entry(key, values[key])}\n" for key in _ORDER if key in values)


def card_maker(scheme: str, plugins: Plugins) -> CardMaker | None:
    """Return what makes cards of a source, None if no plugin brings it.

    Raises:
        PluginError: if it cannot be imported or is no `CardMaker`.
    """
    if scheme not in plugins.references["card_makers"]:
        return None
    made: object = plugins.resolve("card_makers", scheme)(plugins, scheme)
    if not isinstance(made, CardMaker):
        raise PluginError(
            f"The card maker of {scheme!r} is no subclass of zoopress.cards.maker.CardMaker."
        )
    return made


def list_files(card: Card, plugins: Plugins, wanted: Collection[str] = ()) -> Listing:
    """Return a card's files, weights not fetched where its source can be asked without that.

    Args:
        card: whose files.
        plugins: what sources there are.
        wanted: "config" fetches files of settings, "others" all that are no weights.

    Raises:
        ZoopressError: if they cannot be found.
    """
    maker = card_maker(card.scheme, plugins)
    if maker is not None:
        return maker.listing(card, wanted)
    files = pull(card, plugins)
    sizes = {name: (files.folder / name).stat().st_size for name in files.all}
    return Listing(files, sizes, frozenset(files.all), str(files.folder))


def clean(text: str, most: int = 200) -> str:
    """Return a stranger's text on one line, without characters that cannot be seen."""
    start = text[: 4 * most]  # whoever hides megabytes in a field gains nothing
    visible = "".join(
        " " if character.isspace() else character
        for character in start
        if character.isspace() or unicodedata.category(character) not in _INVISIBLE
    )
    line = " ".join(visible.split())
    return line if len(line) <= most else f"{line[: most - 1]}…"


def card_name(text: str) -> str:
    """Return a text as the name of a card."""
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip(".-_")[:96].rstrip(".-_")
    return name or "model"


def pinned_from(path: Path) -> str | None:
    """Return the branch or tag that a card's file says its commit is from."""
    try:
        found = _PINNED.search(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError):
        return None
    return found[1] if found else None


class _Dumper(yaml.SafeDumper):
    """Writes lists on one line and mappings as blocks."""

    def represent_list(self, data: Any) -> yaml.SequenceNode:
        return self.represent_sequence("tag:yaml.org,2002:seq", data, flow_style=True)

    def ignore_aliases(self, data: Any) -> bool:
        return True


_Dumper.add_representer(list, _Dumper.represent_list)


def _entry(key: str, value: Any) -> str:
    # A long value stays on its line: what PyYAML folds is hard to edit.
    options: dict[str, Any] = {"sort_keys": False, "allow_unicode": True, "width": 1 << 20}
    text: str = yaml.dump({key: value}, Dumper=_Dumper, default_flow_style=False, **options)
    return text.rstrip("\n")


def _comment(text: str) -> list[str]:
    """Return comment lines; lines of the text that are indented stay as they are."""
    lines: list[str] = []
    for line in text.splitlines():
        indent = line[: len(line) - len(line.lstrip(" "))]
        current = ""
        for word in clean(line, 2000).split(" "):
            if current and len(indent) + len(current) + len(word) >= _WIDTH:
                lines.append(f"# {indent}{current}")
                current = ""
            current = f"{current} {word}" if current else word
        lines.append(f"# {indent}{current}".rstrip())
    return lines
