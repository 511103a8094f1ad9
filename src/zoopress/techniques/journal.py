"""What a stage did to each weight, kept so that a run which was killed goes on at the next one.

FOLDER/
    000001.safetensors    the tensors of the modules that hold the weight, as they are now; its
                          metadata says which weight, what was done to the architecture, which
                          masks there are, and what the technique noted
"""

from __future__ import annotations

import json
import os
from collections.abc import MutableMapping, Sequence
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from zoopress.models.edit_records import AnyEdit, Edit, Replace
from zoopress.models.edits import apply_edit, set_tensor, submodule, tensor_of
from zoopress.models.model import Model
from zoopress.models.on_disk import settled
from zoopress.models.weights import Weight
from zoopress.store.files import sync

_TOLD, _MASK = "zoopress", "@mask"
_EDITS: TypeAdapter[list[AnyEdit]] = TypeAdapter(list[Edit])


class Journal:
    """Keeps what a technique does to a model, weight by weight.

    Args:
        model: what it works on.
        folder: made when something is kept.
    """

    def __init__(self, model: Model, folder: Path) -> None:
        self._model, self._folder = model, folder
        self._done = 0
        self._edits = len(model.edits)

    def redo(self, weight: Weight, record: MutableMapping[str, Any]) -> bool:
        """Do what was done to a weight before, and tell whether it was.

        Args:
            weight: the next one.
            record: takes what the technique had noted after it.
        """
        self._edits = len(self._model.edits)
        path = self._path(self._done + 1)
        if not path.is_file():
            return False
        try:
            told, tensors = _read(path)
            if told["weight"] != weight.name:
                raise ValueError("it is of another weight")
            edits = _EDITS.validate_python(told["edits"])
        except (SafetensorError, OSError, ValueError, LookupError, ValidationError):
            path.unlink()  # it was written half, or by other code: it is done anew
            return False
        model = self._model
        with torch.device("meta"):
            for edit in edits:
                apply_edit(model.module, edit, model.layers)
        model.edits += edits
        for name in [name for name in model.masks if _near(name, weight, edits)]:
            del model.masks[name]
        for name, tensor in tensors.items():
            if name.endswith(_MASK):
                model.masks[name.removesuffix(_MASK)] = settled(tensor)
            else:
                _set(model, name, settled(tensor))
        for name, first in told["tied"].items():
            _set(model, name, tensor_of(*_place(model, first)))
        model.updated.update(dict.fromkeys(told["updated"]))
        model.version += 1
        record.clear()
        record.update(told["record"])
        self._done += 1
        return True

    def note(self, weight: Weight, record: MutableMapping[str, Any]) -> None:
        """Keep what was done to a weight since it was asked for."""
        model, edits = self._model, self._model.edits[self._edits :]
        tensors: dict[str, Tensor] = {}
        tied: dict[str, str] = {}
        first: dict[tuple[int, torch.Size], str] = {}
        for name, tensor in model.tensors().items():
            if not _near(name, weight, edits):
                continue
            key = (tensor.data_ptr(), tensor.shape)
            if tensor.numel() and key in first:
                tied[name] = first[key]
            else:
                first[key] = name
                tensors[name] = tensor.contiguous()
        masks = {n + _MASK: mask for n, mask in model.masks.items() if _near(n, weight, edits)}
        told = {
            "weight": weight.name,
            "edits": _EDITS.dump_python(edits, mode="json", exclude_none=True),
            "tied": tied,
            "updated": [name for name in model.updated if _near(name, weight, edits)],
            "record": dict(record),
        }
        self._folder.mkdir(parents=True, exist_ok=True)
        self._done += 1
        path = self._path(self._done)
        part = path.with_suffix(".part")
        save_file({**tensors, **masks}, part, metadata={_TOLD: json.dumps(told)})
        sync(part)
        os.replace(part, path)

    def _path(self, number: int) -> Path:
        return self._folder / f"{number:06}.safetensors"


def _near(name: str, weight: Weight, edits: Sequence[AnyEdit]) -> bool:
    """Tell whether a tensor is the weight, stands for it, or is in a layer that took its place."""
    replaced = [edit.module for edit in edits if isinstance(edit, Replace)]
    places = [*(place.name for place in weight.locations), *replaced]
    return any(name == place or name.startswith(f"{place}.") for place in places)


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    with safe_open(path, framework="pt") as file:
        told: dict[str, Any] = json.loads((file.metadata() or {})[_TOLD])
        return told, {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118


def _place(model: Model, name: str) -> tuple[nn.Module, str]:
    path, _, attribute = name.rpartition(".")
    return submodule(model.module, path), attribute


def _set(model: Model, name: str, tensor: Tensor) -> None:
    set_tensor(*_place(model, name), tensor)
