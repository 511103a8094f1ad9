"""Fidelity: the original's outputs are the reference; for any module with any inputs."""

from __future__ import annotations

import inspect
import zlib
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zoopress.errors import CardError
from zoopress.source import callable_code, load_callable
from zoopress.store import digest, file_digest
from zoopress.task import Batch, Samples, Split, Task

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

Inputs = dict[str, Any]
"""Tensors [samples, …] by argument name; names "0", "1", … are positional."""


class TensorSamples(Samples):
    """Samples that are in memory.

    Args:
        inputs: tensors [samples, …] by argument name.
    """

    def __init__(self, inputs: Inputs) -> None:
        self._inputs = inputs

    def __len__(self) -> int:
        return len(next(iter(self._inputs.values())))

    def batch(self, rows: Sequence[int], generator: torch.Generator | None = None) -> Batch:
        if isinstance(rows, range) and rows.step == 1:
            return Batch({name: v[rows.start : rows.stop] for name, v in self._inputs.items()})
        return Batch({name: v[list(rows)] for name, v in self._inputs.items()})


class FidelityTask(Task):
    """Feeds a module from the card's data and compares the first tensor it returns."""

    name = "fidelity"

    def make_samples(self, split: Split) -> Samples:
        """Return inputs.

        Raises:
            CardError: if there are too few samples.
        """
        data = self.data
        total = len(next(iter(self._inputs.values())))
        wanted = data.evaluation_samples, data.calibration_samples
        # With less data than asked for, these splits shrink alike; they never share a sample.
        first = wanted[0] if sum(wanted) <= total else total * wanted[0] // sum(wanted)
        second = min(total, first + wanted[1])
        if first < 2 or second <= first:
            raise CardError(
                f"Card {self.card.name!r}: {total} samples are too few: evaluation needs at least "
                "two, calibration at least one."
            )
        third = second + (data.validation_samples or min(2000, (total - second) // 10))
        fourth = third + (data.training_samples or total)
        bounds = {
            "test": (0, first),
            "calibration": (first, second),
            "validation": (second, third),
            "training": (third, fourth),
        }
        start, stop = bounds[split]
        return TensorSamples({name: value[start:stop] for name, value in self._inputs.items()})

    def forward(self, module: nn.Module, inputs: Any) -> Tensor:
        """Return the module's first output tensor, the logits where there are some."""
        positional = [inputs[name] for name in sorted(inputs, key=_position) if name.isdigit()]
        named = {name: value for name, value in inputs.items() if not name.isdigit()}
        return _first_tensor(module(*positional, **named))

    def fingerprint(self) -> str:
        """Return a digest of what the inputs are made from."""
        if self.data.file is not None:
            return file_digest(self._file(self.data.file))
        if self.data.text is not None:
            from zoopress_zoo.text import read_sentences

            return digest(list(read_sentences(self.data.text, self.card.root)))
        if self.data.inputs is not None:
            return callable_code(self.data.inputs, self.card.root)
        return "random"

    @cached_property
    def _inputs(self) -> Inputs:
        data, wanted = self.data, self.data.evaluation_samples + self.data.calibration_samples
        if data.file is not None:
            inputs = _read(self._file(data.file))
        elif data.inputs is not None:
            inputs = _from_function(load_callable(data.inputs, self.card.root), data.inputs)
        elif data.text is not None:
            inputs = self._tokenized(data.text, wanted)
        else:
            inputs = self._random(wanted)
        lengths = {name: len(value) if value.ndim else -1 for name, value in inputs.items()}
        if not inputs or len(set(lengths.values())) != 1 or -1 in lengths.values():
            raise CardError(
                f"Card {self.card.name!r}: all inputs need the same number of samples along the "
                f"first axis, got {lengths}."
            )
        return inputs

    def _file(self, name: str) -> Path:
        path = self.card.root / name
        if not path.is_file():
            raise CardError(f"Card {self.card.name!r}: 'data.file': there is no file {path}.")
        return path

    def _random(self, count: int) -> Inputs:
        import torch

        inputs = {}
        for name, spec in (self.data.random or {}).items():
            generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
            shape = (count, *spec.shape)
            if spec.dtype == "int64":
                inputs[name] = torch.randint(spec.low, spec.high, shape, generator=generator)
            else:
                inputs[name] = torch.randn(shape, generator=generator)
        return inputs

    def _tokenized(self, reference: str, count: int) -> Inputs:
        from zoopress_zoo.sentence_encoder import load_tokenizer, tokenize
        from zoopress_zoo.text import read_sentences

        sentences = read_sentences(reference, self.card.root)[:count]
        tokenizer = load_tokenizer(self.folder)
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
        return dict(tokenize(tokenizer, sentences, 64))


def _position(name: str) -> int:
    return int(name) if name.isdigit() else 0


def _first_tensor(output: Any) -> Tensor:
    from torch import Tensor

    if isinstance(output, Tensor):
        return output
    if isinstance(output, Mapping):
        for key in ("logits", "last_hidden_state"):
            if isinstance(output.get(key), Tensor):
                found: Tensor = output[key]
                return found
        output = list(output.values())
    if isinstance(output, (tuple, list)):
        for item in output:
            if isinstance(item, Tensor):
                return item
        for item in output:
            return _first_tensor(item)
    raise TypeError(f"the model returned {type(output).__name__} without a tensor in it")


def _read(path: Path) -> Inputs:
    import torch

    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        return dict(load_file(path))
    if path.suffix in (".npz", ".npy"):
        import numpy as np

        try:
            loaded = np.load(path, allow_pickle=False)
            arrays = {"0": loaded} if path.suffix == ".npy" else dict(loaded)
            return {_argument(name): torch.from_numpy(array) for name, array in arrays.items()}
        except (ValueError, OSError, TypeError) as error:
            raise CardError(f"'data.file': {path} cannot be read: {error}.") from error
    raise CardError(f"'data.file': {path} must be .safetensors, .npz or .npy.")


def _argument(name: str) -> str:
    """Return numpy's own names for unnamed arrays, arr_0 and so on, as positions."""
    return name.removeprefix("arr_") if name.removeprefix("arr_").isdigit() else name


def _from_function(function: Any, reference: str) -> Inputs:
    """Call the user's function, which returns tensors, alone or in a dict or tuple, or batches."""
    import torch
    from torch import Tensor

    required = [
        p
        for p in inspect.signature(function).parameters.values()
        if p.default is p.empty and p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)
    ]
    if required:
        raise CardError(f"'data.inputs': {reference} must be callable without arguments.")
    made = function()
    if isinstance(made, list) and made and all(isinstance(b, (dict, tuple, list)) for b in made):
        batches = [_named(batch) for batch in made]
    elif isinstance(made, list) and made and all(isinstance(b, Tensor) for b in made):
        batches = [{"0": batch} for batch in made]
    else:
        batches = [_named(made)]
    try:
        return {n: torch.cat([batch[n] for batch in batches]) for n in batches[0]}
    except (TypeError, KeyError, RuntimeError) as error:
        raise CardError(
            f"'data.inputs': {reference} must return a tensor [samples, …], a dict or tuple of "
            f"such tensors, or a list of batches of these: {error}."
        ) from error


def _named(made: Any) -> Inputs:
    if isinstance(made, Mapping):
        return dict(made)
    if isinstance(made, (tuple, list)):
        return {str(i): value for i, value in enumerate(made)}
    return {"0": made}
