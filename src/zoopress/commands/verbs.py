"""Verbs that plugins bring: listed by the line that they give, imported when they are used."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cached_property
from typing import TYPE_CHECKING, Any

import typer
from typer.core import TyperCommand, TyperGroup
from typer.main import get_command

from zoopress.errors import PluginError
from zoopress.plugins import Clash, Command, Origin, import_reference, load_plugins

if TYPE_CHECKING:
    from zoopress.plugins import Plugins

BUILT_IN: set[str] = set()
"""Zoopress's own verbs; `cli` says which."""


def plugin_verbs(plugins: Plugins) -> dict[str, tuple[Command, Origin]]:
    """Return the verbs of plugins; who claims one of zoopress's own goes without, and is told."""
    verbs = {}
    for name, (command, origin) in plugins.commands.items():
        if name not in BUILT_IN:
            verbs[name] = command, origin
            continue
        reason = (
            f"its command {name!r} was left out, since zoopress has a command of that name. Rename "
            f"it, or uninstall {origin.distribution}"
        )
        clash = Clash(origin.plugin, origin.distribution, "command", name, reason)
        if clash not in plugins.clashes:
            plugins.clashes.append(clash)
    return verbs


class PluginVerb(TyperCommand):
    """A verb that is imported once somebody uses it."""

    def __init__(self, name: str, command: Command, origin: Origin) -> None:
        super().__init__(name=name, callback=None, help=command.help, rich_markup_mode=None)
        self._command, self._origin = command, origin

    def make_context(
        self, info_name: str | None, args: list[str], parent: Any = None, **extra: Any
    ) -> Any:
        """Let the verb itself read its arguments, and run."""
        return self._load().make_context(info_name, args, parent, **extra)

    def _load(self) -> Any:
        try:
            found = import_reference(self._command.run)
            if not isinstance(found, typer.Typer):
                if not callable(found):
                    raise TypeError(f"expected a function or a typer.Typer, got {found!r}")
                app = typer.Typer(add_completion=False)
                app.command(self.name)(found)
                found = app
            # typer looks at the function's arguments here, which may be none that it knows.
            loaded = get_command(found)
        except (Exception, SystemExit) as error:  # any error at all: the plugin is not ours
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            raise PluginError(
                f"The command {self.name!r} of plugin {self._origin.plugin!r} of "
                f"{self._origin.distribution} cannot be used: {reason[:400]}. Repair that "
                "distribution, or uninstall it; every other command works."
            ) from error
        loaded.name = self.name
        return loaded


class Verbs(TyperGroup):
    """Zoopress's verbs, and those of plugins after them; these are looked for only where needed."""

    @cached_property
    def _of_plugins(self) -> dict[str, tuple[Command, Origin]]:
        return plugin_verbs(load_plugins())

    def list_commands(self, ctx: Any) -> list[str]:
        """Return all names, of plugins too."""
        return [*super().list_commands(ctx), *sorted(self._of_plugins)]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Return a verb, None if there is none."""
        own = super().get_command(ctx, cmd_name)
        if own is not None:
            return own
        found = self._of_plugins.get(cmd_name)
        return PluginVerb(cmd_name, *found) if found else None


def reserve(names: Iterable[str | None]) -> None:
    """Keep names for zoopress's own verbs."""
    BUILT_IN.update(name for name in names if name)
