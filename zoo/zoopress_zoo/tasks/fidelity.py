"""Fidelity: the original's outputs are the reference; for any module with any inputs."""

from __future__ import annotations

import inspect
import zlib
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zoopress.errors import CardError, cautious, nearest
from zoopress.sources import callable_code, load_callable
from zoopress.store import digest, file_digest
from zoopress.tasks import (
    Batch,
    Samples,
    Split,
    Task,
    main_output,
    named_outputs,
    row_digest,
    samples_first,
)
from zoopress.tasks.outputs import WHOLE
from zoopress_zoo.positions import within_positions

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from zoopress.cards import RandomInput

Inputs = dict[str, Any]
"""Tensors [samples, …] by argument name; names "0", "1", … are positional."""


RANDOM_TRAINING = 1024
"""Random samples to learn from, unless the card asks for another number."""

_TEXT_TOKENS = 64
_SCORES = ("logit", "score", "class", "prob", "pred", "cls", "label")
"""An output whose name has none of these is not taken for scores of classes."""
_LEAST: Mapping[Split, int] = {"test": 2, "calibration": 1}


class Pool(Samples):
    """All samples that the splits are taken from, in an order that never changes."""

    @abstractmethod
    def content(self, row: int) -> Sequence[Any]:
        """Return what tells a sample from others: numpy arrays or text."""


class TensorSamples(Pool):
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

    def content(self, row: int) -> Sequence[Any]:
        return [_bytes(value[row : row + 1]) for value in self._inputs.values()]


class _RandomSamples(Pool):
    """Random values: the first ones made together, every other when it is asked for.

    Those to learn from may be many, and large.
    """

    def __init__(self, inputs: Mapping[str, RandomInput], first: int, count: int) -> None:
        self._inputs, self._count = inputs, count
        self._first = {name: _random(name, spec, first) for name, spec in inputs.items()}

    def __len__(self) -> int:
        return self._count

    def batch(self, rows: Sequence[int], generator: torch.Generator | None = None) -> Batch:
        import torch

        samples = [self._sample(row) for row in rows]
        return Batch({name: torch.cat([s[name] for s in samples]) for name in self._inputs})

    def content(self, row: int) -> Sequence[Any]:
        return [_bytes(value) for value in self._sample(row).values()]

    def _sample(self, row: int) -> Inputs:
        if row < len(next(iter(self._first.values()))):
            return {name: values[row : row + 1] for name, values in self._first.items()}
        return {name: _random(f"{name} {row}", spec, 1) for name, spec in self._inputs.items()}


class _TextSamples(Pool):
    """Lines of text, distinct; the first ones padded to one length, the others as batches need."""

    def __init__(self, tokenizer: Any, lines: Sequence[str], first: int, tokens: int) -> None:
        self._tokenizer, self._lines, self._tokens = tokenizer, lines, tokens
        self._first = TensorSamples(self._tokenized(lines[:first]))

    def __len__(self) -> int:
        return len(self._lines)

    def batch(self, rows: Sequence[int], generator: torch.Generator | None = None) -> Batch:
        if max(rows) < len(self._first):
            return self._first.batch(rows)
        return Batch(self._tokenized([self._lines[row] for row in rows]))

    def content(self, row: int) -> Sequence[Any]:
        return [self._lines[row]]

    def _tokenized(self, lines: Sequence[str]) -> Inputs:
        from zoopress_zoo.sentence_encoder import tokenize

        return tokenize(self._tokenizer, lines, self._tokens)


class _Chosen(Samples):
    """Some samples of a pool."""

    def __init__(self, pool: Pool, rows: Sequence[int]) -> None:
        self._pool, self._rows = pool, rows

    def __len__(self) -> int:
        return len(self._rows)

    def batch(self, rows: Sequence[int], generator: torch.Generator | None = None) -> Batch:
        chosen = [self._rows[row] for row in rows]
        if chosen == list(range(chosen[0], chosen[0] + len(chosen))):
            return self._pool.batch(range(chosen[0], chosen[0] + len(chosen)))  # without a copy
        return self._pool.batch(chosen)


class FidelityTask(Task):
    """Feeds a module from the card's data and compares all that it returns.

    Attributes:
        main_output: the name of the output that `forward` returns, once a model was run: the first
            that the card names; else the logits where there are some, else the first one of real
            numbers that differ between samples.
        complex_output: whether that is of complex numbers, which `forward` returns as two real
            ones each.
    """

    name = "fidelity"
    every_output = True
    main_output: str | None = None
    complex_output: bool = False

    def make_samples(self, split: Split) -> Samples:
        """Return inputs, in the order that the data has; none equals one of another split.

        Raises:
            CardError: if there are too few samples.
        """
        return _Chosen(self._pool, self._split_rows(split))

    def _split_rows(self, wanted: Split) -> list[int]:
        """Return the rows of a split: the next ones after the split before, but no copies."""
        used: set[bytes] = set()
        row = 0
        rows: list[int] = []
        for split, count in self._counts().items():
            rows = []
            while row < len(self._pool) and len(rows) < count:
                if self._digest(row) not in used:
                    rows.append(row)
                row += 1
            if len(rows) < _LEAST.get(split, 0):
                raise CardError(
                    f"Card {self.card.name!r}: {len(self._pool)} samples, copies included, are too "
                    "few: evaluation needs at least two, calibration at least one that is none of "
                    "them."
                )
            if split == wanted:
                break
            used.update(map(self._digest, rows))
        return rows

    def _counts(self) -> dict[Split, int]:
        """Return how many samples each split takes, in the order in which they do."""
        data, total = self.data, len(self._pool)
        wanted = data.evaluation_samples, data.calibration_samples
        # With less data than asked for, these splits shrink alike.
        test = wanted[0] if sum(wanted) <= total else total * wanted[0] // sum(wanted)
        calibration = min(total - test, wanted[1])
        validation = data.validation_samples or min(2000, (total - test - calibration) // 10)
        return {
            "test": test,
            "calibration": calibration,
            "validation": validation,
            "training": data.training_samples or total,
        }

    def _digest(self, row: int) -> bytes:
        if row not in self._digests:
            self._digests[row] = row_digest(self._pool.content(row))
        return self._digests[row]

    def forward(self, module: nn.Module, inputs: Any) -> Tensor:
        """Return the module's main output, the samples first.

        Raises:
            CardError: if arguments do not fit, or no output has values of each sample.
        """
        positional = [inputs[name] for name in sorted(inputs, key=_position) if name.isdigit()]
        named = {name: value for name, value in inputs.items() if not name.isdigit()}
        try:
            output = module(*positional, **named)
        except TypeError as error:
            if unfit := _unfit(module, positional, named):
                raise CardError(
                    f"The card's 'data' gives {', '.join(map(repr, inputs))}; {unfit}. Name inputs "
                    "as the arguments are, or by position: '0', '1', …"
                ) from error
            raise
        from zoopress.tasks.batches import batch_length

        return self._main(output, batch_length(inputs))

    def _main(self, output: Any, samples: int) -> Tensor:
        """Return the output that techniques look at, of all that a model returned."""
        import torch

        named = named_outputs(output, samples)
        wanted = self.data.outputs or tuple(named)
        if unknown := [name for name in wanted if name not in named]:
            raise CardError(
                f"Card {self.card.name!r}: 'data.outputs': the model returns no output "
                f"{unknown[0]!r}, but {_described(named) or 'no tensor'}."
                f"{nearest(unknown[0], named)}"
            )
        if self.main_output not in wanted:
            ready = {name: named[name] for name in wanted}
            self.main_output = (
                self.data.outputs[0]
                if self.data.outputs
                else main_output(ready, samples)
                if ready
                else None
            )
        main = None if self.main_output is None else named[self.main_output]
        rows = None if main is None else samples_first(main, samples)
        if rows is None:
            of = f"of its outputs {self.main_output!r} " if self.data.outputs else ""
            raise CardError(
                f"Card {self.card.name!r}: for {samples} samples the model returns "
                f"{_described(named) or type(output).__name__}; {of or 'nothing of that '}has an "
                "axis of samples. A mean over a batch, or a loss, hides what a technique does to "
                "each sample. Let the factory return a module that gives values of each sample, "
                "[samples, …]" + (", or name another output." if of else ".")
            )
        self.complex_output = rows.is_complex()
        return torch.view_as_real(rows.resolve_conj()) if self.complex_output else rows

    def similarity(self, outputs: Sequence[Tensor]) -> Tensor | None:
        """Return scores of classes, if the main output can be such by its name and type."""
        if self.complex_output or any(not output.is_floating_point() for output in outputs):
            return None
        name = (self.main_output or WHOLE).rpartition(".")[2].lower()
        if name != WHOLE and not name.isdigit() and not any(part in name for part in _SCORES):
            return None
        return super().similarity(outputs)

    def fingerprint(self) -> str:
        """Return a digest of what the inputs are made from."""
        if self.data.file is not None:
            return file_digest(self._file(self.data.file))
        if self.data.text is not None:
            from zoopress_zoo.text import read_sentences

            return digest(list(read_sentences(self.data.text, self.card.root)))
        if self.data.inputs is not None:
            self._code = callable_code(self.data.inputs, self.card.root)
            return self._code
        return "random"

    _code: str | None = None
    """Of the function that makes the inputs, once the fingerprint told it."""

    @cached_property
    def _digests(self) -> dict[int, bytes]:
        return {}

    @cached_property
    def _pool(self) -> Pool:
        data, wanted = self.data, self.data.evaluation_samples + self.data.calibration_samples
        if data.file is not None:
            return self._checked(_read(self._file(data.file)))
        if data.inputs is not None:
            function = load_callable(data.inputs, self.card.root, self._code)
            return self._checked(_from_function(function, data.inputs))
        if data.text is not None:
            return self._text(data.text, wanted)
        training = data.training_samples or RANDOM_TRAINING
        validation = data.validation_samples or training // 9  # a tenth of both
        return _RandomSamples(data.random or {}, wanted, wanted + validation + training)

    def _checked(self, inputs: Inputs) -> TensorSamples:
        lengths = {name: len(value) if value.ndim else -1 for name, value in inputs.items()}
        if not inputs or len(set(lengths.values())) != 1 or -1 in lengths.values():
            raise CardError(
                f"Card {self.card.name!r}: all inputs need the same number of samples along the "
                f"first axis, got {lengths}."
            )
        return TensorSamples(inputs)

    def _file(self, name: str) -> Path:
        path = self.card.root / name
        if not path.is_file():
            raise CardError(f"Card {self.card.name!r}: 'data.file': there is no file {path}.")
        return path

    def _text(self, reference: str, first: int) -> Pool:
        from zoopress_zoo.sentence_encoder import load_tokenizer
        from zoopress_zoo.text import read_sentences

        tokenizer = load_tokenizer(self.folder)
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
        lines = read_sentences(reference, self.card.root)
        return _TextSamples(tokenizer, lines, first, within_positions(self.folder, _TEXT_TOKENS))


def _random(seed: str, spec: RandomInput, count: int) -> Tensor:
    """Return random values [count, *shape] that follow from the seed."""
    import torch

    generator = torch.Generator().manual_seed(zlib.crc32(seed.encode()))
    shape = (count, *spec.shape)
    if spec.dtype == "int64":
        return torch.randint(spec.low, spec.high, shape, generator=generator)
    return torch.randn(shape, generator=generator)


def _bytes(values: Tensor) -> Any:
    """Return a tensor's memory as a numpy array; numpy lacks some of torch's types."""
    import torch

    return values.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()


def _described(named: Mapping[str, Tensor]) -> str:
    """Say what a model returned, with shapes and types."""
    return ", ".join(
        f"{name} {list(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}"
        for name, tensor in named.items()
    )


def _position(name: str) -> int:
    return int(name) if name.isdigit() else 0


def _unfit(module: nn.Module, positional: Sequence[Any], named: Mapping[str, Any]) -> str | None:
    """Return why arguments do not fit a module's forward, None if they do."""
    try:
        signature = inspect.signature(module.forward)
    except ValueError:  # of compiled code
        return None
    try:
        signature.bind(*positional, **named)
    except TypeError as error:
        return f"the model's forward takes {', '.join(signature.parameters)}: {error}"
    return None


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
            reason = cautious(str(error))
            raise CardError(f"'data.file': {path} cannot be read: {reason}.") from (
                error if reason == str(error) else None
            )
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
