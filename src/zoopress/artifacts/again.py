"""Write a model that was opened as an artifact again, whatever was done to it meanwhile.

Untouched, its artifact is copied. Else the edits that still hold are found by replaying them on the
bare architecture: what is packed, replaced or smaller there, and no longer in the model, goes.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from zoopress.artifacts.artifact import load_artifact, load_into, replay_edits, save_artifact
from zoopress.artifacts.manifest import MANIFEST, Manifest
from zoopress.errors import ArtifactError, StageError
from zoopress.models.edits import (
    AnyEdit,
    Fold,
    Pack,
    QuantizeInput,
    Replace,
    Resize,
    ScaleInput,
    apply_edit,
    place_now,
    submodule,
)
from zoopress.models.folding import computed_names
from zoopress.models.input_grid import input_grid
from zoopress.models.input_scale import input_changes, input_scale
from zoopress.models.model import Model
from zoopress.models.packing import packed_weights, unpack_one
from zoopress.models.stand_in import former
from zoopress.plugins import Plugins
from zoopress.sources import Architecture, build_on_meta


@dataclass(frozen=True)
class Origin:
    """Where a model came from.

    Attributes:
        folder: the artifact.
        manifest: what it said.
        architecture: how its module is built.
    """

    folder: Path
    manifest: Manifest
    architecture: Architecture


def is_compressed(module: nn.Module) -> bool:
    """Tell whether a module has packed weights, changed inputs, or layers in others' place."""
    if any(former(part) is not None for part in module.modules()):
        return True
    return bool(packed_weights(module) or input_changes(module))


def check_there(origin: Origin) -> None:
    """Refuse to go on without the artifact that a model came from.

    Raises:
        ArtifactError: if it is gone.
    """
    if not (origin.folder / MANIFEST).is_file():
        raise ArtifactError(
            f"The model was opened from {origin.folder}, which is gone, and it cannot be saved "
            "without the files there. Call zoopress.unpack(model), and save it as any other."
        )


def rebuilt(origin: Origin, plugins: Plugins, edits: Iterable[AnyEdit] | None = None) -> Model:
    """Return a model's architecture without values, edited as it was, or otherwise.

    Raises:
        ArtifactError: if it cannot be built.
    """
    manifest = origin.manifest
    if edits is not None:
        manifest = manifest.model_copy(update={"edits": list(edits)})
    return replay_edits(origin.folder, manifest, build_on_meta(origin.architecture), plugins)


def save_again(
    module: nn.Module,
    origin: Origin,
    folder: Path,
    plugins: Plugins,
    architecture: Architecture | None = None,
    changed: Mapping[str, Path] | None = None,
) -> None:
    """Write an artifact that opens as the model is now.

    Args:
        module: the model.
        origin: where it came from.
        folder: where to; what is there and has the name of a file of the artifact is replaced.
        plugins: what is registered.
        architecture: in the place of the origin's, if the files that tell it have changed.
        changed: files to carry along that are others than they were, by name.

    Raises:
        ArtifactError: if the artifact that it came from is gone, or none can say what it is now.
    """
    check_there(origin)
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".zoopress-") as name:
        made = Path(name)
        if not changed and architecture is None and is_untouched(module, origin, plugins):
            for file in (*origin.manifest.files, MANIFEST):
                _copy(origin.folder / file, made / file)
        else:
            _write(module, origin, made, plugins, architecture or origin.architecture, changed)
        for path in sorted(made.rglob("*")):
            if path.is_file():
                target = folder / path.relative_to(made)
                target.parent.mkdir(parents=True, exist_ok=True)
                os.replace(path, target)


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)


def is_untouched(module: nn.Module, origin: Origin, plugins: Plugins) -> bool:
    """Tell whether a model is still what its artifact holds."""
    model = load_into(origin.architecture, origin.folder, origin.manifest, plugins, masks=False)
    held, now = packed_weights(model.module), packed_weights(module)
    if now.keys() - held.keys():
        return False
    for name in held.keys() - now.keys():
        unpack_one(model.module, name)
    return _same(model.module, module)


def _same(one: nn.Module, other: nn.Module) -> bool:
    before, now = Model(one).tensors(), Model(other).tensors()
    return before.keys() == now.keys() and all(
        tensor.dtype == now[name].dtype and torch.equal(tensor, now[name].to(tensor.device))
        for name, tensor in before.items()
    )


def _write(
    module: nn.Module,
    origin: Origin,
    made: Path,
    plugins: Plugins,
    architecture: Architecture,
    changed: Mapping[str, Path] | None,
) -> None:
    manifest = origin.manifest
    edits = _edits_now(module, origin, plugins)
    model = Model(module, plugins.layers, edits, {}, manifest.storage, manifest.coder or "auto")
    others = {name: origin.folder / name for name in manifest.files if name not in manifest.weights}
    try:
        save_artifact(
            made,
            model,
            architecture,
            manifest.base,
            {**others, **(changed or {})},
            manifest.lineage,
            plugins=plugins,
        )
        again = load_artifact(made, plugins, getattr(architecture, "factory", None))[0]
    except StageError as error:
        raise ArtifactError(f"The model cannot be saved: {error}") from error
    if not _same(again.module, module):
        raise ArtifactError(_cannot("its tensors do not come back as they are"))


def _edits_now(module: nn.Module, origin: Origin, plugins: Plugins) -> list[AnyEdit]:
    """Return the edits that make the model as it is now from the bare architecture."""
    before = list(origin.manifest.edits)
    held = [edit for i, edit in enumerate(before) if _holds(edit, before[i + 1 :], module, plugins)]
    model = rebuilt(origin, plugins, held)
    parts = dict(module.named_modules(remove_duplicate=False))
    for path, bare in list(model.module.named_modules()):
        edit = _resized(path, bare, parts.get(path))
        if edit is not None:
            with torch.device("meta"):
                apply_edit(model.module, edit, plugins.layers)
            held.append(edit)
    wanted, found = model.tensors(), Model(module).tensors()
    odd = sorted(wanted.keys() ^ found.keys())
    if odd:
        whose = "it lacks" if odd[0] in wanted else "it has"
        raise ArtifactError(_cannot(f"{whose} {odd[0]!r}"))
    return held


def _holds(edit: AnyEdit, later: list[AnyEdit], module: nn.Module, plugins: Plugins) -> bool:
    """Tell whether what an edit did is still so."""
    path, _ = place_now(edit.module, later)
    if path is None:  # it went with its block, which a later edit removes again
        return True
    try:
        part = submodule(module, path)
    except ValueError:
        return False
    if isinstance(edit, Pack):
        return edit.attribute in getattr(type(part), "_packed_names", ())
    if isinstance(edit, QuantizeInput):
        return input_grid(part) is not None
    if isinstance(edit, ScaleInput):
        return input_scale(part) is not None
    if isinstance(edit, Fold):
        return not computed_names(part)
    if isinstance(edit, Replace):
        was = former(part)
        return was is not None or getattr(plugins.layers[edit.layer], "keeps_module", False)
    return True


def _resized(path: str, bare: nn.Module, now: nn.Module | None) -> Resize | None:
    """Return the edit that makes a bare module as small as the one of its path is now."""
    if now is None:
        return None
    shapes: dict[str, list[int]] = {}
    for group in ("_parameters", "_buffers"):
        for name, tensor in getattr(bare, group).items():
            other = getattr(now, group).get(name)
            if tensor is None or other is None or tensor.shape == other.shape:
                continue
            larger = len(tensor.shape) != len(other.shape) or any(
                new > old for old, new in zip(tensor.shape, other.shape, strict=True)
            )
            if larger:
                full = f"{path}.{name}" if path else name
                raise ArtifactError(
                    _cannot(f"{full!r} is now {list(other.shape)}, and was {list(tensor.shape)}")
                )
            shapes[name] = list(other.shape)
    if not shapes:
        return None
    attributes = {
        name: value
        for name, value in vars(now).items()
        if type(value) is int and type(old := vars(bare).get(name)) is int and 0 < value < old
    }
    return Resize(module=path, shapes=shapes, attributes=attributes)


def _cannot(what: str) -> str:
    return (
        f"The model cannot be saved as a compressed one, since it is not what was opened any more: "
        f"{what}. Call zoopress.unpack(model), which makes an ordinary model of it, and save that."
    )
