"""What a killed run goes on from.

    CHECKPOINT/
    └── state.safetensors     tensors by name; in its metadata, as text:
                              identity    digest of all that the run follows from
                              plain       JSON: everything that is no tensor
                              content     digest of that and the tensors

One file, since one rename then shows either the state before or the state after, whenever the
process is killed. Safetensors and JSON hold no code, so nothing that could be planted there runs.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
import warnings
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from zoopress.models.model import Model
from zoopress.store import digest
from zoopress.store.files import sync
from zoopress.tasks import Task
from zoopress.training.config import TrainingConfig
from zoopress.training.term import Term

SECONDS = 30.0
"""How much work a kill may cost; more only where writing takes long."""
SHARE = 0.05
"""Of the time, at most, is spent on writing."""

_FORMAT = 1


@dataclass(frozen=True)
class Saved:
    """What a checkpoint holds."""

    plain: dict[str, Any]
    tensors: dict[str, Tensor]


class Checkpoint:
    """A folder in which a run leaves its state.

    Args:
        folder: made when something is written.
        identity: see `training_identity`; what another run left is passed over.
    """

    def __init__(self, folder: Path, identity: str) -> None:
        self._folder, self._identity = folder, identity
        self._file = folder / "state.safetensors"
        self._next = time.monotonic() + SECONDS
        self._warned = False

    @property
    def due(self) -> bool:
        """Whether it is time to write."""
        return time.monotonic() >= self._next

    def load(self) -> Saved | None:
        """Return what this run left, None if that is nothing, or damaged."""
        try:
            with safe_open(self._file, "pt") as file:
                metadata = file.metadata() or {}
                if metadata.get("identity") != self._identity:
                    return None
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            if metadata["content"] != _content(metadata["plain"], tensors):
                return None
            return Saved(json.loads(metadata["plain"]), tensors)
        except (OSError, SafetensorError, ValueError, KeyError):
            return None

    def save(self, plain: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        """Replace what is there; if it cannot be written, warn once and train on."""
        start = time.monotonic()
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        text = json.dumps(plain)
        metadata = {
            "identity": self._identity,
            "plain": text,
            "content": _content(text, tensors),
        }
        part = self._file.with_suffix(".part")
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            save_file(tensors, part, metadata)
            sync(part)
            os.replace(part, self._file)
        except (OSError, SafetensorError) as error:
            with suppress(OSError):
                part.unlink(missing_ok=True)
            if not self._warned:
                # Hours of training are worth more than the chance to go on from here.
                warnings.warn(
                    f"The checkpoint of this training cannot be written ({error}). It goes on, but "
                    "if it is killed it starts anew, or from an earlier checkpoint. Make room for, "
                    f"or allow writing to, {self._folder}.",
                    RuntimeWarning,
                    stacklevel=2,
                )
            self._warned = True
        took = time.monotonic() - start
        self._next = time.monotonic() + max(SECONDS, took / SHARE)


def training_identity(
    model: Model,
    task: Task,
    config: TrainingConfig,
    terms: Sequence[Term],
    task_weight: float,
    seed: int,
    device: torch.device,
) -> str:
    """Return a digest of all that the trained weights follow from."""
    return digest(
        {
            "format": _FORMAT,
            "torch": torch.__version__,
            "device": device.type,
            "config": config.model_dump(mode="json"),
            "seed": seed,
            # Not type(task): what a technique has is a view of it.
            "task": [task.__class__.__qualname__, task.fingerprint()],
            "task_weight": task_weight,
            "terms": [
                [type(term).__qualname__, _settings(term), tensors_digest(term.state_dict())]
                for term in terms
            ],
            "model": tensors_digest(model.tensors()),
            "masks": tensors_digest(model.masks),
        }
    )


def _content(plain: str, tensors: Mapping[str, Tensor]) -> str:
    return digest([plain, tensors_digest(tensors)])


def tensors_digest(tensors: Mapping[str, Tensor]) -> str:
    """Return a digest of tensors and their names."""
    hasher = hashlib.blake2b(digest_size=32)
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu()
        hasher.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        hasher.update(tensor.reshape(-1).contiguous().view(torch.uint8).numpy().data)
    return hasher.hexdigest()


def _settings(term: Term) -> dict[str, str]:
    """Return a term's plain attributes."""
    plain = {n: v for n, v in vars(term).items() if isinstance(v, (str, int, float, type(None)))}
    return {name: repr(plain[name]) for name in sorted(plain.keys() - {"training"})}
