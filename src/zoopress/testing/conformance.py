"""The conformance suite: what every technique must do, built-in or a third party's.

    from zoopress.testing.conformance import check_technique

    def test_it_conforms():
        check_technique(MyTechnique(MyConfig(strength=0.5)))

The checks run tiny models through `zoopress.compress`, each run with a store of its own. They need
no data, no network and nothing but what zoopress needs itself.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor

from zoopress.artifacts.artifact import save_artifact
from zoopress.artifacts.manifest import Base
from zoopress.cards import Card
from zoopress.errors import GateError, PluginError, SourceError, StageError
from zoopress.models.model import Model
from zoopress.plugins import Plugins, load_plugins
from zoopress.techniques import (
    KINDS,
    MASKS,
    Config,
    Effects,
    Family,
    Need,
    Technique,
    applied,
    float_weights as float_weights_of,
)
from zoopress.testing.elsewhere import check_hash_seed as check_hash_seed
from zoopress.testing.packed import wrong_codes, wrong_products
from zoopress.testing.replaced import wrong_stand_ins
from zoopress.testing.rules import ConformanceError as ConformanceError, require as require
from zoopress.testing.tiny import (
    IMAGES,
    TINY_MODELS,
    architecture_of,
    artifact_bytes,
    built,
    context_for,
    learns_from_labels,
    reload_artifact,
    run_chain,
    tiny_card,
    workable,
    write_card,
)
from zoopress.training.loss import INPUT

SNAKE_CASE = re.compile(r"[a-z][a-z0-9]*(_[a-z0-9]+)*")


def check_technique(technique: Technique[Any], plugins: Plugins | None = None) -> None:
    """Check that a technique keeps every rule.

    Args:
        technique: with a config under which it should work on at least one of the tiny models: a
            CNN with batch normalization, an LSTM and a transformer encoder, of about 20,000
            parameters each.
        plugins: what is registered, the technique included; everything installed by default.

    Raises:
        ConformanceError: naming the first rule it breaks.
    """
    plugins = plugins or load_plugins()
    try:
        check_declarations(technique, plugins)
        check_imports_lightly(type(technique))
        with tempfile.TemporaryDirectory() as folder:
            check_on_models(technique, Path(folder), plugins)
            check_refusals(technique, Path(folder) / "refusals", plugins)
        if plugins.technique_origin(technique.name).distribution != "zoopress":
            check_hash_seed(technique, plugins)
    except (ConformanceError, GateError, PluginError) as error:
        raise ConformanceError(f"{type(technique).__name__}: {error}") from error


def check_declarations(technique: Technique[Any], plugins: Plugins) -> None:
    """Check names, documentation, config and effects."""
    kind = type(technique)
    require(
        SNAKE_CASE.fullmatch(kind.name) is not None,
        f"the name {kind.name!r} is not in snake_case, such as 'row_pruning'",
    )
    require(
        kind.family in get_args(Family),
        f"family {kind.family!r} is none of {list(get_args(Family))}",
    )
    require(
        plugins.techniques.get(kind.name) is kind,
        f"{kind.name!r} is not registered as this class. Return it from a hook "
        "zoopress_techniques, and name its module in the entry-point group 'zoopress'; then "
        "install the package. " + " ".join(map(str, plugins.broken)),
    )
    require(bool((vars(kind).get("__doc__") or "").strip()), "the class has no docstring")
    check_config(kind.config_type, technique.config)
    unknown = set(kind.needs) - set(get_args(Need))
    require(
        not unknown,
        f"needs names {sorted(unknown)}; there are {', '.join(map(repr, get_args(Need)))}",
    )
    check_layers(kind.name, plugins)
    effects = technique.effects()
    require(isinstance(effects, Effects), "effects() does not return zoopress.Effects")
    for field_name in ("requires", "adds", "destroys"):
        properties = getattr(effects, field_name)
        require(
            isinstance(properties, frozenset) and all(isinstance(p, str) for p in properties),
            f"effects().{field_name} is not a frozenset of strings: {properties!r}",
        )


def check_layers(name: str, plugins: Plugins) -> None:
    """Check that the layers that a technique's plugin registers exist, so that artifacts open."""
    origin = plugins.technique_origin(name)
    for kind, layer in plugins.registered_by(origin.plugin):
        if kind == "layer":
            try:
                plugins.resolve("layers", layer)
            except PluginError as error:
                raise ConformanceError(str(error)) from error


def check_config(config_type: type[Any], config: Config) -> None:
    """Check the class of a config, and that a config stays what it is as JSON."""
    require(
        isinstance(config_type, type) and issubclass(config_type, Config),
        "config_type is not a subclass of zoopress.Config",
    )
    require(
        config_type.model_config.get("extra") == "forbid",
        f"{config_type.__name__} accepts unknown keys; keep extra='forbid' of zoopress.Config",
    )
    for name, field in config_type.model_fields.items():
        require(
            bool((field.description or "").strip()),
            f"the config's field {name!r} has no description: Field(description=…)",
        )
    again = config_type.model_validate(config.model_dump(mode="json"))
    require(again == config, "the config is another one after it went through JSON")


def check_imports_lightly(kind: type[Technique[Any]]) -> None:
    """Check that importing the technique's file does not import torch.

    `zoopress techniques` and tab completion import every plugin; with torch they would take seconds
    instead of milliseconds.
    """
    code = (
        "import importlib, sys; sys.path[:] = sys.argv[2:]; importlib.import_module(sys.argv[1]); "
        "sys.exit('torch' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, kind.__module__, *sys.path],
        capture_output=True,
        text=True,
        check=False,
    )
    require(not done.stderr, f"module {kind.__module__!r} cannot be imported: {done.stderr}")
    require(
        done.returncode == 0,
        f"importing {kind.__module__!r} imports torch; move that import into the functions that "
        "use it, and under `if TYPE_CHECKING:` for annotations",
    )


def check_on_models(technique: Technique[Any], folder: Path, plugins: Plugins) -> None:
    """Check a technique on every tiny model; it must work on at least one.

    One that learns from labels is checked on images alone, which have some.
    """
    refused = {}
    names = ["cnn"] if learns_from_labels(technique) else list(TINY_MODELS)
    for name in names:
        try:
            check_on_model(technique, name, folder / name, plugins)
        except StageError as error:
            refused[name] = str(error)
    require(
        len(refused) < len(names),
        f"it works on none of the tiny models: {refused}. Give the test a config with which it "
        "works on at least one.",
    )


def check_on_model(technique: Technique[Any], name: str, folder: Path, plugins: Plugins) -> None:
    """Check a technique on one tiny model.

    Raises:
        StageError: if the technique finds nothing to do there, which is no fault of its.
        ConformanceError: if it breaks a rule.
    """
    card = tiny_card(name, folder, labelled=learns_from_labels(technique))
    check_on_card(technique, card, folder, plugins)


def check_on_card(technique: Technique[Any], card: Card, folder: Path, plugins: Plugins) -> None:
    """Check a technique on a card's model.

    Args:
        technique: what to check.
        card: any, with the data that the technique needs.
        folder: for what the check writes.
        plugins: what is registered.

    Raises:
        StageError: if the technique finds nothing to do there, which is no fault of its.
        ConformanceError: if it breaks a rule.
    """
    name = card.name
    _check_needs(technique, card, folder / "checkpoint", plugins)
    try:
        first = run_chain([technique], card, folder / "first", plugins)
        second = run_chain([technique], card, folder / "second", plugins)
    except StageError as error:
        raise ConformanceError(f"what it makes of the {name} is broken: {error}") from error
    require(
        artifact_bytes(first.artifact) == artifact_bytes(second.artifact),
        f"two runs on the {name} with one seed give different files. Draw random numbers from "
        "context.generator() alone, and iterate over nothing whose order may change",
    )
    model = reload_artifact(first.artifact, card, plugins)
    original = Model(built(card, plugins), plugins.layers)
    _check_touched(first.report.last.touched, original, model)
    for check in (wrong_codes, wrong_products):
        require((wrong := check(model)) is None, f"on the {name}, {wrong}")
    context = context_for(card, folder / "replaced", plugins)
    wrong = wrong_stand_ins(model.module, lambda: context.call(model.module, context.batches()[0]))
    require(wrong is None, f"on the {name}, {wrong}")
    _check_effects(technique, original, model)
    _check_stored_alike(model, card, folder / "again", plugins)
    if MASKS not in technique.effects().destroys:
        _check_keeps_masks(technique, card, folder / "masked", plugins)


def _check_needs(technique: Technique[Any], card: Card, folder: Path, plugins: Plugins) -> None:
    """Check that a technique, applied once, asks its context for nothing it did not declare."""
    context, asked = context_for(card, folder, plugins), set()
    batches, teacher = context.batches, context.teacher
    assert teacher is not None, "`context_for` gives one"

    def watched_batches() -> Any:
        asked.add("calibration")
        return batches()

    def watched_teacher(of: str | None) -> Any:
        if of != INPUT:
            asked.add("teacher")
        return teacher(of)

    context.batches, context.teacher = watched_batches, watched_teacher
    applied(technique, Model(built(card, plugins), plugins.layers), context)
    undeclared = asked - technique.needs
    require(
        not undeclared,
        f"it uses what it does not declare: {sorted(undeclared)}. Name it in the class attribute "
        "needs, so that a plan refuses cards that have none",
    )


def check_refusals(technique: Technique[Any], folder: Path, plugins: Plugins) -> None:
    """Check that what cannot be compressed is refused in words, not with a traceback."""
    labelled = learns_from_labels(technique)
    card = tiny_card(workable(technique, folder, plugins), folder / "nan", _poison, labelled)
    _expect(
        SourceError,
        lambda: run_chain([technique], card, folder / "nan" / "out", plugins),
        "a model with NaN weights",
    )
    bare = write_card("without_matrices", IMAGES, folder / "bare", labelled=labelled)
    try:
        run_chain([technique], bare, folder / "bare" / "out", plugins)
    except StageError:
        pass
    except GateError as error:
        # Coding works on any tensor; that so few bytes do not shrink is for the gate to say.
        require(
            "something_touched" not in str(error),
            "on a model without any matrix it does nothing in silence. Raise StageError, as "
            "WeightSelection.select does",
        )


def _check_touched(touched: Sequence[str], original: Model, model: Model) -> None:
    known: set[str] = set()
    for each in (original, model):
        known |= {*each.tensors(), *dict(each.module.named_modules(remove_duplicate=False))}
    unknown = [name for name in touched if name not in known]
    require(
        not unknown,
        f"Outcome.touched names what is neither a tensor nor a module of the model: {unknown[:4]}",
    )


def _check_effects(technique: Technique[Any], original: Model, model: Model) -> None:
    effects = technique.effects()
    if model.masks:
        require(
            MASKS in effects.adds,
            "it pruned weights by Model.mask, but effects().adds lacks zoopress.techniques.MASKS, "
            "so a later stage could undo it",
        )
    else:
        require(MASKS not in effects.adds, "effects().adds promises masks, but it made none")
    if effects.activations == "kept":
        require(
            all(
                _same(tensor, model.tensors()[name]) for name, tensor in original.tensors().items()
            ),
            'effects().activations is "kept", but it changed tensors of the model',
        )
    include = getattr(technique.config, "include", ("*",))
    for kind in KINDS if include == ("*",) else ():
        if any(original.weights((kind,))) and not any(model.weights((kind,))):
            require(
                float_weights_of(kind) in effects.destroys,
                f"it leaves no {float_weights_of(kind)!r}, but effects().destroys does not say so, "
                "and a later stage that needs them would fail late",
            )


def _check_stored_alike(model: Model, card: Card, folder: Path, plugins: Plugins) -> None:
    """Check that a model, loaded and saved again in either container, is still the same."""
    before = model.tensors()
    for storage in ("safetensors", "zpz"):
        model.storage = storage
        again = _through_disk(model, card, folder / storage, plugins)
        after = again.tensors()
        require(
            before.keys() == after.keys()
            and all(_same(tensor, after[name]) for name, tensor in before.items()),
            f"saved as {storage} and loaded, the model has other tensors",
        )


def _check_keeps_masks(
    technique: Technique[Any], card: Card, folder: Path, plugins: Plugins
) -> None:
    """Check that weights pruned by an earlier stage are still zero after this one."""
    model = Model(built(card, plugins), plugins.layers)
    for weight in model.weights():
        size = weight.parameter.detach().abs()
        model.mask(weight, size > size.median())
    try:
        technique.apply(model, context_for(card, folder / "checkpoint", plugins))
        again = _through_disk(model, card, folder / "artifact", plugins)
    except StageError as error:
        raise ConformanceError(
            f"it fails on a pruned model: {error} Change weights through the "
            "methods of zoopress.Model, or let effects().destroys name zoopress.techniques.MASKS."
        ) from error
    require(
        bool(again.masks) and all(torch.equal(m, again.masks[n]) for n, m in model.masks.items()),
        "the masks of an earlier stage are lost after it",
    )


def _through_disk(model: Model, card: Card, folder: Path, plugins: Plugins) -> Model:
    folder.mkdir(parents=True)
    architecture = architecture_of(card, plugins)
    base = Base(name=card.name, source=card.source, revision="", size_bytes=0, task=card.task)
    save_artifact(folder, model, architecture, base, {}, plugins=plugins)
    return reload_artifact(folder, card, plugins)


def _same(a: Tensor, b: Tensor) -> bool:
    return a.dtype == b.dtype and torch.equal(a, b)


def _poison(tensors: dict[str, Tensor]) -> None:
    first = next(tensor for tensor in tensors.values() if tensor.ndim > 1)
    first.view(-1)[0] = torch.nan


def _expect(error: type[Exception], run: Callable[[], object], what: str) -> None:
    try:
        run()
    except error:
        return
    raise ConformanceError(f"{what} is not refused with {error.__name__}")
