"""What modules keep of a call in plain attributes, such as a table that they make at the first."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

_NONE = object()


@contextmanager
def caches_forgotten(module: nn.Module) -> Iterator[None]:
    """Take back what modules have kept of calls when the block ends.

    A table that was made of other weights, or in another float type, would be used further. Tensors
    in plain attributes, and in plain dicts and lists there, become what they were; so do buffers
    that no checkpoint holds and that grew, such as tables of positions for longer inputs.

    Args:
        module: the model; modules that it gets inside the block are left alone.
    """
    before = {part: dict(_held(part)) for part in module.modules()}
    tables = [
        (part, name, part._buffers[name])
        for part in before
        for name in part._non_persistent_buffers_set & part._buffers.keys()
    ]
    contents = {
        id(value): (value, value.copy())
        for held in before.values()
        for value in held.values()
        if type(value) in (dict, list)
    }
    try:
        yield
    finally:
        for part, held in before.items():
            for name, now in _held(part):
                was = held.get(name, _NONE)
                if now is was or not _is_kept(now):
                    continue
                if was is _NONE:
                    del vars(part)[name]
                else:
                    vars(part)[name] = was
        for value, was in contents.values():
            _restore(value, was)
        for part, name, table in tables:
            now = part._buffers.get(name)
            if table is not None and now is not None and now.numel() > table.numel():
                part._buffers[name] = table


def _held(module: nn.Module) -> Iterator[tuple[str, Any]]:
    for name, value in list(vars(module).items()):
        if name not in _OWN and (value is None or isinstance(value, (Tensor, dict, list))):
            yield name, value


_OWN = frozenset(vars(nn.Module())) | {"_flat_weights"}


def _is_kept(value: Any) -> bool:
    """Tell whether an attribute that has changed holds tensors, as caches do."""
    if isinstance(value, dict):
        return any(isinstance(item, Tensor) for item in value.values())
    if isinstance(value, list):
        return any(isinstance(item, Tensor) for item in value)
    return isinstance(value, Tensor)


def _restore(value: Any, was: Any) -> None:
    """Take tensors out of a dict or list that were not there."""
    if isinstance(value, dict):
        for key in [k for k, v in value.items() if isinstance(v, Tensor) and was.get(k) is not v]:
            if key in was:
                value[key] = was[key]
            else:
                del value[key]
    elif len(value) != len(was) and any(isinstance(item, Tensor) for item in value):
        value[:] = was
