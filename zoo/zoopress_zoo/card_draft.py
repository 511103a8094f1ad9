"""Make a card of a model whose files of settings are on disk and whose weights need not be."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from zoopress.artifacts.architectures import check_registered, named_architecture
from zoopress.artifacts.card_model import manifest_of
from zoopress.artifacts.manifest import MANIFEST, Manifest
from zoopress.cards import Card
from zoopress.cards.maker import Draft, Wish, clean
from zoopress.errors import SourceError, ZoopressError
from zoopress.plugins import Plugins
from zoopress.sources import Architecture, SourceFiles, build_on_meta, detect_architecture
from zoopress.tasks import DatasetTask, Task
from zoopress.units import show_number
from zoopress_zoo.card_facts import bases, describe, pipeline_of
from zoopress_zoo.card_inputs import TOKENIZER_FILES, Inputs, infer_inputs, inputs_without_module
from zoopress_zoo.card_of_compressed import (
    compressed_from,
    factory_wanted,
    facts_of_base,
    shared_data,
)
from zoopress_zoo.transformers_classes import named_class
from zoopress_zoo.transformers_config import read_config

_MILLION = 1_000_000
_LIBRARIES = {
    "sentence_encoder": "sentence-transformers",
    "timm": "timm",
    "transformers": "transformers",
}
_FACTORY = (
    "Nothing says how its module is built: there is no config.json of a known library. Write a "
    "Python function that returns the module without weights, and a card with `source: {source}` "
    "and `factory: FILE.py:FUNCTION`."
)


@dataclass(frozen=True)
class Found:
    """A model that has been found.

    Attributes:
        name: of its card.
        source: of its card.
        origin: which model it is, for people.
        files: those of settings are on disk.
        metadata: of its README.
        base_model: its repository on the Hub.
        owner: whose it is.
        notes: comments that its card gets, by key.
        pinned_from: the branch or tag of the commit that its source names.
        made_with: the card that a compressed model was made with, if it is known.
    """

    name: str
    source: str
    origin: str
    files: SourceFiles
    metadata: Mapping[str, Any]
    base_model: str | None = None
    owner: str = ""
    notes: Mapping[str, str] = field(default_factory=dict)
    pinned_from: str | None = None
    made_with: Mapping[str, Any] = field(default_factory=dict)


def make_draft(found: Found, wish: Wish, plugins: Plugins) -> Draft:
    """Return a card with all that can be inferred, and what could not be.

    Raises:
        SourceError: if it cannot become one.
    """
    try:
        return _make(found, wish, plugins)
    except ZoopressError as error:
        made_from = bases(found.metadata)
        text = str(error).replace(f"{found.files.folder}/", "").removeprefix(f"{found.origin}: ")
        if "quantized" in text and made_from:
            text += f" That is {made_from[0]}: `zoopress zoo add {made_from[0]}`."
        raise SourceError(text) from error


def _make(found: Found, wish: Wish, plugins: Plugins) -> Draft:
    files = found.files
    values: dict[str, Any] = {"name": found.name, "description": "", "source": found.source}
    manifest = manifest_of(files)
    metadata = found.metadata if manifest is None else facts_of_base(found.metadata, manifest)
    facts, missing = describe(metadata, files.others)
    notes = dict(found.notes)
    config = read_config(files.folder) if "config.json" in files.others else {}
    is_known = config or "modules.json" in files.others or _is_gguf(files)
    if manifest is None and not is_known:
        raise SourceError(_FACTORY.format(source=found.source))
    base_model = found.base_model if manifest is None else manifest.base.base_model
    if base_model:
        values["base_model"] = base_model
    else:
        missing["base_model"] = "base_model: if this model is on the Hub, its ORG/NAME there."
    values |= facts
    architecture, module = _build(values, files, plugins, notes, manifest)
    if module is None and manifest is not None and _needs_factory(architecture):
        missing["factory"] = factory_wanted(manifest)
    chosen = str(architecture.arguments.get("class") or type(module).__name__)
    named = named_class(config)
    plain = manifest is None and module is not None
    if architecture.name == "transformers" and plain and chosen != named:
        values["model_class"] = chosen
        why = f"names {clean(named, 80)}, which transformers lacks" if named else "names none"
        notes["model_class"] = (
            f"config.json {why}; {chosen} was taken for "
            f"{values.get('pipeline_tag', 'want of a pipeline_tag')}. Check that it fits."
        )
    encodes = architecture.name == "sentence_encoder"
    if architecture.name in _LIBRARIES:
        values.setdefault("library_name", _LIBRARIES[architecture.name])
    tag = "sentence-similarity" if encodes else pipeline_of(chosen)
    if tag:
        values.setdefault("pipeline_tag", tag)
    if config.get("auto_map"):
        notes["source"] = "\n".join(
            [*notes.get("source", "").splitlines(), "It has Python code of its own; none is run."]
        )
    recorded = manifest.base.task if manifest is not None else None
    known = recorded if recorded in plugins.references["tasks"] else None
    values["task"] = wish.task or known or _task(values, encodes, files, plugins)
    data = wish.data if wish.data is not None else shared_data(found.made_with)
    if data is not None:
        values["data"] = dict(data)
    else:
        inputs = _inputs(values, files, plugins, module)
        if inputs.data:
            values["data"] = inputs.data
        if inputs.note:
            notes["data"] = inputs.note
        if inputs.missing:
            missing["data"] = inputs.missing
    count = sum(p.numel() for p in module.parameters()) if module is not None else 0
    about = [found.origin, values.get("pipeline_tag"), _parameters(count)]
    if manifest is not None:
        about = [found.origin, compressed_from(manifest)]
    values["description"] = clean(", ".join(text for text in about if text), 300)
    return Draft(values, found.origin, found.owner, notes, missing, found.pinned_from)


def _build(
    values: Mapping[str, Any],
    files: SourceFiles,
    plugins: Plugins,
    notes: dict[str, str],
    manifest: Manifest | None,
) -> tuple[Architecture, Any]:
    """Return how the module is built, and the module without memory; None if that needs more."""
    keys = ("name", "source", "pipeline_tag")
    card = Card.model_validate({key: values[key] for key in keys if key in values})
    if manifest is not None:
        architecture = named_architecture(files.folder, manifest, plugins)
        check_registered(files.folder, manifest, plugins)
        if _needs_factory(architecture):
            return architecture, None
    else:
        architecture = detect_architecture(card, files, plugins)
    if _is_gguf(files):
        notes["description"] = (
            "A GGUF file tells its architecture once it is here: `zoopress zoo check --load`."
        )
        return architecture, None
    if architecture.name == "timm" and importlib.util.find_spec("timm") is None:
        notes["description"] = (
            "timm is not installed here, so this was not tried: pip install 'zoopress[timm]', then "
            "`zoopress zoo check`."
        )
        return architecture, None
    return architecture, build_on_meta(architecture)


def _needs_factory(architecture: Architecture) -> bool:
    return architecture.name == "factory"


def _task(values: Mapping[str, Any], encodes: bool, files: SourceFiles, plugins: Plugins) -> str:
    known = plugins.references["tasks"]
    reads = any(name.rpartition("/")[2] in TOKENIZER_FILES for name in files.others)
    tag = str(values.get("pipeline_tag"))
    if encodes and reads and "sentence-similarity" in known:
        return "sentence-similarity"
    if tag in known and tag != "sentence-similarity":
        task: type[Task] = plugins.resolve("tasks", tag)
        # Nobody knows which dataset, so only a task that takes text as well will do.
        if not issubclass(task, DatasetTask) or (reads and "text" in task.other_data):
            return tag
    return "fidelity"


def _inputs(values: Mapping[str, Any], files: SourceFiles, plugins: Plugins, module: Any) -> Inputs:
    if module is None and MANIFEST in files.others:
        return inputs_without_module(files.folder, ())
    if module is None:
        return inputs_without_module(files.folder, files.others, _is_gguf(files))
    card = Card.model_validate({**values, "data": None, "language": (), "tags": ()})
    task: type[Task] = plugins.resolve("tasks", card.task)
    return infer_inputs(module, files.folder, files.others, card, task)


def _is_gguf(files: SourceFiles) -> bool:
    return any(name.endswith(".gguf") for name in files.weights)


def _parameters(count: int) -> str:
    if not count:
        return ""
    if count < _MILLION:
        return f"{count:,} parameters"
    scale, word = (
        (1000 * _MILLION, "billion") if count >= 1000 * _MILLION else (_MILLION, "million")
    )
    return f"{show_number(count / scale)} {word} parameters"


def explain(error: ZoopressError, names: Collection[str], read: Callable[[str], bytes]) -> str:
    """Say why files are no model that a card could be made of, and what would have to be done."""
    top = {name for name in names if "/" not in name}
    if "model_index.json" in top:
        parts = sorted({n.partition("/")[0] for n in names if n.endswith("/config.json")})
        shown = ", ".join(clean(part, 40) for part in parts[:8])
        return (
            "It is a pipeline of diffusers, several models that work together. Make a card of a "
            f"part that is a model of transformers, as ORG/NAME/PART ({shown}); the others need a "
            "card with a `factory`."
        )
    if "adapter_config.json" in top:
        try:
            base = json.loads(read("adapter_config.json")).get("base_model_name_or_path")
        except (ValueError, AttributeError, RecursionError):
            base = None
        of = f" of {clean(base, 100)}" if isinstance(base, str) and base else ""
        return (
            f"It is an adapter (PEFT){of}, not a model. Merge it into its base model (peft's "
            "`merge_and_unload`), save that into a folder, and make a card of the folder."
        )
    return str(error)
