"""Write an artifact; `artifact.py` has what lies in its folder."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zoopress.artifacts.computed import computed_buffers
from zoopress.artifacts.encoding import encode
from zoopress.artifacts.extra_state import EXTRA_STATE, extra_state
from zoopress.artifacts.manifest import (
    MANIFEST,
    ArchitectureRecord,
    Base,
    FileRecord,
    Manifest,
    safe_name,
)
from zoopress.artifacts.requirements import find_requirements
from zoopress.artifacts.tensor_files import (
    MAX_SHARD_BYTES,
    open_tensors,
    write_tensors,
)
from zoopress.coding.layout import StoredTensor
from zoopress.models.model import Model
from zoopress.sources import Architecture, Companions, build_on_meta
from zoopress.store import file_digest, write_atomic

if TYPE_CHECKING:
    from zoopress.plugins import Plugins

INDEX = "model.safetensors.index.json"


def save_artifact(
    folder: Path,
    model: Model,
    architecture: Architecture,
    base: Base,
    others: Mapping[str, Path],
    lineage: list[dict[str, Any]] | None = None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
    plugins: Plugins | None = None,
) -> Manifest:
    """Write a model into a folder; the manifest comes last, so a folder without it is no artifact.

    Args:
        folder: an existing folder; nothing in it is overwritten but files of the artifact.
        model: the model.
        architecture: how to rebuild its module.
        base: what it was compressed from.
        others: files to carry along, name in the artifact to path.
        lineage: plain data, an item a stage.
        max_shard_bytes: a safetensors file is split above this size.
        plugins: where the model's coder is found, and what the manifest says that loading
            requires; everything installed by default, and nothing is required.

    Raises:
        PluginError: if no plugin registers the coder.
        StageError: if a weight that is pruned by a mask is not zero.
    """
    beside = architecture.companions(model, others)
    kept = extra_state(model.module)
    native = beside.native and model.storage == "safetensors" and not model.masks and not kept
    files: dict[str, Path | bytes] = {n: f for n, f in beside.files.items() if n != EXTRA_STATE}
    if kept is not None:
        files[EXTRA_STATE] = kept
    for name, content in files.items():
        if name != INDEX:
            _write_file(folder, name, content)
    record = ArchitectureRecord(
        name=architecture.name,
        arguments=architecture.arguments if beside.arguments is None else beside.arguments,
    )
    loaded_as = _loaded_as(folder, record, architecture, beside, model, plugins)
    entries, stored = encode(
        model.tensors(),
        model.masks,
        model.code_layouts(),
        share=not native,
        coded=model.storage == "zpz",
        computed=set()
        if loaded_as is None
        else computed_buffers(
            model, list(beside.edits), partial(build_on_meta, loaded_as, buffers=True)
        ),
    )
    if native:
        weights = _write_native(folder, model, architecture, stored, max_shard_bytes, files)
    else:
        renamed = {architecture.stored_name(name): item for name, item in stored.items()}
        assert len(renamed) == len(stored), "two tensors have one name in the file"
        weights = write_tensors(
            folder, model.storage, renamed, max_shard_bytes, model.coder, plugins
        )
        if model.storage == "safetensors":
            weights = [_rename(folder, name, "model", "compressed") for name in weights]
    if INDEX in files:
        _write_file(folder, INDEX, files[INDEX])
    if beside.listing is not None:
        listed = beside.listing([MANIFEST, *weights, *files])
        for name, content in listed.items():
            _write_file(folder, name, content)
        files.update(listed)
    manifest = Manifest(
        base=base,
        architecture=record,
        lineage=lineage or [],
        storage="zpz" if model.storage == "zpz" else "safetensors",
        coder=None if model.coder == "auto" else model.coder,
        weights=weights,
        edits=list(beside.edits),
        tensors=entries,
        files={
            name: FileRecord(
                bytes=(folder / name).stat().st_size, sha256=file_digest(folder / name)
            )
            for name in sorted({*weights, *files})
        },
        native=True if native else None,
    )
    if plugins is not None and (needed := find_requirements(plugins, manifest.uses())):
        manifest = manifest.model_copy(update={"requires": needed})
    write_atomic(folder / MANIFEST, manifest.to_json())
    return manifest


def _write_file(folder: Path, name: str, content: Path | bytes) -> None:
    target = folder / safe_name(name)
    target.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, bytes):
        target.write_bytes(content)
    elif content.resolve() != target.resolve():
        shutil.copyfile(content, target)


def _loaded_as(
    folder: Path,
    record: ArchitectureRecord,
    architecture: Architecture,
    beside: Companions,
    model: Model,
    plugins: Plugins | None,
) -> Architecture | None:
    """Return the architecture that loading will build; None if that cannot be told here."""
    if beside.arguments is None and list(beside.edits) == list(model.edits):
        return architecture
    if plugins is None:
        return None
    kind = plugins.resolve("architectures", record.name)
    found = kind(folder, dict(record.arguments))
    return found if isinstance(found, Architecture) else None


def _write_native(
    folder: Path,
    model: Model,
    architecture: Architecture,
    stored: Mapping[str, StoredTensor],
    max_shard_bytes: int,
    files: dict[str, Path | bytes],
) -> list[str]:
    """Write tensors as the library that the model comes from expects them.

    What it makes itself goes to a file of its own, so that it finds nothing that it does not know.
    """
    made = model.non_persistent()
    kept = {architecture.stored_name(n): item for n, item in stored.items() if n not in made}
    weights = write_tensors(folder, "safetensors", kept, max_shard_bytes)
    files.pop(INDEX, None)
    if len(weights) > 1:
        files[INDEX] = shard_index(folder, weights)
    rest = {architecture.stored_name(n): item for n, item in stored.items() if n in made}
    if rest:
        beside = folder / ".buffers"
        beside.mkdir()
        write_tensors(beside, "safetensors", rest, 1 << 62)
        os.replace(beside / "model.safetensors", folder / "buffers.safetensors")
        beside.rmdir()
        weights.append("buffers.safetensors")
    return weights


def shard_index(folder: Path, weights: Sequence[str]) -> bytes:
    """Return the index of a checkpoint's shards, as the Hub's libraries read it."""
    where: dict[str, str] = {}
    total = 0
    for file in weights:
        with open_tensors(folder, "safetensors", [file]) as readers:
            where.update(dict.fromkeys(readers, file))
            total += sum(reader.stored_bytes(name) for name, reader in readers.items())
    index = {"metadata": {"total_size": total}, "weight_map": where}
    return (json.dumps(index, indent=2) + "\n").encode()


def _rename(folder: Path, name: str, old: str, new: str) -> str:
    renamed = new + name.removeprefix(old)
    os.replace(folder / name, folder / renamed)
    return renamed
