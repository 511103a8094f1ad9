"""`zoopress techniques` and `technique NAME`: what is installed, and what it can be told."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from zoopress.commands.arguments import (
    JsonOption,
    completion,
    loaded_plugins,
    options_table,
    print_json,
)

if TYPE_CHECKING:
    from zoopress.plugins import Plugins


def techniques() -> None:
    """List the techniques that are installed, and where each comes from."""
    from rich.console import Console
    from rich.table import Table

    plugins = loaded_plugins()
    table = Table("technique", "family", "from", "what it does")
    for name, technique in sorted(plugins.techniques.items()):
        origin = plugins.technique_origin(name)
        summary = (technique.__doc__ or "").strip().partition("\n")[0]
        table.add_row(name, technique.family, f"{origin.distribution} {origin.version}", summary)
    Console().print(table)


def technique(
    name: Annotated[
        str, typer.Argument(help="The technique's name.", autocompletion=completion("techniques"))
    ],
    as_json: JsonOption = False,
) -> None:
    """Show what a technique can be told in a recipe.

    As JSON: the schema of its config, its family, what it needs and what it does to properties of
    the model, and where it comes from.

    Examples:

        zoopress technique magnitude_pruning

        zoopress technique magnitude_pruning --json
    """
    from rich.console import Console

    plugins = loaded_plugins()
    chosen = plugins.technique(name)
    if as_json:
        print_json(described(name, plugins), indent=2, ensure_ascii=False)
        return
    if not chosen.config_type.model_fields:
        Console().print(f"{name} has nothing to choose.")
        return
    Console().print(options_table(chosen.config_type))


def described(name: str, plugins: Plugins) -> dict[str, Any]:
    """Return what there is to know of a technique, as plain data.

    Its effects are those of its config's defaults; null if these alone make no valid config.
    """
    import inspect

    from pydantic import ValidationError

    from zoopress.config import json_schema
    from zoopress.techniques import effects_of

    kind, origin = plugins.technique(name), plugins.technique_origin(name)
    try:
        config: dict[str, Any] | None = json_schema(kind.config_type)
    except Exception:  # a plugin's config may hold what has no JSON form
        config = None
    try:
        effects = effects_of(kind(kind.config_type()))
    except ValidationError:
        effects = None
    docs = inspect.getdoc(kind) or ""
    module = inspect.getmodule(kind)
    return {
        "name": name,
        "family": kind.family,
        "summary": docs.partition("\n")[0],
        "docs": docs,
        "module_docs": (inspect.getdoc(module) if module else None) or "",
        "plugin": origin.plugin,
        "distribution": origin.distribution,
        "version": origin.version,
        "class": f"{kind.__module__}.{kind.__qualname__}",
        "needs": sorted(kind.needs),
        "recovers": kind.recovers,
        "config": config,
        "effects": effects
        and {
            **{key: sorted(getattr(effects, key)) for key in ("requires", "adds", "destroys")},
            "activations": effects.activations,
            "restructures": effects.restructures,
        },
    }
