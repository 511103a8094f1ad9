"""The artifact: a compressed model as a folder that anyone can load without trusting it.

    FOLDER/
        zoopress.json            manifest: schema version, base model, lineage of stages, structure
                                 edits, forms of tensors, size and SHA-256 of every file
        compressed.safetensors   tensors; compressed-00001-of-00002.safetensors … when large
          or model.zpz           the same, entropy coded
          or model.safetensors   where the library that the model comes from can load it as it is;
                                 buffers that this library makes itself are in buffers.safetensors
        config.json, …           what the architecture and its tokenizer need
        extra_state.json         what modules keep besides tensors, see `extra_state.py`
        README.md                for people; not listed in the manifest, not needed to load

A file called model.safetensors would be loaded by that library, packed weights replaced by random
ones, so only what it can load has that name.

Loading rebuilds the architecture on the meta device, replays the edits with registered layers, and
fills in one tensor after the other. Nothing in the folder is ever executed or unpickled, and every
name, size and shape is checked before it is used.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from zoopress.artifacts.architectures import check_registered, named_architecture
from zoopress.artifacts.encoding import KEPT, MASK, Alias, Computed, Expected, decode
from zoopress.artifacts.extra_state import EXTRA_STATE, restore_extra_state
from zoopress.artifacts.manifest import (
    AGAIN,
    MANIFEST,
    Manifest,
    read_manifest,
)
from zoopress.artifacts.save import save_artifact as save_artifact
from zoopress.artifacts.tensor_files import (
    Reader,
    open_tensors,
    read_ahead,
)
from zoopress.errors import ArtifactError, PluginError, SourceError, nearest
from zoopress.models.bounds import memory_bytes
from zoopress.models.edits import AnyEdit, apply_edit, set_tensor, submodule
from zoopress.models.input_scale import input_changes
from zoopress.models.model import Model
from zoopress.models.on_disk import on_disk, settled
from zoopress.models.precision import accept_float32
from zoopress.sources import Architecture, build_on_meta

if TYPE_CHECKING:
    from zoopress.plugins import Plugins


def load_artifact(
    folder: Path,
    plugins: Plugins,
    factory: Callable[..., nn.Module] | None = None,
    verify: bool = True,
    progress: Callable[[str], None] = lambda name: None,
    masks: bool = True,
) -> tuple[Model, Architecture, Manifest]:
    """Load an artifact.

    Args:
        folder: the artifact.
        plugins: registered layers and architectures.
        factory: the function that builds the module, for a model that came from a Python factory.
        verify: whether to compare every file's SHA-256 first.
        progress: called with each tensor's name.
        masks: whether to keep pruning masks, a byte a weight; only techniques need them.

    Raises:
        ArtifactError: if it is damaged, hostile or needs a plugin that is not installed.
    """
    manifest = read_manifest(folder, verify)
    check_registered(folder, manifest, plugins)
    architecture = _architecture(folder, manifest, plugins, factory)
    model = load_into(architecture, folder, manifest, plugins, progress, masks)
    return model, architecture, manifest


def load_into(
    architecture: Architecture,
    folder: Path,
    manifest: Manifest,
    plugins: Plugins,
    progress: Callable[[str], None] = lambda name: None,
    masks: bool = True,
) -> Model:
    """Load an artifact whose manifest was read and whose architecture is at hand.

    Args:
        architecture: builds the module as it was before any edit.
        folder: the artifact.
        manifest: what it says; its files were compared with it.
        plugins: registered layers.
        progress: called with each tensor's name.
        masks: whether to keep pruning masks, a byte a weight.

    Raises:
        ArtifactError: if it is damaged, hostile or needs a plugin that is not installed.
    """
    stored_name = architecture.stored_name
    try:
        model = rebuild(architecture, folder, manifest, plugins)
        fill_tensors(folder, manifest, model, stored_name, progress, masks, plugins=plugins)
    except ArtifactError as error:
        if architecture.builds_on_meta:
            raise
        # A user's constructor that looks at values makes other tensors without them.
        try:
            model = rebuild(architecture, folder, manifest, plugins, without_values=False)
            fill_tensors(folder, manifest, model, stored_name, progress, masks, plugins=plugins)
        except ArtifactError:
            raise error from None
    accept_float32(model.module)
    return model


def rebuild(
    architecture: Architecture,
    folder: Path,
    manifest: Manifest,
    plugins: Plugins,
    without_values: bool = True,
) -> Model:
    """Build an architecture and change it as the compressed one was, still without values.

    Raises:
        ArtifactError: if it cannot be built, or an edit does not fit.
    """
    # An edit makes few tensors of one, so a module can have but few that are not stored.
    most = 10_000 + 4 * tensor_count(folder, manifest)
    try:
        makes = any(isinstance(entry, Computed) for entry in manifest.tensors.values())
        module = build_on_meta(architecture, most, buffers=makes, without_values=without_values)
    except SourceError as error:
        raise ArtifactError(f"{folder}: {str(error).rstrip('.')}. {AGAIN}") from error
    except ArtifactError as error:
        if str(folder) in str(error):
            raise
        raise ArtifactError(f"{folder / MANIFEST}: field 'architecture': {error}") from error
    return replay_edits(folder, manifest, module, plugins)


def replay_edits(folder: Path, manifest: Manifest, module: nn.Module, plugins: Plugins) -> Model:
    """Change an architecture that was built anew as the compressed one was, still without values.

    Raises:
        ArtifactError: if an edit does not fit.
    """
    check_registered(folder, manifest, plugins)
    for edit in manifest.edits:
        try:
            with torch.device("meta"):
                apply_edit(module, edit, plugins.layers)
        # All that a layer's constructor may raise of arguments that it did not expect.
        except (ValueError, TypeError, LookupError, AttributeError, ArithmeticError) as error:
            raise ArtifactError(_bad_edit(folder, edit, error)) from error
        except (RuntimeError, AssertionError, PluginError) as error:
            raise ArtifactError(_bad_edit(folder, edit, error)) from error
    edits, coder = list(manifest.edits), manifest.coder or "auto"
    return Model(module.eval(), plugins.layers, edits, {}, manifest.storage, coder)


def fill_tensors(
    folder: Path,
    manifest: Manifest,
    model: Model,
    stored_name: Callable[[str], str],
    progress: Callable[[str], None] = lambda name: None,
    masks: bool = False,
    whole: bool = True,
    plugins: Plugins | None = None,
) -> None:
    """Read every tensor of an artifact into the rebuilt model.

    Args:
        folder: the artifact.
        manifest: what it says.
        model: with all edits replayed.
        stored_name: gives the name in the file of a tensor of the model.
        progress: called with each tensor's name.
        masks: whether to keep pruning masks, a byte a weight.
        whole: whether the model has all that is stored.
        plugins: where coders are found that the files name; everything installed by default.

    Raises:
        ArtifactError: if they do not fit.
    """
    try:
        _fill(folder, model, manifest, stored_name, progress, masks, whole, plugins)
    except ArtifactError as error:
        raise ArtifactError(f"{folder}: {str(error).rstrip('.')}. {AGAIN}") from error
    for path, change in input_changes(model.module).items():
        try:
            change.check()
        except ValueError as error:
            raise ArtifactError(f"{folder}: {path!r}: {error}. {AGAIN}") from error
    if EXTRA_STATE in manifest.files:
        restore_extra_state(model.module, folder / EXTRA_STATE)


def tensor_count(folder: Path, manifest: Manifest) -> int:
    """Return how many tensors an artifact says that its model has.

    Raises:
        ArtifactError: if its tensor files cannot be opened.
    """
    try:
        with open_tensors(folder, manifest.storage, manifest.weights) as readers:
            return len(readers.keys() | manifest.tensors.keys())
    except ArtifactError as error:
        raise ArtifactError(f"{folder}: {str(error).rstrip('.')}. {AGAIN}") from error


def _bad_edit(folder: Path, edit: AnyEdit, error: Exception) -> str:
    reason = str(error).rstrip(".") or type(error).__name__
    what = f"field 'edits': cannot {edit.edit} {edit.module!r}"
    return f"{folder / MANIFEST}: {what}: {reason}. {AGAIN}"


def _architecture(
    folder: Path,
    manifest: Manifest,
    plugins: Plugins,
    factory: Callable[..., nn.Module] | None,
) -> Architecture:
    architecture = named_architecture(folder, manifest, plugins)
    if factory is not None:
        try:
            architecture.use_factory(factory)
        except SourceError as error:
            raise ArtifactError(f"{folder}: {error}") from error
    return architecture


def _fill(
    folder: Path,
    model: Model,
    manifest: Manifest,
    stored_name: Callable[[str], str],
    progress: Callable[[str], None],
    masks: bool,
    whole: bool,
    plugins: Plugins | None,
) -> None:
    """Read every tensor into the rebuilt model."""
    expected = {n: Expected(t.shape, t.dtype) for n, t in model.tensors().items()}
    unknown = sorted(manifest.tensors.keys() - expected.keys())
    if unknown:
        raise ArtifactError(
            f"the manifest has a tensor {unknown[0]!r} that the architecture has not."
            f"{nearest(unknown[0], expected)}"
        )
    layouts, made = model.code_layouts(), model.non_persistent()
    done: dict[str, Tensor] = {}
    with open_tensors(folder, manifest.storage, manifest.weights, plugins) as readers:
        _check_memory(expected, readers, stored_name)
        unread = set(readers)
        read_ahead(readers, (stored_name(n) + end for n in expected for end in ("", MASK, KEPT)))

        def read(name: str) -> Tensor:
            stored = stored_name(name)
            if stored not in readers:
                raise ArtifactError(f"tensor {stored!r} is not in {', '.join(manifest.weights)}")
            unread.discard(stored)
            return readers[stored].read(stored)

        def get(name: str, depth: int = 0) -> Tensor:
            if name in done:
                return done[name]
            entry = manifest.tensors.get(name)
            if name not in expected or depth > 3:
                raise ArtifactError(f"tensor {name!r} is referred to, but not stored")
            if isinstance(entry, Alias):
                tensor = get(entry.of, depth + 1)
                if not expected[name].fits(tensor):
                    raise ArtifactError(f"tensor {name!r} cannot be the same as {entry.of!r}")
                if entry.tied:
                    _set(model.module, name, _get(model.module, entry.of))
                else:
                    _set(model.module, name, settled(tensor.clone()))
                if entry.of in model.masks and not entry.tied:  # tied weights share one mask
                    model.masks[name] = model.masks[entry.of]
            elif isinstance(entry, Computed):
                tensor = _get(model.module, name)
                if name not in made or tensor.is_meta:
                    raise ArtifactError(
                        f"tensor {name!r} is not stored, and the architecture does not make it"
                    )
            else:
                tensor, mask = decode(
                    name,
                    entry,
                    expected[name],
                    layouts.get(name),
                    read,
                    lambda other: get(other, depth + 1),
                    masks,
                )
                tensor = settled(tensor)
                _set(model.module, name, tensor)
                if mask is not None:
                    model.masks[name] = settled(mask)
            done[name] = tensor
            progress(name)
            return tensor

        for name in expected:
            get(name)
        if unread and whole:
            raise ArtifactError(
                f"{', '.join(manifest.weights)} holds a tensor {min(unread)!r} that the "
                f"architecture has not.{nearest(min(unread), map(stored_name, expected))}"
            )


def _check_memory(
    expected: Mapping[str, Expected],
    readers: Mapping[str, Reader],
    stored_name: Callable[[str], str],
) -> None:
    """Refuse a model that this machine cannot hold, before anything is allocated."""
    needed = 0
    for name, item in expected.items():
        # A float may be stored in a smaller type than the one that its architecture is built in.
        stored = stored_name(name)
        stored = stored + KEPT if stored + KEPT in readers else stored
        small = item.dtype.is_floating_point and stored in readers
        itemsize = readers[stored].itemsize(stored) if small else item.dtype.itemsize
        needed += item.shape.numel() * itemsize
    available = memory_bytes()
    if needed > available and on_disk() is None:
        raise ArtifactError(
            f"its tensors would take {needed / 1e9:.1f} GB, more than this machine's "
            f"{available / 1e9:.1f} GB of memory; nothing was allocated"
        )


def _get(module: nn.Module, name: str) -> Tensor:
    path, _, attribute = name.rpartition(".")
    owner = submodule(module, path)
    found = owner._parameters.get(attribute)
    tensor = found if found is not None else owner._buffers[attribute]
    assert tensor is not None
    return tensor


def _set(module: nn.Module, name: str, tensor: Tensor) -> None:
    path, _, attribute = name.rpartition(".")
    set_tensor(submodule(module, path), attribute, tensor)
