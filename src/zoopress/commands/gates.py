"""The command that lists gates."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Annotated, Any

import typer

from zoopress.commands.arguments import completion_of, loaded_plugins

if TYPE_CHECKING:
    from zoopress.plugins import Plugins


def gates(
    name: Annotated[
        str | None,
        typer.Argument(
            help="Show what this one can be told in a recipe.",
            show_default=False,
            autocompletion=completion_of("gates"),
        ),
    ] = None,
) -> None:
    """List the gates that results are held to: those that are always asked, and those to choose.

    Examples:

        zoopress gates

        zoopress gates layer_error
    """
    from rich.console import Console

    plugins = loaded_plugins()
    if name is None:
        Console().print(_all(plugins))
        return
    gate = plugins.resolve("gates", name)
    print(inspect.getdoc(gate) or f"{name} says nothing of itself.")
    Console().print(_options(gate, name))


def _all(plugins: Plugins) -> Any:
    from rich.table import Table

    from zoopress.errors import PluginError
    from zoopress.recipes.gate_choices import config_of

    table = Table()
    table.add_column("gate", no_wrap=True)
    for header in ("asked", "options", "from", "what it does"):
        table.add_column(header)
    for name in sorted(plugins.references["gates"]):
        origin = plugins.origin("gates", name)
        source = f"{origin.distribution} {origin.version}"
        try:
            gate = plugins.resolve("gates", name)
            config = config_of(gate, name)
        except PluginError as error:
            table.add_row(name, "never", "", source, str(error))
            continue
        always = getattr(gate, "always_asked", False)
        options = ", ".join(config.model_fields) if config else ""
        summary = (inspect.getdoc(gate) or "").partition("\n")[0]
        table.add_row(name, "always" if always else "if named", options, source, summary)
    return table


def _options(gate: Any, name: str) -> Any:
    from rich.markup import escape

    from zoopress.commands.arguments import options_table
    from zoopress.recipes.gate_choices import config_of

    if getattr(gate, "always_asked", False):
        return "It is always asked; recipes do not name it."
    config = config_of(gate, name)
    if config is None or not config.model_fields:
        return escape(f"It has nothing to choose: 'gates: [{name}]'.")
    return options_table(config)
