"""What `zoopress plugin check` holds each kind of registered thing to.

A new hook's check is a line in `CHECKS`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from zoopress.artifacts.artifact import save_artifact
from zoopress.artifacts.manifest import Base
from zoopress.cards import Card, load_card
from zoopress.cells.cell import open_original
from zoopress.evaluation.comparison import Comparison
from zoopress.evaluation.fidelity import run_all
from zoopress.models.packing import PackedWeight
from zoopress.plugins import Plugins, import_reference, registries
from zoopress.recipes import load_recipe
from zoopress.recipes.gate_choices import config_of
from zoopress.sources import pull
from zoopress.tasks import open_dataset, open_task
from zoopress.techniques import Technique
from zoopress.testing.blocks import check_block
from zoopress.testing.conformance import (
    ConformanceError,
    check_declarations,
    check_imports_lightly,
    check_on_card,
    check_technique,
)
from zoopress.testing.criteria import check_criterion
from zoopress.testing.deployment import check_exporter, check_runtime
from zoopress.testing.entropy_coders import check_entropy_coder
from zoopress.testing.losses import check_loss
from zoopress.testing.rounders import check_rounder
from zoopress.testing.tiny import tiny_card

TINY = "the tiny models"


@dataclass(frozen=True)
class Request:
    """What a check may use.

    Attributes:
        plugins: what is registered.
        folder: for what it writes.
        cards: cards of one's own, to check on instead of the tiny models.
        techniques: techniques with the configs to check them with, by name, in place of defaults.
    """

    plugins: Plugins
    folder: Path
    cards: Sequence[Card] = ()
    techniques: Mapping[str, Sequence[Technique[Any]]] = field(default_factory=dict)


Step = tuple[str, Callable[[], object]]
"""What something is checked on ("" if on nothing), and the check: it raises what is wrong."""


def _technique(request: Request, name: str) -> Iterator[Step]:
    plugins = request.plugins
    given = request.techniques.get(name)
    if not given:
        config_type = plugins.technique(name).config_type
        try:
            given = [plugins.technique(name)(config_type())]
        except ValidationError as error:
            missing = [".".join(map(str, item["loc"])) or item["msg"] for item in error.errors()]
            yield "", partial(_without_config, name, missing)
            return
    for technique in given:
        if not request.cards:
            yield TINY, partial(check_technique, technique, plugins)
            continue
        yield "", partial(_declared, technique, plugins)
        for card in request.cards:
            folder = request.folder / f"{name}-{card.name}-{given.index(technique)}"
            yield card.name, partial(check_on_card, technique, card, folder, plugins)


def _without_config(name: str, missing: Sequence[str]) -> None:
    raise ConformanceError(
        f"not checked: its config has no defaults that are valid ({', '.join(missing)}). Give a "
        f"recipe with a stage of it, as --recipe FILE"
    )


def _declared(technique: Technique[Any], plugins: Plugins) -> None:
    check_declarations(technique, plugins)
    check_imports_lightly(type(technique))


def _imported(request: Request, kind: str, name: str) -> Any:
    return request.plugins.resolve(registries()[kind], name)


def _command(request: Request, name: str) -> Iterator[Step]:
    yield "", partial(check_command, name, request.plugins)


def check_command(name: str, plugins: Plugins) -> None:
    """Check that a verb can be imported, and is what the command line takes."""
    command, _ = plugins.commands[name]
    found = import_reference(command.run)
    if not callable(found):
        raise ConformanceError(
            f"{command.run!r} is {found!r}, neither a function nor a typer.Typer"
        )


def _layer(request: Request, name: str) -> Iterator[Step]:
    yield "", lambda: check_layer(_imported(request, "layer", name))


def check_layer(layer: type) -> None:
    """Check that a layer can take a module's, or a parameter's, place."""
    if not issubclass(layer, PackedWeight) and not callable(getattr(layer, "from_module", None)):
        raise ConformanceError(
            f"{layer.__qualname__} has no class method from_module(module, **arguments), as what "
            "takes a module's place has, and is below no PackedWeight, as what takes a "
            "parameter's place is"
        )


def _source(request: Request, name: str) -> Iterator[Step]:
    yield "", partial(_imported, request, "source", name)
    for card in request.cards:
        if card.scheme == name:
            yield card.name, partial(pull, card, request.plugins)


def _dataset(request: Request, name: str) -> Iterator[Step]:
    yield "", partial(_imported, request, "dataset", name)
    for card in request.cards:
        if card.data is not None and (card.data.dataset or "").partition(":")[0] == name:
            yield card.name, partial(check_dataset, card, request.plugins)


def check_dataset(card: Card, plugins: Plugins) -> None:
    """Check that a card's dataset has parts with rows, and a fingerprint that stays."""
    dataset = open_dataset(card, plugins)
    fingerprint = dataset.fingerprint()
    if not isinstance(fingerprint, str) or fingerprint != open_dataset(card, plugins).fingerprint():
        raise ConformanceError("fingerprint() must return one text for one data")
    parts = dataset.parts()
    if not parts or not any(len(table) for table in parts.values()):
        raise ConformanceError("parts() must return at least one table with rows")


def _task(request: Request, name: str) -> Iterator[Step]:
    yield "", partial(_imported, request, "task", name)
    for card in request.cards:
        if card.task == name:
            yield card.name, partial(check_task, card, request.plugins)


def check_task(card: Card, plugins: Plugins) -> None:
    """Check that a card's task runs its model on inputs for calibration and evaluation."""
    original = open_original(card, plugins)
    task = open_task(card, original.files.folder, plugins)
    if task.fingerprint() != open_task(card, original.files.folder, plugins).fingerprint():
        raise ConformanceError("fingerprint() must return one text for one data")
    for split in ("calibration", "test"):
        if not task.batches(split):
            raise ConformanceError(f"make_batches({split!r}) returns no batches")
    if not run_all(task, original.model.load()).outputs:
        raise ConformanceError("call() returns no outputs of the original")


def _architecture(request: Request, name: str) -> Iterator[Step]:
    detect = _imported(request, "architecture", name).detect
    for card in request.cards or [tiny_card("cnn", request.folder / f"architecture-{name}")]:
        yield card.name, partial(_detected, detect, card, request.plugins)


def _detected(detect: Callable[..., object], card: Card, plugins: Plugins) -> None:
    from zoopress.sources import Architecture

    found = detect(card, pull(card, plugins))
    if found is not None and not isinstance(found, Architecture):
        raise ConformanceError(
            f"detect() must return an Architecture or None, not {type(found).__name__}"
        )


def _measure(request: Request, name: str) -> Iterator[Step]:
    cards = request.cards or [tiny_card("cnn", request.folder / f"measure-{name}")]
    for card in cards:
        folder = request.folder / f"measure-{name}-{card.name}"
        on = card.name if request.cards else TINY
        yield on, partial(check_measure, name, card, folder, request.plugins)


def check_measure(name: str, card: Card, folder: Path, plugins: Plugins) -> None:
    """Check that a measure returns plain data of a model beside itself."""
    original = open_original(card, plugins)
    architecture, task = original.architecture, original.task
    started, module = original.model.open(), original.model.load()
    model, others = started.model, started.others
    base = Base(name=card.name, source=card.source, revision="", size_bytes=0, task=card.task)
    folder.mkdir(parents=True)
    save_artifact(folder, model, architecture, base, others)
    runs = run_all(task, module), run_all(task, model.module)
    comparison = Comparison(task, module, model, *runs, folder, plugins)
    plugins.ask("measures", name, comparison, lambda item, fraction=None: None)


def _chosen(kind: str, check: Callable[[Any, Plugins], None]) -> Callable[..., Iterator[Step]]:
    def chosen(request: Request, name: str) -> Iterator[Step]:
        thing = _imported(request, kind, name)
        try:
            made = thing(thing.config_type())
        except ValidationError:
            # Only its author knows options under which it should work.
            yield "imported only: options without defaults", lambda: None
            return
        yield TINY, partial(check, made, request.plugins)

    return chosen


def _gate(request: Request, name: str) -> Iterator[Step]:
    yield "", lambda: check_gate(_imported(request, "gate", name), name)


def check_gate(gate: Any, name: str) -> None:
    """Check that recipes can choose a gate, with its defaults where it has some for all options."""
    config = config_of(gate, name)
    if config is not None and not any(each.is_required() for each in config.model_fields.values()):
        gate(config())


def _card(request: Request, name: str) -> Iterator[Step]:
    yield "", lambda: load_card(str(request.plugins.cards[name]), request.plugins)


def _recipe(request: Request, name: str) -> Iterator[Step]:
    yield "", lambda: load_recipe(str(request.plugins.recipes[name]), request.plugins)


def _by_name(
    check: Callable[[str, Plugins], object],
) -> Callable[[Request, str], Iterator[Step]]:
    """Return the steps of a conformance check that brings its own models."""

    def steps_of(request: Request, name: str) -> Iterator[Step]:
        yield TINY, partial(check, name, request.plugins)

    return steps_of


CHECKS: dict[str, Callable[[Request, str], Iterator[Step]]] = {
    "technique": _technique,
    "layer": _layer,
    "source": _source,
    "architecture": _architecture,
    "task": _task,
    "dataset": _dataset,
    "measure": _measure,
    "criterion": _chosen("criterion", check_criterion),
    "loss": _chosen("loss", check_loss),
    "block": _chosen("block", check_block),
    "rounder": _chosen("rounder", check_rounder),
    "gate": _gate,
    "command": _command,
    "card": _card,
    "recipe": _recipe,
    "runtime": _by_name(check_runtime),
    "exporter": _by_name(check_exporter),
    "entropy coder": _by_name(check_entropy_coder),
}
"""By kind; what is in no line is imported, and is to be of its hook's type."""


def steps(request: Request, kind: str, name: str) -> Iterator[Step]:
    """Yield the checks of one registered thing."""
    if kind in CHECKS:
        yield from CHECKS[kind](request, name)
    else:
        yield "", partial(_imported, request, kind, name)
