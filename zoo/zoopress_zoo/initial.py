"""Models that were never trained: `initial:SEED`, what a card's factory initializes.

    CACHE/zoopress/initial/DIGEST/model.safetensors     made when first asked for

For recipes that train from scratch.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from zoopress.cards import Card
from zoopress.cells.cell import installed_version
from zoopress.errors import CardError, SourceError
from zoopress.sources import SourceFiles, callable_code, load_callable
from zoopress.store import digest

if TYPE_CHECKING:
    from torch import nn

_FILE = "model.safetensors"


def initial(card: Card) -> SourceFiles:
    """Find the weights of `initial:SEED`, and make them if this machine has not yet.

    The same factory, arguments, seed and version of torch give the same weights.

    Raises:
        CardError: if the card has no factory, or the seed is no whole number.
        SourceError: if the weights cannot be kept.
    """
    from platformdirs import user_cache_path

    if card.factory is None:
        raise CardError(
            f"Card {card.name!r}: the source {card.source!r} is what a 'factory' initializes; give "
            "the card one, as 'file.py:function'."
        )
    if not card.location.isdecimal():
        raise CardError(
            f"Card {card.name!r}: {card.source!r} must be 'initial:' and a seed, a whole number "
            "such as 0."
        )
    revision = digest(
        {
            "factory": [card.factory, card.factory_arguments],
            "code": callable_code(card.factory, card.root),
            "seed": card.location,
            "torch": installed_version("torch"),
        }
    )[:16]
    folder = user_cache_path("zoopress") / "initial" / revision
    if not (folder / _FILE).is_file():
        _make(card, card.factory, folder)
    return SourceFiles(folder, f"initial-{revision}", (_FILE,))


def _make(card: Card, factory: str, folder: Path) -> None:
    """Initialize a module and keep its state, in one step."""
    import torch
    from safetensors.torch import save_file

    build = load_callable(factory, card.root)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(card.location))
        try:
            module: nn.Module = build(**card.factory_arguments)
        except TypeError as error:
            raise SourceError(
                f"The factory {factory!r} cannot be called with {card.factory_arguments}: {error}. "
                "Check 'factory_arguments'."
            ) from error
    # Tied tensors under each name, since loading is strict.
    tensors = {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(prefix=f".{_FILE}.", dir=folder)
        os.close(handle)
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, temporary)
        os.replace(temporary, folder / _FILE)
    except OSError as error:
        raise SourceError(
            f"Cannot keep the initial weights of card {card.name!r} in {folder}: "
            f"{error.strerror or error}. Set XDG_CACHE_HOME to a folder that can be written."
        ) from error
