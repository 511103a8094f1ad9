"""Models that compute in 16-bit floating point, fed with float32 as users have it.

A whole model of 16 bits rounds what it is given. One whose code makes float32 numbers between its
layers has layers that convert at their borders: floats that come in are rounded to the type of the
layer's weights, floats that go out take the type that all between the layers has.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

LOW = (torch.bfloat16, torch.float16)
"""Types of 16 bits."""

_CONVERTS = "_converts_at_borders"
_ACCEPTS = "_accepts_float32"


def accept_float32(module: nn.Module) -> Callable[[], None]:
    """Make a module whose parameters are 16-bit floats round float inputs to their type.

    Nothing happens to other modules, to those that have layers which convert by themselves, nor a
    second time.

    Returns:
        A function that takes it back.
    """
    types = {p.dtype for p in module.parameters() if p.is_floating_point()}
    marked = vars(module)  # not by setattr, which a model may have made its own
    converts = any(_CONVERTS in vars(part) for part in module.modules())
    if len(types) != 1 or not types <= set(LOW) or _ACCEPTS in marked or converts:
        return lambda: None
    marked[_ACCEPTS] = True
    handle = module.register_forward_pre_hook(_round_inputs, with_kwargs=True)

    def undo() -> None:
        marked.pop(_ACCEPTS, None)
        handle.remove()

    return undo


def convert_at_borders(module: nn.Module, outside: torch.dtype) -> Callable[[], None]:
    """Let a module of 16 bits take and give floats of another type.

    While its own weights are of no 16-bit type, as in training, nothing is converted.

    Args:
        module: what computes in the type of its own parameters.
        outside: what floats of 16 bits have when they leave it.

    Returns:
        A function that takes it back.
    """
    vars(module)[_CONVERTS] = True
    handles = (
        module.register_forward_pre_hook(_round_to_own, with_kwargs=True),
        module.register_forward_hook(partial(_give, outside)),
    )

    def undo() -> None:
        vars(module).pop(_CONVERTS, None)
        for handle in handles:
            handle.remove()

    return undo


@contextmanager
def computing_in_float32(module: nn.Module) -> Iterator[None]:
    """Let layers whose weights of 16 bits are held in float32 for a while work as before.

    Whatever they are given as 16-bit floats, they compute in float32, and give it back as such.

    Args:
        module: the model; called before its weights change type.
    """
    handles = []
    for part in module.modules():
        types = {p.dtype for p in part.parameters(recurse=False) if p.is_floating_point()}
        if types & set(LOW):
            seen: list[torch.dtype | None] = []
            handles += [
                part.register_forward_pre_hook(partial(_widen, seen), with_kwargs=True),
                part.register_forward_hook(partial(_narrow, seen), always_call=True),
            ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def converted(value: Any, types: tuple[torch.dtype, ...], dtype: torch.dtype) -> Any:
    """Return a value, or what a tuple, list or dict holds, with floats of some types converted.

    What is finite stays so: beyond the range of a type is its largest number.
    """
    if isinstance(value, Tensor):
        return _converted(value, dtype) if value.dtype in types else value
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(converted(item, types, dtype) for item in value))
    if type(value) in (tuple, list):
        return type(value)(converted(item, types, dtype) for item in value)
    if type(value) is dict:
        return {key: converted(item, types, dtype) for key, item in value.items()}
    if isinstance(value, Mapping) and hasattr(value, "__setitem__"):
        for key, item in list(value.items()):  # in place: its class may have attributes
            value[key] = converted(item, types, dtype)
    return value


def _converted(value: Tensor, dtype: torch.dtype) -> Tensor:
    made = value.to(dtype)
    if dtype == torch.float16:
        most = torch.finfo(dtype).max
        made = torch.where(
            made.isinf() & value.isfinite(), value.clamp(-most, most).to(dtype), made
        )
    return made


_WIDE = (torch.float32, torch.float64)
_Arguments = tuple[tuple[Any, ...], dict[str, Any]]


def _round_inputs(
    module: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]
) -> _Arguments:
    dtype = next((p.dtype for p in module.parameters() if p.is_floating_point()), None)
    if dtype is None:  # all weights were packed since
        return arguments, named

    def rounded(value: Any) -> Any:
        floats = isinstance(value, Tensor) and value.dtype in _WIDE
        return value.to(dtype) if floats else value

    return tuple(map(rounded, arguments)), {key: rounded(v) for key, v in named.items()}


def _own_low_type(module: nn.Module) -> torch.dtype | None:
    types = (p.dtype for p in module.parameters() if p.is_floating_point())
    return next((dtype for dtype in types if dtype in LOW), None)


def _round_to_own(
    module: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]
) -> _Arguments:
    dtype = _own_low_type(module)
    if dtype is None:
        return arguments, named
    others = tuple({*_WIDE, *LOW} - {dtype})
    return converted(arguments, others, dtype), converted(named, others, dtype)


def _give(outside: torch.dtype, module: nn.Module, arguments: Any, output: Any) -> Any:
    return converted(output, LOW, outside)


def _widen(
    seen: list[torch.dtype | None],
    module: nn.Module,
    arguments: tuple[Any, ...],
    named: dict[str, Any],
) -> _Arguments:
    low = next((t.dtype for t in _tensors((arguments, named)) if t.dtype in LOW), None)
    seen.append(low)
    if low is None:
        return arguments, named
    return converted(arguments, LOW, torch.float32), converted(named, LOW, torch.float32)


def _narrow(seen: list[torch.dtype | None], module: nn.Module, arguments: Any, output: Any) -> Any:
    low = seen.pop() if seen else None
    return output if low is None else converted(output, (torch.float32,), low)


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _tensors(item)
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from _tensors(item)
