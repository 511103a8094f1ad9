"""Check that layers in the place of others can do what a model and its users ask of a layer."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from zoopress.models.outputs import half_the_digits, largest_difference
from zoopress.models.stand_in import Former, former, merge


def wrong_stand_ins(module: nn.Module, run: Callable[[], object]) -> str | None:
    """Return what is wrong with a model's replaced layers, None if nothing is.

    Args:
        module: the model.
        run: runs it; layers that it does not call are not tried.
    """
    for path, layer in list(module.named_modules()):
        was = former(layer)
        if was is None:
            continue
        call = _caught(layer, run)
        problem = None if call is None else _wrong_of(layer, was, *call)
        if problem is not None:
            return f"the layer {path!r} ({type(layer).__name__}): {problem}"
    return None


def _caught(
    layer: nn.Module, run: Callable[[], object]
) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
    """Return what a run calls a layer with first, None if it does not."""
    calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
    before, own = layer.forward, vars(layer).get("forward")

    def forward(*given: Any, **named: Any) -> Any:  # not a hook: whether these work is asked later
        calls.append((given, named))
        return before(*given, **named)

    vars(layer)["forward"] = forward
    try:
        with torch.no_grad():
            run()
    finally:
        del vars(layer)["forward"]
        if own is not None:
            vars(layer)["forward"] = own
    return calls[0] if calls else None


@torch.no_grad()
def _wrong_of(
    layer: nn.Module, was: Former, given: tuple[Any, ...], named: dict[str, Any]
) -> str | None:
    expected = layer(*given, **named)
    heard: list[bool] = []
    handle = layer.register_forward_hook(lambda *_: heard.append(True))
    layer(*given, **named)
    handle.remove()
    if not heard:
        return (
            "a forward hook is not called. Leave `__call__` to nn.Module, and compute in `forward`"
        )
    for how, copied in (("copied", copy.deepcopy), ("pickled", _pickled)):
        try:
            other = copied(layer)
        except Exception as error:
            return (
                f"it cannot be {how}: {type(error).__name__}: {error}. Keep no functions that are "
                "defined inside of others, no open files and no locks as attributes"
            )
        if largest_difference(expected, other(*given, **named)) != 0:
            return f"{how}, it computes something else"
    for name in was.tensors:
        value = getattr(layer, name, None)
        if value is not None and not isinstance(value, Tensor):
            return f"{name!r} was a tensor of the layer before, and is a {type(value).__name__}"
    root = nn.Sequential(copy.deepcopy(layer))
    merged, _ = merge(root)
    if not merged:
        return None  # it offers no dense weight
    types = {parameter.dtype for parameter in layer.parameters()}
    try:
        difference = largest_difference(expected, root[0](*given, **named))
    except Exception as error:
        return _unlike(was, f"fails: {type(error).__name__}: {error}")
    if not difference <= half_the_digits(*types):
        return _unlike(was, f"differs by {difference:.2g} of the largest output")
    return None


def _unlike(was: Former, what: str) -> str:
    return (
        f"a {was.kind.__name__} with the tensors that it offers ({', '.join(was.tensors)}) {what}. "
        "Each must be what the layer stands for, in the shape that the layer before had; leave it "
        "out if there is no such tensor"
    )


def _pickled(layer: nn.Module) -> Any:
    file = io.BytesIO()
    torch.save(layer, file, pickle_module=pickle)
    file.seek(0)
    return torch.load(file, weights_only=False)
