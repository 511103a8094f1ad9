"""Cards of models on disk: a folder as transformers or sentence-transformers save it, or many."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from zoopress.artifacts.card_model import manifest_of
from zoopress.cards import Card
from zoopress.cards.maker import CardMaker, Draft, Listing, Wish, card_name
from zoopress.errors import SourceError, ZoopressError
from zoopress.sources import SourceFiles
from zoopress_zoo.card_draft import Found, explain, make_draft
from zoopress_zoo.card_facts import read_front_matter
from zoopress_zoo.card_of_compressed import card_of_run
from zoopress_zoo.compressed import find_artifact

_MARKS = ("config.json", "modules.json", "model_index.json", "adapter_config.json")
_WEIGHTS = (".safetensors", ".bin", ".pth", ".pt", ".gguf")
_DEEPEST = 3
_MOST_README = 1 << 20


class FolderCards(CardMaker):
    """Makes cards of `path:FOLDER` and `package:NAME/FOLDER`."""

    def models(self, place: str) -> list[str]:
        """Return the models in a folder: itself, or all that are at most three folders below.

        Raises:
            SourceError: if there is none.
        """
        if self.scheme != "path":
            return [place]
        folder = Path(place).expanduser()
        if not folder.exists():
            raise SourceError(f"There is no folder {place!r}.")
        if folder.is_file() or _is_model(folder):
            return [str(folder)]
        found = _below(folder, 1)
        if not found:
            raise SourceError(
                f"{place}: there is no model in it or in its sub-folders: no config.json, no "
                f"modules.json, no zoopress.json, no weights ({', '.join(_WEIGHTS)})."
            )
        return [str(path) for path in found]

    def draft(self, place: str, wish: Wish) -> Draft:
        """Return a card for a folder or file.

        Raises:
            SourceError: saying why it cannot become one.
        """
        target = Path(place).expanduser()
        location = place if self.scheme != "path" else _relative(target, wish.folder)
        source = f"{self.scheme}:{location}"
        card = Card.model_validate({"name": "model", "source": source})
        card._root = wish.folder.resolve()
        folder = target if target.is_dir() else target.parent
        try:
            files = self._pull(card)
        except ZoopressError as error:
            names = {path.relative_to(folder).as_posix() for path in folder.glob("*")}
            names |= {path.relative_to(folder).as_posix() for path in folder.glob("*/config.json")}
            text = explain(error, names, lambda name: (folder / name).read_bytes())
            text = re.sub(r"^Card '[^']*': ", "", text)
            raise SourceError(text.replace(f"{folder.resolve()}: ", "")) from error
        metadata, problem = _metadata(files.folder)
        whole = files.folder if target.is_dir() or self.scheme != "path" else target
        manifest = manifest_of(files)
        name = whole.stem if whole.is_file() else whole.name
        if manifest is not None and name == "artifact":
            name = f"{manifest.base.name}-{whole.parent.name}"  # out/CARD/RECIPE/artifact
        found = Found(
            name=card_name(name),
            source=source,
            origin=name,
            files=files,
            metadata=metadata,
            owner=files.folder.parent.name,
            notes={"license": problem} if problem else {},
            made_with=card_of_run(files.folder) if manifest is not None else {},
        )
        return make_draft(found, wish, self.plugins)

    def listing(self, card: Card, wanted: Collection[str] = ()) -> Listing:
        """Return a card's files."""
        files = self._pull(card)
        sizes = {name: (files.folder / name).stat().st_size for name in files.all}
        return Listing(files, sizes, frozenset(files.all), str(files.folder))

    def shapes(self, card: Card, listing: Listing) -> dict[str, tuple[int, ...]] | None:
        """Return the shapes in the headers of safetensors files."""
        names = [n for n in listing.files.weights if not n.endswith(".index.json")]
        if not all(name.endswith(".safetensors") for name in names):
            return None
        shapes: dict[str, tuple[int, ...]] = {}
        for name in names:
            shapes |= read_shapes(listing.files.folder / name)
        return shapes

    def _pull(self, card: Card) -> SourceFiles:
        files: SourceFiles = self.plugins.ask("sources", self.scheme, card)
        return files


def read_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Return the shapes that the header of a safetensors file states.

    Raises:
        SourceError: if it is damaged.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as opened:
            return {name: tuple(opened.get_slice(name).get_shape()) for name in opened.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise SourceError(f"{path}: cannot be read: {error}. Get an undamaged copy.") from error


def _is_model(folder: Path) -> bool:
    if find_artifact(folder) is not None or any((folder / mark).is_file() for mark in _MARKS):
        return True
    return any(path.suffix in _WEIGHTS and path.is_file() for path in folder.glob("*"))


def _below(folder: Path, depth: int) -> list[Path]:
    found: list[Path] = []
    for path in sorted(folder.iterdir()):
        if not path.is_dir() or path.name.startswith("."):
            continue
        if _is_model(path):
            found.append(path)
        elif depth < _DEEPEST:
            found += _below(path, depth + 1)
    return found


def _relative(target: Path, folder: Path) -> str:
    """Return a path from the card's folder, so that both can be moved together."""
    try:
        return Path(os.path.relpath(target.resolve(), folder.resolve())).as_posix()
    except ValueError:  # another drive
        return target.resolve().as_posix()


def _metadata(folder: Path) -> tuple[Mapping[str, Any], str]:
    try:
        with (folder / "README.md").open("rb") as stream:
            text = stream.read(_MOST_README).decode("utf-8", "replace")
    except OSError:
        return {}, ""
    return read_front_matter(text)
