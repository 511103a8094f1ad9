"""Sources of models: `package:` for weights that ship in an installed package, and `path:`."""

from __future__ import annotations

import importlib.util
from importlib.metadata import packages_distributions, version
from pathlib import Path

from zoopress.card import Card
from zoopress.errors import SourceError
from zoopress.source import SourceFiles

_WEIGHTS = (".safetensors", ".bin", ".pth", ".pt")
_INDEXES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
_OTHERS = (
    "config.json",
    "generation_config.json",
    "modules.json",
    "config_sentence_transformers.json",
    "sentence_bert_config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "spiece.model",
    "sentencepiece.bpe.model",
    "*_Pooling/config.json",
)


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
    distributions = packages_distributions().get(name) or [name]
    return _folder(card, folder, f"{distributions[0]}=={version(distributions[0])}")


def path(card: Card) -> SourceFiles:
    """Find `path:FILE_OR_FOLDER`, relative to the card: a transformers folder, or a state dict.

    Raises:
        SourceError: if it is missing or holds no weights.
    """
    target = (card.root / Path(card.location).expanduser()).resolve()
    if target.is_file():
        if target.suffix not in _WEIGHTS:
            raise SourceError(
                f"Card {card.name!r}: {target} must be a state dict in one of {list(_WEIGHTS)}."
            )
        if not card.factory:
            raise SourceError(
                f"Card {card.name!r}: {target.name} is a state dict, so the card needs a 'factory' "
                "that builds the module, as 'file.py:function'."
            )
        return SourceFiles(target.parent, "local", (target.name,))
    return _folder(card, target, "local")


def _folder(card: Card, folder: Path, revision: str) -> SourceFiles:
    if not folder.is_dir():
        raise SourceError(f"Card {card.name!r}: there is nothing at {folder}.")
    found = {p.name for p in folder.iterdir() if p.is_file()}
    # One format is enough, and safetensors cannot hide code.
    weights: list[str] = []
    for suffix in _WEIGHTS:
        weights = sorted(n for n in found if n.endswith(suffix) and not n.startswith("training_"))
        if weights:
            break
    if not weights:
        raise SourceError(
            f"Card {card.name!r}: {folder} holds no weights; expected a file in one of "
            f"{list(_WEIGHTS)}."
        )
    weights += [name for name in _INDEXES if name in found and weights[0].split(".")[-1] in name]
    others = sorted(
        p.relative_to(folder).as_posix() for pattern in _OTHERS for p in folder.glob(pattern)
    )
    return SourceFiles(folder, revision, tuple(weights), tuple(others))
