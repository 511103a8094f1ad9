"""What several commands share: arguments, their completion, plugins with warnings, notes."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from zoopress.plugins import Plugins


def note(text: str) -> None:
    """Print to standard error, so that results can be piped."""
    print(text, file=sys.stderr)


def loaded_plugins() -> Plugins:
    """Load and check plugins; those that are broken are told and left out.

    Raises:
        PluginError: if two plugins claim one name.
    """
    from zoopress.plugins import load_plugins

    plugins = load_plugins()
    plugins.check()
    for broken in plugins.broken:
        note(f"warning: {broken}")
    return plugins


def completion(kind: str) -> Any:
    """Return what completes names of "cards", "recipes" or "techniques", and YAML files."""

    def complete(incomplete: str) -> list[str]:
        from zoopress.card import local_cards
        from zoopress.plugins import load_plugins

        names = {*getattr(load_plugins(), kind), *(local_cards() if kind == "cards" else ())}
        names |= {str(path) for path in Path().glob(f"{incomplete}*.yaml")}
        return sorted(name for name in names if name.startswith(incomplete))

    return complete


CardArgument = Annotated[
    str, typer.Argument(help="A card's name or file.", autocompletion=completion("cards"))
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]
