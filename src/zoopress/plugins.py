"""Hooks that plugins implement, and the manager that finds, loads and merges them.

A plugin is a module (or object) with functions marked `@hookimpl`, announced by an entry point in
the group "zoopress". Registered things that are heavy to import are given as "module:attribute"
strings and imported when first used.
"""

from __future__ import annotations

import importlib
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache, partial
from importlib.metadata import Distribution, EntryPoint, entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import pluggy

from zoopress.errors import PluginError, nearest
from zoopress.interface import (
    HOOK_INTERFACE as HOOK_INTERFACE,
    Version,
    existing_folders,
    expected,
    misfit,
    named_references,
    stated_version,
    technique_classes,
    unknown_hook,
    version_in_source,
    wrong_answer,
)

if TYPE_CHECKING:
    from zoopress.observers import CellEnd, CellNews, RunNews, StageNews, State
    from zoopress.results import GateInput, Report, StageResult
    from zoopress.techniques import Technique

GROUP = "zoopress"
hookspec = pluggy.HookspecMarker("zoopress")
hookimpl = pluggy.HookimplMarker("zoopress")
AnswerT = TypeVar("AnswerT")

Registry = Literal[
    "layers",
    "sources",
    "card_makers",
    "architectures",
    "tasks",
    "datasets",
    "measures",
    "gates",
    "entropy_coders",
    "exporters",
    "runtimes",
    "criteria",
    "losses",
    "blocks",
]
"""What plugins register by name, as "module:attribute"."""

_BASES: dict[Registry, str | None] = {
    "layers": "torch.nn:Module",
    "sources": None,
    "card_makers": "zoopress.cards.maker:CardMaker",
    "architectures": "zoopress.sources:Architecture",
    "tasks": "zoopress.tasks:Task",
    "datasets": None,
    "measures": None,
    "gates": None,
    "entropy_coders": "zoopress.coding.entropy_coder:EntropyCoder",
    "exporters": "zoopress.exporters:Exporter",
    "runtimes": "zoopress.runtimes:Runtime",
    "criteria": "zoopress.techniques:Criterion",
    "losses": "zoopress.training.loss:Loss",
    "blocks": "zoopress.techniques:Block",
}
"""The class that what is registered must be below; None for functions."""


@dataclass(frozen=True)
class Command:
    """A verb of the command line.

    Attributes:
        run: "module:attribute" of a function as typer takes it, or of a `typer.Typer` with verbs of
            its own; imported when the verb is used.
        help: its line in `zoopress --help`.
    """

    run: str
    help: str


class HookSpecs:
    """Every hook a plugin can implement. All are optional."""

    @hookspec
    def zoopress_techniques(self) -> Iterable[type[Technique[Any]]]:
        """Return technique classes."""
        raise AssertionError("a specification is never called")

    @hookspec
    def zoopress_layers(self) -> Mapping[str, str]:
        """Return inference layers and packed weights, name to "module:Class".

        Artifacts name them, so a name stays valid for as long as artifacts exist that use it.
        """
        raise AssertionError("a specification is never called")

    @hookspec
    def zoopress_sources(self) -> Mapping[str, str]:
        """Return model sources, scheme to "module:function".

        The function takes a `Card` and returns the `SourceFiles` of "scheme:location".
        """
        raise AssertionError("a specification is never called")

    @hookspec
    def zoopress_card_makers(self) -> Mapping[str, str]:
        """Return what makes cards, source scheme to "module:Class" of a `CardMaker` subclass."""
        raise AssertionError("a specification is never called")

    @hookspec
    def zoopress_architectures(self) -> Mapping[str, str]:
        """Return architecture builders, name to "module:Class" of an `Architecture` subclass."""
        raise AssertionError("a specification is never called")

    @hookspec
    def zoopress_tasks(self) -> Mapping[str, str]:
        """Return tasks, name to "module:Class" of a `Task` subclass."""
        raise AssertionError("a specification is never called")

    @hookspec
    def zoopress_datasets(self) -> Mapping[str, str]:
        """Return where labelled samples come from, scheme to "module:function".

        The function takes a `Card` whose `data.dataset` is "scheme:location", and returns a
        `Dataset`.
        """
        raise AssertionError("a specification is never called")

    @hookspec
    def zoopress_measures(self) -> Mapping[str, str]:
        """Return what reports can measure, name to "module:function".

        The function takes a `Comparison` and a `Progress`, and returns plain data for the report.
        """
        raise AssertionError("a specification is never called")

    @hookspec
    def zoopress_gates(self) -> Mapping[str, str]:
        """Return gates, name to "module:function" or "module:Class"; recipes choose among them.

        A gate takes a `GateInput` and returns None to pass, or a sentence that says what failed and
        what to change. A class has a `config_type`, `__init__(config)` and `__call__(given)`.
        """
        raise AssertionError("a specification is never called")

    @hookspec
    def zoopress_entropy_coders(self) -> Mapping[str, str]:
        """Return what codes integers in `.zpz` files, name to "module:Class" of an `EntropyCoder`.

        Files name them, so a name stays valid for as long as files exist that use it.
        """
        raise AssertionError("a specification is never called")

    @hookspec
    def zoopress_exporters(self) -> Mapping[str, str]:
        """Return what writes models for other programs, name to "module:Class" of an `Exporter`."""
        raise AssertionError("a specification is never called")

    @hookspec
    def zoopress_runtimes(self) -> Mapping[str, str]:
        """Return what runs models, name to "module:Class" of a `Runtime` subclass."""
        raise AssertionError("a specification is never called")

    @hookspec
    def zoopress_commands(self) -> Mapping[str, Command]:
        """Return verbs of the command line, name to `zoopress.plugins.Command`."""
        raise AssertionError("a specification is never called")

    @hookspec
    def zoopress_criteria(self) -> Mapping[str, str]:
        """Return what tells which weights to keep, name to "module:Class" below `Criterion`."""
        raise AssertionError("a specification is never called")

    @hookspec
    def zoopress_losses(self) -> Mapping[str, str]:
        """Return what training can lower, name to "module:Class" of a `Loss` subclass."""
        raise AssertionError("a specification is never called")

    @hookspec
    def zoopress_blocks(self) -> Mapping[str, str]:
        """Return what can take a module's place, name to "module:Class" of a `Block` subclass."""
        raise AssertionError("a specification is never called")

    @hookspec
    def zoopress_cards(self) -> Iterable[Path]:
        """Return folders with cards, NAME.yaml each."""
        raise AssertionError("a specification is never called")

    @hookspec
    def zoopress_recipes(self) -> Iterable[Path]:
        """Return folders with recipes, NAME.yaml each."""
        raise AssertionError("a specification is never called")

    @hookspec
    def zoopress_before_stage(self, technique: str, position: int, key: str) -> None:
        """Observe that a stage is about to be computed (not when it comes from the store)."""

    @hookspec
    def zoopress_after_stage(self, technique: str, position: int, result: GateInput) -> None:
        """Observe a computed stage, before its gates decide."""

    @hookspec
    def zoopress_run_started(self, run: RunNews) -> None:
        """Observe that a run begins: one cell, or a whole zoo's."""

    @hookspec
    def zoopress_run_ended(self, run: RunNews, cells: Sequence[CellEnd], seconds: float) -> None:
        """Observe that a run is over, and how each of its cells ended."""

    @hookspec
    def zoopress_cell_started(self, cell: CellNews) -> None:
        """Observe that work on a card and a recipe begins."""

    @hookspec
    def zoopress_cell_ended(
        self,
        cell: CellNews,
        state: State,
        report: Report | None,
        error: str | None,
        seconds: float,
    ) -> None:
        """Observe that a cell is done, with its report, or that it failed or was stopped."""

    @hookspec
    def zoopress_stage_started(self, cell: CellNews, stage: StageNews) -> None:
        """Observe that a stage is about to be computed (not when it comes from the store)."""

    @hookspec
    def zoopress_stage_ended(
        self, cell: CellNews, stage: StageNews, result: StageResult, computed: bool, seconds: float
    ) -> None:
        """Observe a stage's result, computed just now or found in the store."""

    @hookspec
    def zoopress_stage_failed(
        self, cell: CellNews, stage: StageNews, error: str, result: StageResult | None
    ) -> None:
        """Observe a stage that failed; with its result, if it only missed what the recipe asks."""


@dataclass(frozen=True)
class BrokenPlugin:
    """A plugin that could not be loaded."""

    name: str
    distribution: str
    reason: str

    def __str__(self) -> str:
        return f"plugin {self.name!r} of {self.distribution} is broken and was left out: " + (
            self.reason
        )


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
        merged: dict[str, dict[str, str]] = {hook: {} for hook in _BASES}
        for hook in _BASES:
            for plugin, mapping in self._answers(f"zoopress_{hook}", named_references):
                for name, reference in mapping.items():
                    if self._claim(_kind(hook), name, plugin):
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
        kind, base = _kind(hook), _BASES[hook]
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
            kind = _kind(hook)
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
        self._get(_kind(hook), name, self.references[hook])
        return self.origins[self._owners[_kind(hook), name]]

    @cached_property
    def commands(self) -> dict[str, tuple[Command, Origin]]:
        """Verbs of the command line that plugins bring, and where each comes from, by name."""
        merged: dict[str, tuple[Command, Origin]] = {}
        for plugin, mapping in self._answers("zoopress_commands", _commands):
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
                problem = _broken(implementation.plugin_name, self.origins, error, hook)
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
        hints = "".join(f" Note: {broken}." for broken in self.broken)
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


def registries() -> dict[str, Registry]:
    """Return what plugins register by name, by what one of it is called: "source", "task", …"""
    return {_kind(hook): hook for hook in _BASES}


def _kind(hook: Registry) -> str:
    """Return what one of a registry's things is called."""
    singular = {"criteria": "criterion", "losses": "loss"}.get(hook, hook.removesuffix("s"))
    return singular.replace("_", " ")


def kind_of(hook: Registry) -> str:
    """Return what one of a registry's things is called, such as "layer"."""
    return _kind(hook)


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


def _commands(answer: Any) -> dict[str, Command]:
    """Check what a plugin answers to a hook that wants verbs of the command line."""
    commands = dict(answer)
    for name, command in commands.items():
        if not isinstance(name, str) or not re.fullmatch(r"[a-z][a-z0-9]*(-[a-z0-9]+)*", name):
            raise TypeError(
                f"a command's name is in kebab-case, such as 'show-weights'; got {name!r}"
            )
        if not isinstance(command, Command) or ":" not in command.run or not command.help.strip():
            raise TypeError(
                f'expected zoopress.plugins.Command("module:attribute", help line) for {name!r}, '
                f"got {command!r}"
            )
    return commands


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
        plugins.manager.register(plugin, name=origin.plugin)
        # pluggy reports a misspelt hook only when asked, and then for all plugins at once.
        plugins.manager.check_pending()
    # Any error at all, be it `sys.exit()` at import: the plugin is not ours.
    except (Exception, SystemExit) as error:
        if plugins.manager.has_plugin(origin.plugin):
            plugins.manager.unregister(name=origin.plugin)
        if stated is None and module is not None and not isinstance(error, PluginError):
            stated = plugins.made_for[origin.plugin] = version_in_source(module)
        known = [name for name in vars(HookSpecs) if name.startswith("zoopress_")]
        reason = unknown_hook(str(error), known) or _reason(error)
        if not isinstance(error, PluginError):
            reason = misfit(stated, origin.distribution, _reason(error)) or reason
        plugins.broken.append(BrokenPlugin(origin.plugin, origin.distribution, reason))


def _broken(
    name: str, origins: Mapping[str, Origin], error: BaseException, hook: str = ""
) -> BrokenPlugin:
    where = f"{hook}: " if hook else ""
    return BrokenPlugin(name, origins[name].distribution, where + _reason(error))


def _reason(error: BaseException) -> str:
    if isinstance(error, PluginError):  # our own words
        return " ".join(str(error).split())
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]
