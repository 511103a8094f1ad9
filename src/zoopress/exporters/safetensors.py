"""A plain checkpoint: dense tensors under the architecture's own names, its config and tokenizer.

    FOLDER/
        model.safetensors        or shards and their index when large
        config.json, …           what the library of the model reads beside it

transformers opens it without zoopress; a model from a Python function takes it as a state dict.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path

from torch import nn

from zoopress.artifacts.artifact import save_artifact
from zoopress.artifacts.manifest import MANIFEST
from zoopress.artifacts.opened import Opened
from zoopress.artifacts.tensor_files import MAX_SHARD_BYTES, write_tensors
from zoopress.coding.layout import StoredTensor
from zoopress.exporters.exporter import Exporter
from zoopress.models.edits import AnyEdit, Pack
from zoopress.models.model import Model
from zoopress.sources import Companions, SourceFiles


class Safetensors(Exporter):
    """Writes weights dense, whatever they were packed in."""

    def refusal(self, artifact: Opened) -> str | None:
        """Refuse what the architecture's own library cannot build: other layers, other sizes."""
        model, others = plain_model(artifact), other_files(artifact)
        beside = artifact.architecture.companions(model, others)
        if beside.native or _is_plain(beside, others):
            return None
        kinds = sorted({f"{edit.edit} of {edit.module!r}" for edit in beside.edits})
        if not kinds:
            return (
                "its float tensors are of several types, which its config.json has no word for. "
                "Compress it without float_precision, or with it for all tensors alike."
            )
        shown = "; ".join(kinds[:3]) + (f" and {len(kinds) - 3} more" if len(kinds) > 3 else "")
        return (
            f"its structure was changed in a way that its own library has no word for ({shown}), "
            "so a plain checkpoint would not load. The exporter 'torch_export' takes the structure "
            "along; or share the artifact itself, which `zoopress.load` opens."
        )

    def write(self, artifact: Opened, folder: Path) -> None:
        """Write as the library does, if it can open the model; else a state dict."""
        model, others = plain_model(artifact), other_files(artifact)
        if artifact.architecture.companions(model, others).native:
            save_artifact(folder, model, artifact.architecture, artifact.manifest.base, others)
            (folder / MANIFEST).unlink()
            (folder / "buffers.safetensors").unlink(missing_ok=True)  # the library makes these
            return
        made = model.non_persistent()
        tensors = {
            artifact.architecture.stored_name(name): StoredTensor(tensor.clone())
            for name, tensor in model.tensors().items()
            if name not in made
        }
        write_tensors(folder, "safetensors", tensors, MAX_SHARD_BYTES)
        for name, path in others.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(path.read_bytes())

    def read(self, artifact: Opened, folder: Path) -> nn.Module:
        """Load it as the architecture loads what it comes from."""
        names = [path.relative_to(folder).as_posix() for path in folder.rglob("*.*")]
        weights = [name for name in names if _holds_tensors(name)]
        architecture = copy.copy(artifact.architecture)
        architecture.folder = folder
        others = tuple(sorted(set(names) - set(weights)))
        files = SourceFiles(folder, "", tuple(sorted(weights)), others)
        return architecture.load(files).eval()


def _holds_tensors(name: str) -> bool:
    return name.endswith((".safetensors", ".safetensors.index.json"))


def plain_model(artifact: Opened) -> Model:
    """Return the model with dense weights, as if it had never been packed."""
    edits: list[AnyEdit] = [e for e in artifact.manifest.edits if not isinstance(e, Pack)]
    return Model(artifact.dense, artifact.model.layers, edits)


def other_files(artifact: Opened) -> dict[str, Path]:
    """Return the artifact's files besides its tensors, by name."""
    names = artifact.manifest.files.keys() - set(artifact.manifest.weights)
    return {name: artifact.folder / name for name in sorted(names) if not _holds_tensors(name)}


def _is_plain(beside: Companions, others: Mapping[str, Path]) -> bool:
    """Tell whether a state dict is all that is needed to fill what the architecture builds."""
    return not beside.edits and dict(beside.files) == dict(others)
