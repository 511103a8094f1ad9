"""One call of a model through its task, and all that the model returned in it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from zoopress.tasks import Task, named_outputs, outputs_of, samples_first
from zoopress.tasks.batches import batch_length

_COPIED_ELEMENTS = 1 << 22
"""Smaller outputs are copied: they may be memory that the model writes into when it is called next.
Larger ones are not, since there may be no room for two."""


@dataclass(frozen=True)
class Observed:
    """What one call gave.

    Attributes:
        output: what the task returned, float32 [samples, …]; complex numbers as two real ones.
        main: its name.
        others: what else the module returned, by name; floats as float32.
        kinds: "real", "complex", "integer" or "boolean", of each by name.
        types: the type that the module returned, of each by name.
        infinite: how many values of each are NaN or infinite.
        samples: how many the batch has.
    """

    output: Tensor
    main: str
    others: Mapping[str, Tensor]
    kinds: Mapping[str, str]
    types: Mapping[str, str]
    infinite: Mapping[str, int]
    samples: int
    named: Mapping[str, Tensor] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "named", {self.main: self.output, **self.others})

    def rows(self, name: str) -> Tensor:
        """Return an output as [samples, …]; one without an axis of samples as [1, …]."""
        if name == self.main:
            return self.output
        found = samples_first(self.others[name], self.samples)
        return self.others[name][None] if found is None else found

    def epsilon(self, name: str) -> float:
        """Return the machine epsilon of the type that the module returned."""
        dtype = getattr(torch, self.types[name])
        return torch.finfo(dtype).eps if dtype.is_floating_point or dtype.is_complex else 0.0

    def without_others(self) -> Observed:
        """Return the same with what the task returned alone."""
        return replace(self, others={})


def observe(task: Task, module: nn.Module, inputs: Any) -> Observed:
    """Run a module on a batch and note all that it returns.

    Args:
        task: runs it.
        module: the model.
        inputs: of the batch.
    """
    samples = _length(inputs)
    with outputs_of(module) as calls:
        returned = task.call(module, inputs)
    with torch.inference_mode():
        return _noted(task, returned.detach(), calls, samples)


def numbers(output: Tensor) -> Tensor:
    """Return what a task returned as float32, complex numbers as two real ones."""
    real = torch.view_as_real(output.resolve_conj()) if output.is_complex() else output
    return real.detach().float()


def _noted(task: Task, returned: Tensor, calls: list[Any], samples: int) -> Observed:
    main, others = "", {}
    for i, output in enumerate(calls):
        for name, tensor in named_outputs(output, samples).items():
            if not main and _same_memory(tensor, returned):
                main = name if not i else f"call {i + 1}.{name}"
            else:
                others[name if not i else f"call {i + 1}.{name}"] = tensor.detach()
    main = main or getattr(task, "main_output", None) or "output"
    others.pop(main, None)
    everything = {main: returned, **others}
    kinds = {name: _kind(tensor) for name, tensor in everything.items()}
    if getattr(task, "complex_output", False):
        kinds[main] = "complex"
    return Observed(
        output=_kept(numbers(returned), returned),
        main=main,
        others={name: _kept(_plain(tensor), tensor) for name, tensor in others.items()},
        kinds=kinds,
        types={n: str(tensor.dtype).removeprefix("torch.") for n, tensor in everything.items()},
        infinite={
            name: int((~tensor.isfinite()).sum())
            for name, tensor in everything.items()
            if tensor.is_floating_point() or tensor.is_complex()
        },
        samples=samples,
    )


def _plain(tensor: Tensor) -> Tensor:
    return numbers(tensor) if tensor.is_floating_point() or tensor.is_complex() else tensor


def _kept(values: Tensor, source: Tensor) -> Tensor:
    shared = values.device == source.device and values.data_ptr() == source.data_ptr()
    return values.clone() if shared and values.numel() <= _COPIED_ELEMENTS else values


def _same_memory(tensor: Tensor, returned: Tensor) -> bool:
    numbers_of = 2 if tensor.is_complex() and not returned.is_complex() else 1
    return (
        tensor.numel() * numbers_of == returned.numel()
        and tensor.numel() > 0
        and tensor.device == returned.device
        and tensor.data_ptr() == returned.data_ptr()
    )


def _kind(tensor: Tensor) -> str:
    if tensor.is_complex():
        return "complex"
    if tensor.is_floating_point():
        return "real"
    return "boolean" if tensor.dtype == torch.bool else "integer"


def _length(inputs: Any) -> int:
    try:
        return batch_length(inputs)
    except (StopIteration, RecursionError, TypeError, AttributeError, IndexError):
        return 0  # inputs of a task's own making
