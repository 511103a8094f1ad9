"""Add models to the zoo: find those that are meant, make a card of each, write the cards."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import yaml

from zoopress.cards.card import Data, local_cards
from zoopress.cards.maker import CardMaker, Draft, Wish, card_maker, card_name, clean
from zoopress.errors import CardError, InputError, ZoopressError, nearest
from zoopress.hub.client import Hub
from zoopress.store import write_atomic
from zoopress.yaml_source import parse_yaml, validate_mapping

if TYPE_CHECKING:
    from zoopress.plugins import Plugins

_HEADER = (
    "# Made by `zoopress zoo add`. Complete what is missing; `zoopress zoo check` tells if it "
    "works.\n"
)
_COLLECTION = re.compile(r"[A-Za-z0-9._-]+/[A-Za-z0-9._-]+")


@dataclass(frozen=True)
class Place:
    """A model, or a folder of models, and what makes cards of it."""

    maker: CardMaker
    location: str


@dataclass(frozen=True)
class Added:
    """What became of one model.

    Attributes:
        place: which.
        state: "written", "unchanged" (the same card is there already), "shown" or "failed".
        path: the card's file.
        text: the card.
        missing: what could not be inferred.
        reason: why it failed.
    """

    place: str
    state: Literal["written", "unchanged", "shown", "failed"]
    path: Path | None = None
    text: str = ""
    missing: tuple[str, ...] = ()
    reason: str = ""


def find_place(text: str, plugins: Plugins) -> Place:
    """Tell what a user means: a source with its scheme, a folder, or a repository on the Hub.

    Raises:
        InputError: if no plugin makes cards of it.
    """
    known = plugins.references["card_makers"]
    scheme, _, location = text.partition(":")
    if scheme in known and location and not location.startswith("//"):
        found = (scheme, location)
    elif re.match(r"[a-z][a-z0-9]+:(?!//)", text) and len(scheme) > 1 and not os.path.exists(text):
        raise InputError(f"{text!r}: nothing makes cards of {scheme!r}.{nearest(scheme, known)}")
    elif os.path.exists(text) or text.startswith((".", "/", "~", "\\")) or not scheme[1:]:
        found = ("path", text)
    else:
        found = ("hub", text)
    maker = card_maker(found[0], plugins)
    if maker is None:
        raise InputError(f"{text!r}: no plugin makes cards of {found[0]!r}.")
    return Place(maker, found[1])


def find_places(
    sources: Iterable[str],
    author: str | None,
    limit: int | None,
    collection: str | None,
    plugins: Plugins,
) -> list[Place | Added]:
    """Return all models that a user means; a failure in the place of what is not understood.

    Raises:
        ZoopressError: if author or collection have no models.
    """
    places: list[Place | Added] = []
    for source in sources:
        try:
            place = find_place(source, plugins)
            places += [Place(place.maker, model) for model in place.maker.models(place.location)]
        except ZoopressError as error:
            places.append(Added(source, "failed", reason=_reason(error, source)))
    if author:
        places += [find_place(f"hub:{model}", plugins) for model in models_of_author(author, limit)]
    if collection:
        models = models_of_collection(collection)
        places += [find_place(f"hub:{model}", plugins) for model in models]
    return places


def models_of_author(author: str, limit: int | None) -> list[str]:
    """Return an author's models on the Hub, those most often downloaded first.

    Raises:
        HubError: if they cannot be had.
        InputError: if there is none.
    """
    name = re.sub(r"^https?://[^/]+/", "", author.strip()).strip("/")
    hub = Hub()
    found = hub.call(
        f"listing the models of {name}",
        lambda: list(hub.api.list_models(author=name, sort="downloads", limit=limit)),
    )
    if not found:
        raise InputError(f"{author!r} has no models on {hub.api.endpoint}. Check the name.")
    return [model.id for model in found]


def models_of_collection(text: str) -> list[str]:
    """Return the models of a collection of the Hub; data sets and the like are left out.

    Raises:
        HubError: if there is no such collection.
        InputError: if the text names none, or it has no models.
    """
    slug = re.sub(r"^https?://[^/]+/", "", text.strip()).removeprefix("collections/")
    slug = slug.partition("?")[0].strip("/")
    if not _COLLECTION.fullmatch(slug):
        raise InputError(
            f"{text!r} is no collection of the Hub. It should look like 'owner/title-hash', or be "
            "the address of its page."
        )
    hub = Hub()
    items = hub.call(
        f"asking for the collection {slug}", lambda: hub.api.get_collection(slug)
    ).items
    models = [item.item_id for item in items if item.item_type == "model"]
    if not models:
        raise InputError(f"The collection {slug} has no models.")
    return list(dict.fromkeys(models))


def parse_data(text: str, folder: Path) -> dict[str, Any]:
    """Read what the user wants as `data`: KEY=VALUE, or YAML in braces.

    Args:
        text: such as "text=sentences.txt" or "{random: {x: {shape: [8]}}}".
        folder: where the card will be; a file that exists here is named from there.

    Raises:
        CardError: if it is no valid data.
    """
    key, separator, value = text.partition("=")
    data: Any = {key.strip(): value.strip()}
    if text.lstrip().startswith("{"):
        data = parse_yaml(text, Path("--data"), CardError).data
    elif not separator:
        raise CardError(f"--data: expected KEY=VALUE, such as text=sentences.txt, got {text!r}.")
    for name in ("text", "file", "inputs"):
        given = data.get(name)
        file, colon, rest = given.partition(":") if isinstance(given, str) else ("", "", "")
        if file and os.path.isfile(file):
            data[name] = Path(os.path.relpath(file, folder)).as_posix() + colon + rest
    source = parse_yaml(yaml.safe_dump(data), Path("--data"), CardError)
    validate_mapping(Data, data, source, CardError)
    return dict(data)


class CardWriter:
    """Writes cards into a folder, each under a name of its own."""

    def __init__(
        self, plugins: Plugins, wish: Wish, force: bool = False, dry_run: bool = False
    ) -> None:
        self.plugins, self.wish = plugins, wish
        self.force, self.dry_run = force, dry_run
        self._taken: dict[str, str] = {name.lower(): "" for name in plugins.cards}
        for name, path in local_cards(wish.folder).items():
            self._taken[name.lower()] = _repository(_source_of(path))

    def add(self, place: Place, name: str | None = None) -> Added:
        """Make and write the card of one model; a failure is told, not raised."""
        location = place.location
        try:
            draft = place.maker.draft(location, self.wish)
            draft = self._named(draft, name)
            text = _HEADER + draft.text()
            path = self.wish.folder / f"{draft.name}.yaml"
            state = self._write(path, text)
        except ZoopressError as error:
            return Added(location, "failed", reason=_reason(error, location))
        return Added(location, state, path, text, tuple(draft.missing.values()))

    def _named(self, draft: Draft, name: str | None) -> Draft:
        """Give a draft the name that the user wants, else one that no other model has."""
        source = _repository(str(draft.values["source"]))
        if name is not None:
            chosen = name
        else:
            owned = card_name(f"{draft.owner}-{draft.name}")
            candidates = [draft.name, owned, *(f"{owned[:90]}-{i}" for i in range(2, 1000))]
            chosen = next(c for c in candidates if self._taken.get(c.lower(), source) == source)
        self._taken[chosen.lower()] = source
        return draft if chosen == draft.name else draft.renamed(chosen)

    def _write(self, path: Path, text: str) -> Literal["written", "unchanged", "shown"]:
        if self.dry_run:
            return "shown"
        try:
            if path.exists():
                if path.read_bytes() == text.encode():
                    return "unchanged"
                if not self.force:
                    raise InputError(
                        f"{path} is there already and differs. Replace it with --force, or give "
                        "another --name."
                    )
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(path, text)
        except OSError as error:
            raise InputError(f"{path}: cannot be written: {error.strerror}.") from error
        return "written"


def _source_of(path: Path) -> str:
    try:
        data = parse_yaml(path.read_text(encoding="utf-8"), path, InputError).data
    except (OSError, ValueError):
        return ""
    found = data.get("source") if isinstance(data, Mapping) else None
    return found if isinstance(found, str) else ""


def _repository(source: str) -> str:
    """Return a source without its revision."""
    return source.partition("@")[0].lower() if source.startswith("hub:") else source


def check_wish(wish: Wish, plugins: Plugins) -> None:
    """Refuse a task that nobody registers.

    Raises:
        InputError: naming the nearest.
    """
    tasks: Iterable[str] = plugins.references["tasks"]
    if wish.task is not None and wish.task not in plugins.references["tasks"]:
        raise InputError(f"There is no task {wish.task!r}.{nearest(wish.task, tasks)}")


def _reason(error: ZoopressError, location: str) -> str:
    """Return an error's text without the place, which stands before it already."""
    known = re.compile(rf"^(asking for|fetching) {re.escape(location)}: ")
    return clean(known.sub("", str(error)), 2000)
