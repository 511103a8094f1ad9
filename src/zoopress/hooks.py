"""The hooks that plugins implement, and what each wants.

A plugin is a module (or object) with functions marked `@hookimpl`, announced by an entry point in
the group "zoopress". Registered things that are heavy to import are given as "module:attribute"
strings and imported when first used.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import pluggy

if TYPE_CHECKING:
    from zoopress.observers import CellEnd, CellNews, RunNews, StageNews, State
    from zoopress.results import GateInput, Report, StageResult
    from zoopress.techniques import Technique

hookspec = pluggy.HookspecMarker("zoopress")
hookimpl = pluggy.HookimplMarker("zoopress")

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
    "rounders",
]
"""What plugins register by name, as "module:attribute"."""

BASES: dict[Registry, str | None] = {
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
    "rounders": "zoopress.techniques:Rounder",
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
    def zoopress_rounders(self) -> Mapping[str, str]:
        """Return how weights are rounded to a grid, name to "module:Class" below `Rounder`."""
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


def registries() -> dict[str, Registry]:
    """Return what plugins register by name, by what one of it is called: "source", "task", …"""
    return {kind_of(hook): hook for hook in BASES}


def kind_of(hook: Registry) -> str:
    """Return what one of a registry's things is called."""
    singular = {"criteria": "criterion", "losses": "loss"}.get(hook, hook.removesuffix("s"))
    return singular.replace("_", " ")


def commands_of(answer: Any) -> dict[str, Command]:
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
