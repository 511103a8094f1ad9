"""Sources of models: `package:` for weights that ship in an installed package, and `path:`."""

from __future__ import annotations

import importlib.util
from contextlib import suppress
from importlib.metadata import (
    PackageNotFoundError,
    distribution,
    packages_distributions,
    version,
)
from pathlib import Path

from zoopress.artifacts.manifest import MANIFEST
from zoopress.cards import Card
from zoopress.errors import SourceError
from zoopress.sources import SourceFiles
from zoopress_zoo.compressed import find_artifact, local_files
from zoopress_zoo.selection import FORMATS, Selection, select


def package(card: Card) -> SourceFiles:
    """Find `package:NAME/FOLDER`, a folder inside an installed package.

    The package is located, never imported.

    Raises:
        SourceError: if the package or the folder is missing.
    """
    name, _, inside = card.location.partition("/")
    try:
        spec = importlib.util.find_spec(name)
    except (ImportError, ValueError):
        spec = None
    if spec is None or not spec.submodule_search_locations:
        raise SourceError(
            f"Card {card.name!r}: package {name!r} is not installed. Install it, for example "
            f"`pip install {name.replace('_', '-')}`, or the extra of zoopress that brings it."
        )
    folder = Path(next(iter(spec.submodule_search_locations))) / inside
    return _folder(card, folder, _requirement(name))


def _requirement(name: str) -> str:
    """Return the distribution that brings a package, as NAME==VERSION."""
    # The one of the same name as a rule: to look into all that is installed takes a second.
    with suppress(PackageNotFoundError):
        found = distribution(name)
        if any(file.parts[0] == name for file in found.files or ()):
            return f"{found.metadata['Name']}=={found.version}"
    distributions = packages_distributions().get(name) or [name]
    return f"{distributions[0]}=={version(distributions[0])}"


def path(card: Card) -> SourceFiles:
    """Find `path:FILE_OR_FOLDER`, relative to the card: a model's folder, or a file of weights.

    A folder may be an artifact, or that of a run, which holds one.

    Raises:
        SourceError: if it is missing or holds no weights.
    """
    target = (card.root / Path(card.location).expanduser()).resolve()
    if not target.is_file():
        return _folder(card, target, "local")
    if (target.parent / MANIFEST).is_file():  # a part of a compressed model stands for all of it
        return _folder(card, target.parent, "local")
    if target.suffix not in (*FORMATS, ".gguf"):
        raise SourceError(
            f"Card {card.name!r}: {target} must hold weights in one of {[*FORMATS, '.gguf']}."
        )
    if card.factory:
        return SourceFiles(target.parent, "local", (target.name,))
    if target.suffix != ".gguf" and not (target.parent / "config.json").is_file():
        raise SourceError(
            f"Card {card.name!r}: {target.name} is a state dict, so the card needs a 'factory' "
            "that builds the module, as 'file.py:function'."
        )
    return _files(card, target.parent, "local", target.name)


def _folder(card: Card, folder: Path, revision: str) -> SourceFiles:
    if not folder.is_dir():
        raise SourceError(
            f"Card {card.name!r}: there is nothing at {folder}. Correct 'source', or make it: the "
            "folder that `zoopress run … --out` writes, or one with weights."
        )
    artifact = find_artifact(folder)
    if artifact is not None:
        try:
            return local_files(artifact, revision)
        except SourceError as error:
            raise SourceError(f"Card {card.name!r}: {error}") from error
    return _files(card, folder, revision)


def _files(card: Card, folder: Path, revision: str, chosen: str = "") -> SourceFiles:
    # No model has files that matter further down, and a user's folder can be large.
    names = {
        found.relative_to(folder).as_posix()
        for pattern in ("*", "*/*")
        for found in folder.glob(pattern)
        if found.is_file()
    }
    try:
        selected: Selection = select(names, chosen)
    except SourceError as error:
        raise SourceError(f"Card {card.name!r}: {folder}: {error}") from error
    return SourceFiles(folder, revision, selected.weights, selected.others)
