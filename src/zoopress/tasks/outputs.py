"""What tasks do with a model: feed it, name all that it answers with, and find what is judged."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from zoopress.tasks.task import Task

WHOLE = "output"
"""What the output of a model that returns one tensor is called."""

_CACHES = frozenset({"cache", "past_key_values", "cache_params", "mems", "past_buckets_states"})
"""What models hand to themselves: its shapes follow from their layers."""
_DEPTH = 6
"""Objects in objects are looked into so far."""
_PREFERRED = ("logits", "last_hidden_state")


@contextmanager
def outputs_of(module: nn.Module) -> Iterator[list[Any]]:
    """Give what each call of a module returns, as it is called."""
    from torch.jit import ScriptModule
    from torch.nn.modules.module import register_module_forward_hook

    returned: list[Any] = []

    def note(called: nn.Module, given: Any, output: Any) -> None:
        if called is module:
            returned.append(output)

    # Scripted modules take no hooks of their own.
    scripted = isinstance(module, ScriptModule)
    add = register_module_forward_hook if scripted else module.register_forward_hook
    handle = add(note)
    try:
        yield returned
    finally:
        handle.remove()


def feed(module: nn.Module, inputs: Any) -> Tensor:
    """Run a module on a tensor, or a dict of them, and return the one that it is asked for.

    transformers' models say what their main input is called; others get it as the first argument.
    """
    name = getattr(module, "main_input_name", None)
    if not isinstance(inputs, dict) and isinstance(name, str):
        inputs = {name: inputs}
    return first_tensor(module(**inputs) if isinstance(inputs, dict) else module(inputs))


def first_tensor(output: Any) -> Tensor:
    """Return the first tensor of what a model returned, the logits where there are some.

    Losses, integers and caches are passed over where there is something else.

    Raises:
        TypeError: if there is none.
    """
    named = named_outputs(output)
    if not named:
        raise TypeError(f"the model returned {type(output).__name__} without a tensor in it")
    return named[main_output(named)]


def main_output(named: Mapping[str, Tensor], samples: int | None = None) -> str:
    """Return the name of what a model is asked for, of all that it returned.

    Args:
        named: as `named_outputs` gives it, not empty.
        samples: of the batch. If it is given, an output with an axis of so many goes before one
            without, and one that differs between samples before one that does not.
    """

    def rank(name: str) -> tuple[bool, bool, bool, bool, int, int]:
        tensor = named[name]
        known = next((i for i, p in enumerate(_PREFERRED) if _last(name) == p), len(_PREFERRED))
        real = tensor.is_floating_point() or tensor.is_complex()
        rows = None if samples is None else samples_first(tensor, samples)
        return (
            is_cache(name),
            _is_loss(name) or (samples is not None and rows is None),
            not real,
            rows is not None and _constant(rows),
            name.count("."),
            known,
        )

    return min(named, key=rank)


def is_cache(name: str) -> bool:
    """Tell whether an output is what a model hands to itself, such as keys and values."""
    return not _CACHES.isdisjoint(name.split("."))


def is_judged(task: Task, name: str, main: str) -> bool:
    """Tell whether an output counts for targets and the guard on quality.

    Args:
        task: whose card may name those that do.
        name: of the output.
        main: the name of the one that the task returns.
    """
    if task.data.outputs and task.every_output:
        return name in task.data.outputs
    return name == main or name in task.data.outputs or (task.every_output and not is_cache(name))


def samples_first(output: Tensor, samples: int) -> Tensor | None:
    """Return an output with the samples as its first axis, None if it has no such axis.

    Args:
        output: [samples, …], [steps, samples, …], or [samples × parts, …].
        samples: how many the batch has.
    """
    shape = tuple(output.shape)
    if not shape or not samples:
        return None
    if shape[0] == samples:
        return output
    if samples in shape:
        return output.movedim(shape.index(samples), 0)
    if shape[0] and shape[0] % samples == 0:
        return output.reshape(samples, shape[0] // samples, *shape[1:])
    return None


def named_outputs(output: Any, samples: int | None = None) -> dict[str, Tensor]:
    """Return all tensors and numbers that a model returned, by name, such as "boxes" or "1.0".

    They are looked for in dicts, tuples, lists, dataclasses and other objects, caches of keys and
    values among them. A packed sequence counts as a padded one and its lengths.

    Args:
        output: what the model returned. A tensor alone is called "output".
        samples: of the batch. If it is given, a list with an item for each sample is one output:
            its items are padded with zeros to one shape.
    """
    return dict(_walk(output, "", samples, 0, set()))


def _walk(
    output: Any, name: str, samples: int | None, depth: int, seen: set[int]
) -> Iterator[tuple[str, Tensor]]:
    import torch
    from torch.nn.utils.rnn import PackedSequence, pad_packed_sequence

    if isinstance(output, torch.Tensor):
        yield name or WHOLE, _strided(output)
        return
    if isinstance(output, (bool, int, float, complex)):
        yield name or WHOLE, torch.tensor(output)
        return
    if type(output).__module__ == "numpy" and hasattr(output, "dtype"):
        if output.dtype.kind in "biufc":
            yield name or WHOLE, torch.as_tensor(output)
        return
    if output is None or id(output) in seen or depth > _DEPTH:
        return
    seen = {*seen, id(output)}
    if isinstance(output, PackedSequence):
        padded, lengths = pad_packed_sequence(output, batch_first=True)
        items: list[tuple[str, Any]] = [("data", padded), ("lengths", lengths)]
    elif isinstance(output, Mapping):
        items = [(str(key), value) for key, value in output.items()]
    elif isinstance(output, (tuple, list)):
        joined = None if samples is None else _joined(output, samples)
        if joined is not None:
            yield from _walk(joined, name, None, depth + 1, seen)
            return
        names: Sequence[Any] = getattr(output, "_fields", range(len(output)))
        items = [(str(key), value) for key, value in zip(names, output, strict=True)]
    elif is_dataclass(output) and not isinstance(output, type):
        items = [(each.name, getattr(output, each.name)) for each in fields(output)]
    elif isinstance(output, (type, Callable, torch.nn.Module)):  # type: ignore[arg-type]
        return
    else:  # caches, distributions, boxes of detectors: of these what is a tensor counts
        if type(output).__name__.endswith("Cache") and not is_cache(name):
            name = f"{name}.cache" if name else "cache"
        items = [
            (key, value)
            for key, value in getattr(output, "__dict__", {}).items()
            if isinstance(value, (torch.Tensor, Mapping, tuple, list))
            or (hasattr(value, "__dict__") and not isinstance(value, type))
        ]
        items = [(key, _only_tensors(value)) for key, value in items]
    for key, value in items:
        yield from _walk(value, f"{name}.{key}" if name else key, samples, depth + 1, seen)


def _only_tensors(value: Any) -> Any:
    """Return a container without plain numbers, which are settings in what is no output."""
    plain = (bool, int, float, complex)
    if isinstance(value, Mapping):
        return {key: v for key, v in value.items() if not isinstance(v, plain)}
    if isinstance(value, (tuple, list)):
        return {str(i): v for i, v in enumerate(value) if not isinstance(v, plain)}
    return value


def _strided(tensor: Tensor) -> Tensor:
    import torch

    if tensor.is_nested:
        dense: Tensor = torch.nested.to_padded_tensor(tensor, 0.0)
        return dense
    if tensor.layout is not torch.strided:
        return tensor.to_dense()
    return tensor.dequantize() if tensor.is_quantized else tensor


def _joined(items: Sequence[Any], samples: int) -> Any:
    """Return a sequence with an item for each sample as tensors [samples, …]; None if it is none.

    Items are tensors, or dicts of tensors, each of its own length.
    """
    import torch

    if len(items) != samples or hasattr(items, "_fields"):
        return None
    if all(isinstance(item, Mapping) for item in items):
        keys = list(items[0])
        if any(list(item) != keys for item in items):
            return None
        parts = {key: _joined([item[key] for item in items], samples) for key in keys}
        return None if any(part is None for part in parts.values()) else parts
    if not all(isinstance(item, torch.Tensor) for item in items):
        return None
    if len({(item.ndim, item.dtype) for item in items}) != 1:
        return None
    of_batch = samples > 1 or not isinstance(items, list)
    if of_batch and all(item.ndim and len(item) == samples for item in items):
        return None  # as many hidden states as samples, each of all of them
    sizes = [max(each) for each in zip(*(item.shape for item in items), strict=True)]
    return torch.stack([padded(item, sizes) for item in items])


def padded(tensor: Tensor, sizes: Sequence[int]) -> Tensor:
    """Return a tensor with zeros at the end of each axis, up to some sizes."""
    from torch.nn.functional import pad

    missing = [size - there for size, there in zip(sizes, tensor.shape, strict=True)]
    if not any(missing):
        return tensor
    return pad(tensor, [n for size in reversed(missing) for n in (0, size)])


def _constant(rows: torch.Tensor) -> bool:
    """Tell whether all samples have the same values; of one sample nobody knows."""
    if len(rows) < 2 or not rows.numel():
        return False
    import torch

    first = rows.detach()[:1]
    return bool(torch.equal(rows.detach(), first.expand_as(rows)))


def _is_loss(name: str) -> bool:
    return "loss" in _last(name).lower()


def _last(name: str) -> str:
    return name.rpartition(".")[2]
