"""Where statistics that were measured are kept, so that none is measured twice.

The key of an entry holds all that a statistic depends on: every tensor of the model, its masks and
its modules; what builds and runs it and the data, which the shelf's `identity` stands for; and the
statistic with its arguments and code. So whatever changes makes another key, and nothing is stale.
"""

from __future__ import annotations

import hashlib
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path

import torch
from torch import Tensor

from zoopress.errors import StageError
from zoopress.models.model import Model
from zoopress.statistics.measured import Layer
from zoopress.statistics.statistic import Statistic
from zoopress.store import Claim, Store, digest, file_digest

SCHEMA = 1
"""Raise it when stored statistics can no longer be used."""


@dataclass
class Shelf:
    """Keeps statistics in memory and in the store.

    Attributes:
        identity: a digest of what builds and runs the model, and of the data.
        store: where they outlive this process; without it they do not.
        waiting: called with a statistic's name if another process measures it right now.
        layers: those at hand, by key.
    """

    identity: str
    store: Store | None = None
    waiting: Callable[[str], None] = lambda name: None
    layers: dict[str, Mapping[str, Layer]] = field(default_factory=dict)

    def key(self, state: str, statistic: Statistic, names: Sequence[str], seed: int) -> str:
        """Return the key of a statistic of some weights.

        Args:
            state: of the model, see `state_digest`.
            statistic: which.
            names: of the weights.
            seed: what is drawn at random follows from it.

        Raises:
            StageError: if the statistic's arguments are no plain data.
        """
        drawn = bool(statistic.needs & {"gradients", "output_gradients"})
        try:
            return digest(
                {
                    "schema": SCHEMA,
                    "identity": self.identity,
                    "state": state,
                    "statistic": [statistic.name, statistic.arguments()],
                    "code": code_digest(type(statistic)),
                    "weights": sorted(names),
                    "seed": seed if drawn else None,
                }
            )
        except (TypeError, ValueError) as error:
            raise StageError(
                f"The statistic {statistic.name!r} has arguments that are no plain data: "
                f"{statistic.arguments()}. Keep numbers, strings, bools, lists and dicts of them "
                "as attributes, or override `arguments`."
            ) from error

    @contextmanager
    def claims(self, keys: dict[str, Statistic]) -> Iterator[dict[str, Claim]]:
        """Hold the right to measure what has these keys; nothing without a store."""
        with ExitStack() as stack:
            claims = {}
            # In one order everywhere, so that no two processes wait for each other.
            for key in sorted(keys) if self.store else ():
                assert self.store is not None
                name = keys[key].name
                claims[key] = stack.enter_context(
                    self.store.claim(key, partial(self.waiting, name))
                )
            yield claims


def state_digest(model: Model) -> str:
    """Return a digest of a model's tensors, masks and modules."""
    hasher = hashlib.sha256()
    for kind, tensors in (("tensor", model.tensors()), ("mask", model.masks)):
        for name in sorted(tensors):
            tensor = tensors[name].detach().cpu().contiguous()
            hasher.update(f"{kind} {name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
            for piece in _bytes(tensor).split(1 << 26):
                hasher.update(piece.numpy().data)
    # The modules with their arguments, as they print themselves; addresses differ in each process.
    modules = [
        (path, f"{type(module).__module__}.{type(module).__qualname__}", module.extra_repr())
        for path, module in model.module.named_modules(remove_duplicate=False)
    ]
    hasher.update(re.sub(r"0x[0-9a-f]+", "", repr(modules)).encode())
    return hasher.hexdigest()


def _bytes(tensor: Tensor) -> Tensor:
    return tensor.flatten().view(torch.uint8) if tensor.numel() else tensor.flatten().byte()


@cache
def code_digest(statistic: type) -> str:
    """Return a digest of the file of a statistic's class and of all that measures it."""
    files = sorted(Path(__file__).parent.rglob("*.py"))
    own = getattr(sys.modules.get(statistic.__module__), "__file__", None)
    if own and Path(own) not in files:
        files.append(Path(own))
    return digest([[statistic.__qualname__], *([file.name, file_digest(file)] for file in files)])
