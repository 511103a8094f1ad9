"""The identity of what plugins register, and of the core: distribution, version, digest of code.

What counts is what import statements lead to. Other distributions end the search, but those that
bring plugins themselves; of the core, the rooms that say, show, carry or plan do not count.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import CodeType
from typing import Any, cast

from zoopress.identity.modules import files_of, find_module, is_installed
from zoopress.identity.reach import Reached, reach
from zoopress.plugins import Origin, Plugins, Registry
from zoopress.store import digest

SILENT_ROOMS = frozenset(
    {
        *("__init__", "__main__", "cards", "cells", "commands", "errors", "estimates", "gates"),
        *("hooks", "hub", "identity", "interface", "loading", "moved", "observers"),
        *("orchestration", "pipeline", "plugins", "progress", "provenance", "publishing"),
        *(
            "recipes",
            "reports",
            "repository",
            "scaffolds",
            "store",
            "testing",
            "units",
            "yaml_source",
        ),
    }
)
"""Rooms of the core that no stored number depends on. A room that is new counts."""

OF_CARDS = frozenset(
    {"sources", "card_makers", "architectures", "tasks", "datasets", "measures", "gates"}
)
"""What cards name, or nothing that is stored depends on; stages may use all else."""

_LIBRARIES = frozenset({"numpy", "timm", "torch", "torchvision", "transformers", "gguf"})
"""Never followed, even where they are no installed packages but checkouts."""

_STAGE = ("zoopress.artifacts.artifact", "zoopress.evaluation.fidelity", "zoopress.techniques")
_REPORT = tuple(
    f"zoopress.evaluation.{name}" for name in ("evaluate", "latency", "machine", "sensitivity")
)
_SERVICES = {"train": "zoopress.training.loop", "statistics": "zoopress.statistics"}
"""Rooms that only those depend on that ask a context for them."""
_SERVICE_ROOMS = ("training", "statistics")
_WORKBENCH = ("zoopress.pipeline.workbench",)


@dataclass(frozen=True)
class Belongs:
    """Tells whether a module is part of what is identified.

    Attributes:
        own: files of installed distributions that are.
        tops: first parts of names of modules that are, wherever they lie.
        silent: rooms of the core that are not.
        alone: whether nothing is, but what the search starts from.
    """

    own: frozenset[Path] = frozenset()
    tops: frozenset[str] = frozenset()
    silent: frozenset[str] = SILENT_ROOMS
    alone: bool = False

    def __call__(self, name: str, file: Path) -> bool:
        if self.alone:
            return False
        top, _, rest = name.partition(".")
        if top == "zoopress":
            return (rest.partition(".")[0] or "__init__") not in self.silent
        if top in _LIBRARIES:
            return False
        return top in self.tops or not is_installed(file) or file.resolve() in self.own


def core_code(roots: Sequence[str], without: Iterable[str] = (), within: Iterable[str] = ()) -> str:
    """Return the digest of what modules of the core lead to inside the core.

    Args:
        roots: the modules.
        without: more rooms that do not count.
        within: silent rooms that do.
    """
    silent = (SILENT_ROOMS | frozenset(without)) - frozenset(within)
    return reach(roots, Belongs(silent=silent)).digest


def statistics_code() -> str:
    """Return the digest of what of the core a statistic of calibration data depends on."""
    return core_code((_SERVICES["statistics"],), without=("training",))


def every_stage_code() -> list[str]:
    """Return digests of what of the core any stage's result depends on.

    Training and statistics count where a stage asks for them. The workbench leads to all that
    reports measure, so it counts by itself.
    """
    return [
        core_code(_STAGE, without=_SERVICE_ROOMS),
        reach(_WORKBENCH, Belongs(alone=True)).digest,
    ]


def report_code() -> str:
    """Return the digest of what of the core a report depends on, but for what cards ask for."""
    return core_code(_REPORT, without=_SERVICE_ROOMS)


class Parts:
    """What the plugins of a run register, for keys.

    Args:
        plugins: which.
    """

    def __init__(self, plugins: Plugins) -> None:
        self.plugins = plugins

    def registered(self, hook: Registry, name: str) -> dict[str, Any]:
        """Return the identity of what is registered as "module:attribute".

        Raises:
            PluginError: if nothing is.
        """
        origin = self.plugins.origin(hook, name)
        return self._identity(origin, self._reach(self._module(hook, name)))

    def stage(self, techniques: Sequence[Any], spelled: Mapping[str, Any]) -> dict[str, Any]:
        """Return the identity of all code that a stage runs.

        Args:
            techniques: the technique, and what recovers from it.
            spelled: their configs as plain data.
        """
        parts, words = [], _words(spelled)
        asks = {"train"} if len(techniques) > 1 else set[str]()
        for technique in techniques:
            reached = self._reach(type(technique).__module__)
            origin = self.plugins.technique_origin(technique.name)
            parts.append(self._identity(origin, reached, type(technique)))
            words |= reached.words
            asks |= reached.asks | ({"train"} if "training" in technique.needs else set())
        uses: dict[str, Any] = {}
        while new := [each for each in self._named(words) if "/".join(each) not in uses]:
            for hook, name in new:
                reached = self._reach(self._module(hook, name))
                uses[f"{hook}/{name}"] = self._identity(self.plugins.origin(hook, name), reached)
                words |= reached.words
                asks |= reached.asks
        return {
            "techniques": parts,
            "uses": uses,
            "services": {name: core_code((_SERVICES[name],)) for name in sorted(asks)},
        }

    def technique(self, technique: type) -> str:
        """Return the digest of a technique's code."""
        return str(self._code(self._reach(technique.__module__), technique))

    def layers_of(self, stage: Mapping[str, Any]) -> frozenset[str]:
        """Return which registered layers the identity of a stage knows."""
        return frozenset(
            key.removeprefix("layers/") for key in stage["uses"] if key.startswith("layers/")
        )

    def _named(self, words: set[str]) -> list[tuple[Registry, str]]:
        """Return what is registered under one of the words."""
        return [
            (hook, name)
            for hook, mapping in cast(
                "dict[Registry, dict[str, str]]", self.plugins.references
            ).items()
            if hook not in OF_CARDS
            for name in mapping
            if name in words
        ]

    def _module(self, hook: Registry, name: str) -> str:
        return self.plugins.references[hook][name].partition(":")[0]

    def _reach(self, module: str) -> Reached:
        found = find_module(module)
        tops: frozenset[str] = frozenset()
        if found and found.file and is_installed(found.file) and found.file not in self._own:
            tops = frozenset({module.partition(".")[0]})  # nothing tells which files go with it
        # What every technique meets is in every stage's key, and leads to all services.
        return reach((module,), Belongs(self._own, tops, SILENT_ROOMS | {"techniques"}))

    def _identity(
        self, origin: Origin, reached: Reached, kind: type | None = None
    ) -> dict[str, Any]:
        return {
            "distribution": origin.distribution,
            "version": origin.version,
            "code": self._code(reached, kind),
        }

    def _code(self, reached: Reached, kind: type | None) -> str:
        if not reached.files and kind is not None:
            return digest(_compiled(kind))  # typed into a session: there is no file
        return reached.digest

    @cached_property
    def _own(self) -> frozenset[Path]:
        names = {origin.distribution for origin in self.plugins.origins.values()}
        return frozenset[Path]().union(*(files_of(name) for name in names))


def _words(data: Any) -> set[str]:
    """Return all strings in plain data."""
    if isinstance(data, str):
        return {data}
    if isinstance(data, Mapping):
        return set[str]().union(*(_words(value) for value in data.values()))
    if isinstance(data, (list, tuple)):
        return set[str]().union(*(_words(value) for value in data))
    return set()


def _compiled(kind: type) -> list[Any]:
    """Return what tells the methods of a class that has no file."""
    return [
        [name, _plain(value.__code__)]
        for name, value in sorted(vars(kind).items())
        if hasattr(value, "__code__")
    ]


def _plain(code: CodeType) -> list[Any]:
    constants = [_plain(c) if isinstance(c, CodeType) else repr(c) for c in code.co_consts]
    return [code.co_code.hex(), constants, list(code.co_names)]
