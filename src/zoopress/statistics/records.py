"""What was measured as files: states in safetensors, the rest as plain data.

    measured/0000.safetensors    {"N.whole.NAME": …, "N.P.inputs": …, "N.P.state.NAME": …}
    record                       {"statistic": name, "layers": {weight: {"number": N, …}}}

where N numbers the weights and P the ways in which one is read.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from zoopress.statistics.accounts import Account
from zoopress.statistics.measured import Layer, Part
from zoopress.statistics.statistic import State, Statistic

FOLDER = "measured"


def layers_of(accounts: Mapping[str, Account], position: int) -> dict[str, Layer]:
    """Return what accounts know of one of their statistics, on the CPU, by the weight's name."""
    return {name: _layer(account, position) for name, account in accounts.items()}


def _layer(account: Account, position: int) -> Layer:
    whole = account.whole.get(position)
    parts = [
        Part(part.inputs, part.outputs, part.rows, part.tokens, _kept(part.states.get(position)))
        for part in account.parts
    ]
    return Layer(
        account.watched.name,
        account.statistics[position],
        account.watched.shape,
        account.watched.output_axis,
        parts,
        None if whole is None else _kept(whole),
        account.samples,
        sorted(account.readers),
        account.refused.get(position, ""),
    )


def _kept(state: State | None) -> State:
    return {name: tensor.cpu() for name, tensor in (state or {}).items()}


def write(folder: Path, file: int, layers: Mapping[str, Layer]) -> dict[str, Any]:
    """Write layers into a new file, and return their record.

    Args:
        folder: of the entry.
        file: a number that no other file there has.
        layers: what to write.
    """
    (folder / FOLDER).mkdir(exist_ok=True)
    tensors: dict[str, Tensor] = {}
    record: dict[str, Any] = {}
    for number, (name, layer) in enumerate(layers.items()):
        states = {f"{number}.whole": layer.whole or {}}
        for index, part in enumerate(layer.parts):
            place = f"{number}.{index}"
            tensors[f"{place}.inputs"], tensors[f"{place}.outputs"] = part.inputs, part.outputs
            if part.tokens is not None:
                tensors[f"{place}.tokens"] = part.tokens
            states[f"{place}.state"] = part.state
        for place, state in states.items():
            tensors.update({f"{place}.{key}": tensor for key, tensor in state.items()})
        record[name] = {
            "file": file,
            "number": number,
            "shape": list(layer.shape),
            "output_axis": layer.output_axis,
            "rows": [part.rows for part in layer.parts],
            "samples": layer.samples,
            "readers": list(layer.readers),
            "refused": layer.refused,
        }
    contiguous = {name: tensor.contiguous().clone() for name, tensor in tensors.items()}
    save_file(contiguous, folder / FOLDER / f"{file:04}.safetensors")
    return record


class StoredLayers(Mapping[str, Layer]):
    """Layers in an entry of the store, each read when it is asked for."""

    def __init__(self, folder: Path, record: Mapping[str, Any], statistic: Statistic) -> None:
        self._record, self._statistic = record, statistic
        # Held open, so that the files are there as long as this is, whatever the store removes.
        self._files = {
            file: safe_open(folder / FOLDER / f"{file:04}.safetensors", "pt")
            for file in sorted({layer["file"] for layer in record.values()})
        }
        self._keys = {file: list(opened.keys()) for file, opened in self._files.items()}

    def __getitem__(self, name: str) -> Layer:
        told = self._record[name]
        number, file = told["number"], told["file"]
        parts = [
            self._part(file, f"{number}.{index}.", rows) for index, rows in enumerate(told["rows"])
        ]
        whole = self._state(file, f"{number}.whole.")
        return Layer(
            name,
            self._statistic,
            torch.Size(told["shape"]),
            told["output_axis"],
            parts,
            whole or None,
            told["samples"],
            told["readers"],
            told["refused"],
        )

    def __iter__(self) -> Any:
        return iter(self._record)

    def __len__(self) -> int:
        return len(self._record)

    def _part(self, file: int, place: str, rows: int) -> Part:
        opened = self._files[file]
        tokens = f"{place}tokens"
        return Part(
            opened.get_tensor(f"{place}inputs"),
            opened.get_tensor(f"{place}outputs"),
            rows,
            opened.get_tensor(tokens) if tokens in self._keys[file] else None,
            self._state(file, f"{place}state."),
        )

    def _state(self, file: int, place: str) -> State:
        return {
            key.removeprefix(place): self._files[file].get_tensor(key)
            for key in self._keys[file]
            if key.startswith(place)
        }


def joined(records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the records of several files as one."""
    return {name: told for record in records for name, told in record.items()}
