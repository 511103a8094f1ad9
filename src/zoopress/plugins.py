"""Find, load and merge what plugins register; `zoopress.hooks` has what they implement."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property, lru_cache, partial
from importlib.metadata import Distribution, EntryPoint, entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import pluggy

from zoopress.errors import PluginError, nearest
from zoopress.hooks import (
    BASES,
    Command as Command,
    HookSpecs as HookSpecs,
    Registry as Registry,
    commands_of,
    hookimpl as hookimpl,
    hookspec as hookspec,
    kind_of as kind_of,
    registries as registries,
)
from zoopress.interface import (
    HOOK_INTERFACE as HOOK_INTERFACE,
    Version,
    culprit,
    existing_folders,
    expected,
    misfit,
    named_references,
    stated_version,
    technique_classes,
    unknown_hook,
    unmarked_hook,
    version_in_source,
    wrong_answer,
)

if TYPE_CHECKING:
    from zoopress.techniques import Technique

GROUP = "zoopress"
AnswerT = TypeVar("AnswerT")


@dataclass(frozen=True)
class BrokenPlugin:
    """A plugin that could not be loaded."""

    name: str
    distribution: str
    reason: str
    hook: str = ""
    """The one hook whose answer was left out; the whole plugin if none is named."""

    def __str__(self) -> str:
        left_out = f"and its answer was left out: {self.hook}" if self.hook else "and was left out"
        return f"plugin {self.name!r} of {self.distribution} is broken {left_out}: {self.reason}"


@dataclass(frozen=True)
class Clash:
    """Something that a plugin registers under a name that another one has."""

    plugin: str
    distribution: str
    kind: str
    name: str
    reason: str

    def __str__(self) -> str:
        return f"plugin {self.plugin!r} of {self.distribution}: {self.reason}."


@dataclass(frozen=True)
class Origin:
    """Where a registered thing comes from; part of every store key it takes part in."""

    plugin: str
    distribution: str
    version: str


@dataclass
class Plugins:
    """All that the loaded plugins register, merged; who clashes with another goes without."""

    manager: pluggy.PluginManager
    broken: list[BrokenPlugin] = field(default_factory=list)
    blocked: frozenset[str] = frozenset()
    origins: dict[str, Origin] = field(default_factory=dict)
    """By plugin name."""
    clashes: list[Clash] = field(default_factory=list)
    """What was left out, since another plugin had the name first."""
    made_for: dict[str, Version | None] = field(default_factory=dict)
    """By plugin name, the version of the hooks that it says it was made for."""
    modules: dict[str, str] = field(default_factory=dict)
    """By the name of an installed plugin, its module."""

    @cached_property
    def techniques(self) -> dict[str, type[Technique[Any]]]:
        """Techniques by name."""
        merged: dict[str, type[Technique[Any]]] = {}
        for plugin, classes in self._answers("zoopress_techniques", technique_classes):
            for technique in classes:
                if self._claim("technique", technique.name, plugin):
                    merged[technique.name] = technique
        return merged

    def technique(self, name: str) -> type[Technique[Any]]:
        """Return a technique.

        Raises:
            PluginError: if no loaded plugin registers it.
        """
        return self._get("technique", name, self.techniques)  # type: ignore[no-any-return]

    def technique_origin(self, name: str) -> Origin:
        """Return the plugin and distribution a technique comes from."""
        self.technique(name)
        return self.origins[self._owners["technique", name]]

    @cached_property
    def references(self) -> dict[str, dict[str, str]]:
        """What is registered as "module:attribute", by hook ("layers", "tasks", …) and name."""
        merged: dict[str, dict[str, str]] = {hook: {} for hook in BASES}
        for hook in BASES:
            for plugin, mapping in self._answers(f"zoopress_{hook}", named_references):
                for name, reference in mapping.items():
                    if self._claim(kind_of(hook), name, plugin):
                        merged[hook][name] = reference
        return merged

    def resolve(
        self,
        hook: Registry,
        name: str,
    ) -> Any:
        """Import what is registered under a name.

        Raises:
            PluginError: if nothing is, or it cannot be imported.
        """
        kind, base = kind_of(hook), BASES[hook]
        reference = self._get(kind, name, self.references[hook])
        try:
            return _checked(import_reference(reference), base)
        except Exception as error:  # any import error at all: the plugin is not ours
            plugin = self._owners[kind, name]
            raise PluginError(
                f"The {kind} {name!r} of plugin {plugin!r} of {self.origins[plugin].distribution} "
                f"cannot be imported from {reference!r}: {_reason(error)}. Repair that "
                f"distribution, or leave its plugin out with ZOOPRESS_BLOCK_PLUGINS={plugin}."
            ) from error

    def ask(self, hook: Registry, name: str, *arguments: Any) -> Any:
        """Call the function that is registered under a name, and check what it returns.

        Raises:
            PluginError: if nothing is registered so, it cannot be imported, or it returns something
                else than its hook asks for.
        """
        answer = self.resolve(hook, name)(*arguments)
        wrong = wrong_answer(hook, answer)
        if wrong is not None:
            kind = kind_of(hook)
            plugin = self._owners[kind, name]
            raise PluginError(
                f"The {kind} {name!r} of plugin {plugin!r} of {self.origins[plugin].distribution} "
                f"(hook zoopress_{hook}) must return {expected(hook)}; it returned {wrong}. Repair "
                f"that distribution, or leave its plugin out with ZOOPRESS_BLOCK_PLUGINS={plugin}."
            )
        return answer

    def registered_by(self, plugin: str) -> list[tuple[str, str]]:
        """Return the kind ("technique", "source", …) and name of all that a plugin registers."""
        self.check()
        return sorted(key for key, owner in self._owners.items() if owner == plugin)

    def origin(self, hook: Registry, name: str) -> Origin:
        """Return the plugin and distribution that something registered comes from.

        Raises:
            PluginError: if nothing is registered under the name.
        """
        self._get(kind_of(hook), name, self.references[hook])
        return self.origins[self._owners[kind_of(hook), name]]

    def crash(self, error: BaseException) -> str | None:
        """Say which plugin's own bug an error is, None if it comes from none but the built-in."""
        others = {
            n: m for n, m in self.modules.items() if self.origins[n].distribution != "zoopress"
        }
        plugin = culprit(error, others)
        if plugin is None:
            return None
        origin = self.origins[plugin]
        return (
            f"{_reason(error)}: a bug of the plugin {plugin!r} of {origin.distribution} "
            f"{origin.version}, not of zoopress. Tell its authors, or leave it out with "
            f"ZOOPRESS_BLOCK_PLUGINS={plugin}."
        )

    @cached_property
    def commands(self) -> dict[str, tuple[Command, Origin]]:
        """Verbs of the command line that plugins bring, and where each comes from, by name."""
        merged: dict[str, tuple[Command, Origin]] = {}
        for plugin, mapping in self._answers("zoopress_commands", commands_of):
            for name, command in mapping.items():
                if self._claim("command", name, plugin):
                    merged[name] = command, self.origins[plugin]
        return merged

    @cached_property
    def layers(self) -> Mapping[str, type]:
        """Inference layers and packed weights by name; each is imported when first used."""
        return _LazyLayers(self)

    @cached_property
    def cards(self) -> dict[str, Path]:
        """Cards that plugins bring, by name."""
        return self._files("card", "zoopress_cards")

    @cached_property
    def recipes(self) -> dict[str, Path]:
        """Recipes that plugins bring, by name."""
        return self._files("recipe", "zoopress_recipes")

    def check(self) -> None:
        """Merge everything now, so that `broken` and `clashes` are complete."""
        _ = self.techniques, self.references, self.commands, self.cards, self.recipes

    _owners: dict[tuple[str, str], str] = field(default_factory=dict)
    _claimed: set[tuple[str, str]] = field(default_factory=set)

    def _files(self, kind: str, hook: str) -> dict[str, Path]:
        merged: dict[str, Path] = {}
        for plugin, folders in self._answers(hook, existing_folders):
            for folder in folders:
                for path in sorted(folder.glob("*.yaml")):
                    if self._claim(kind, path.stem, plugin):
                        merged[path.stem] = path
        return merged

    def _answers(
        self, hook: str, checked: Callable[[Any], AnswerT]
    ) -> Iterator[tuple[str, AnswerT]]:
        order = {plugin: position for position, plugin in enumerate(self.origins)}
        # Not in pluggy's order: who asks to be called first must not take others' names by that.
        for implementation in sorted(
            getattr(self.manager.hook, hook).get_hookimpls(),
            key=lambda implementation: order.get(implementation.plugin_name, len(order)),
        ):
            try:
                answer = checked(implementation.function())
            except Exception as error:  # a plugin's bug must not take the others down
                plugin = implementation.plugin_name
                distribution = self.origins[plugin].distribution
                problem = BrokenPlugin(plugin, distribution, _reason(error), hook)
                if problem not in self.broken:
                    self.broken.append(problem)
                continue
            yield implementation.plugin_name, answer

    def _claim(self, kind: str, name: str, plugin: str) -> bool:
        """Give a name to the plugin that asks first; who comes later is told, and goes without."""
        owner = self._owners.setdefault((kind, name), plugin)
        if owner == plugin and (kind, name) not in self._claimed:
            self._claimed.add((kind, name))
            return True
        first, second = self.origins[owner].distribution, self.origins[plugin].distribution
        if owner == plugin:
            reason = f"it registers the {kind} {name!r} twice; the first counts"
        else:
            reason = (
                f"its {kind} {name!r} was left out, since {owner!r} of {first} has that name. "
                f"Rename it, uninstall {second}, or block the other with "
                f"ZOOPRESS_BLOCK_PLUGINS={owner}"
            )
        self.clashes.append(Clash(plugin, second, kind, name, reason))
        return False

    def _get(self, kind: str, name: str, merged: Mapping[str, Any]) -> Any:
        if name in merged:
            return merged[name]
        hints = "".join(f" Note: {broken}." for broken in self.broken[:2])
        if len(self.broken) > 2:
            hints += f" {len(self.broken) - 2} more are broken: `zoopress plugin list`."
        if name in self.blocked:
            hints += f" Note: plugin {name!r} is blocked."
        raise PluginError(f"There is no {kind} {name!r}.{nearest(name, merged)}{hints}")


class _LazyLayers(Mapping[str, type]):
    def __init__(self, plugins: Plugins) -> None:
        self._plugins = plugins

    def __getitem__(self, name: str) -> type:
        if name not in self._plugins.references["layers"]:
            raise KeyError(name)
        layer: type = self._plugins.resolve("layers", name)
        return layer

    def __iter__(self) -> Iterator[str]:
        return iter(self._plugins.references["layers"])

    def __len__(self) -> int:
        return len(self._plugins.references["layers"])


def _checked(found: Any, base: str | None) -> Any:
    """Return what was registered, if it is what its hook asks for."""
    if base is None:
        if not callable(found):
            raise TypeError(f"expected a function, got {found!r}")
    elif not (isinstance(found, type) and issubclass(found, import_reference(base))):
        raise TypeError(f"expected a subclass of {base.replace(':', '.')}, got {found!r}")
    return found


def import_reference(reference: str) -> Any:
    """Import "module:attribute", as registered by an installed plugin."""
    module, _, attribute = reference.partition(":")
    return getattr(importlib.import_module(module), attribute)


def load_plugins(blocked: Iterable[str] = (), extra: Mapping[str, object] | None = None) -> Plugins:
    """Find and load every installed plugin; broken ones are recorded and left out.

    Args:
        blocked: names of plugins to leave out; ZOOPRESS_BLOCK_PLUGINS (comma separated) adds more.
        extra: plugins that are not installed, by name, such as a test's.
    """
    from_environment = os.environ.get("ZOOPRESS_BLOCK_PLUGINS", "").split(",")
    names = frozenset({*blocked, *(name.strip() for name in from_environment if name.strip())})
    manager = pluggy.PluginManager("zoopress")
    manager.add_hookspecs(HookSpecs)
    plugins = Plugins(manager, blocked=names)
    # One distribution can be found twice (an editable install beside its metadata): same entry.
    found = {(point.name, point.value, _distribution(point)): point for point in _entry_points()}
    # Ours first: who brings a name that is there already is the newcomer, wherever it lies on disk.
    for point in sorted(found.values(), key=_seniority):
        origin = Origin(point.name, *_distribution(point))
        # Not told by its class: importlib_metadata, once imported, finds entry points of its own.
        _register(plugins, origin, point.load, point.module)
    for name, module in (extra or {}).items():
        _register(plugins, Origin(name, "(not installed)", "0"), partial(_itself, module))
    return plugins


def _entry_points() -> Iterable[EntryPoint]:
    return entry_points(group=GROUP)


def _distribution(point: EntryPoint) -> tuple[str, str]:
    # Of a distribution whose metadata file is damaged or gone these are None, or raise.
    try:
        name, version = _name_and_version(point.dist) if point.dist else (None, None)
    except Exception:
        name, version = None, None
    return name or "(unknown)", version or "0"


@lru_cache(maxsize=256)  # each asks for the whole metadata to be parsed, for every plugin thrice
def _name_and_version(distribution: Distribution) -> tuple[str | None, str | None]:
    return distribution.name, distribution.version


def _seniority(point: EntryPoint) -> tuple[bool, str, str]:
    distribution, _ = _distribution(point)
    return distribution != "zoopress", distribution, point.name


def _itself(module: object) -> object:
    return module


def _register(
    plugins: Plugins, origin: Origin, load: Callable[[], object], module: str | None = None
) -> None:
    if origin.plugin in plugins.blocked:
        return
    if origin.plugin in plugins.origins:
        other = plugins.origins[origin.plugin].distribution
        reason = (
            f"a plugin of {other} is called {origin.plugin!r} too. Uninstall one, or rename its "
            "entry point"
        )
        plugins.broken.append(BrokenPlugin(origin.plugin, origin.distribution, reason))
        return
    plugins.origins[origin.plugin] = origin
    if module is not None:
        plugins.modules[origin.plugin] = module
    stated = None
    try:
        plugin = load()
        stated = plugins.made_for[origin.plugin] = stated_version(plugin)
        if problem := misfit(stated, origin.distribution):
            raise PluginError(problem)
        if problem := unmarked_hook(plugin, _hooks(), f"{GROUP}_impl"):
            raise PluginError(problem)
        plugins.manager.register(plugin, name=origin.plugin)
        # pluggy reports a misspelt hook only when asked, and then for all plugins at once.
        plugins.manager.check_pending()
    # Any error at all, be it `sys.exit()` at import: the plugin is not ours.
    except (Exception, SystemExit) as error:
        if plugins.manager.has_plugin(origin.plugin):
            plugins.manager.unregister(name=origin.plugin)
        if stated is None and module is not None and not isinstance(error, PluginError):
            stated = plugins.made_for[origin.plugin] = version_in_source(module)
        reason = unknown_hook(str(error), _hooks()) or _reason(error)
        if not isinstance(error, PluginError):
            reason = misfit(stated, origin.distribution, _reason(error)) or reason
        plugins.broken.append(BrokenPlugin(origin.plugin, origin.distribution, reason))


def _hooks() -> list[str]:
    return [name for name in vars(HookSpecs) if name.startswith("zoopress_")]


def _reason(error: BaseException) -> str:
    if isinstance(error, PluginError):  # our own words
        return " ".join(str(error).split())
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]
