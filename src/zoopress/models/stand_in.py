"""A layer in the place of another, within the very object that the other was.

The object stays: with its hooks, a `forward` of its own, its attributes, and whoever else refers to
it, be it a list, a closure or a handle. Its tensors and children become those of the new layer, and
its class a subclass of the new layer's class and of its own, so that `isinstance` holds of both:
what torch's modules do by themselves (calls, moves, state dicts) is the new layer's; what neither
the new layer nor `nn.Module` has is the old one's. The grid of the old layer's input stays that of
the new one's. Tensors that the old layer had and the new one
computes can be read, and not written into.
"""

from __future__ import annotations

import inspect
import weakref
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from zoopress.models.input_scale import ON_INPUT
from zoopress.models.stand_in_classes import (
    Former as Former,
    class_for,
    former as former,
    own_class as own_class,
)

_CALL_HOOKS = ("_forward_hooks", "_backward_hooks", "_forward_pre_hooks", "_backward_pre_hooks")
_FLAGS_OF_HOOKS = (
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_forward_pre_hooks_with_kwargs",
)
_OF_MODULES = frozenset(vars(nn.Module()))


def obstacle(module: nn.Module) -> str | None:
    """Say why no other layer can take a module's place, or None."""
    if isinstance(module, torch.jit.ScriptModule):
        return "it is compiled by TorchScript, whose layers cannot be replaced"
    if getattr(module, "parametrizations", None) is not None:
        names = ", ".join(map(repr, module.parametrizations))  # type: ignore[arg-type]
        return (
            f"its {names} is parametrized; make it an ordinary weight with "
            "torch.nn.utils.parametrize.remove_parametrizations in the factory"
        )
    computed = [name for name, value in vars(module).items() if isinstance(value, Tensor)]
    if computed and module._forward_pre_hooks:
        return (
            f"its {computed[0]!r} is computed by a hook before each call, as weight norm does; "
            "make it an ordinary weight in the factory, as torch.nn.utils.remove_weight_norm does"
        )
    return None


def stand_in(module: nn.Module, layer: nn.Module) -> None:
    """Let a layer take a module's place, in the module's own object.

    Args:
        module: what is replaced; every reference to it is one to the new layer from now on.
        layer: the new one, which is not used by itself afterwards.

    Raises:
        ValueError: if something of the module would be lost.
    """
    if layer is module:
        return
    was = _former_of(module)
    reason = obstacle(module) or _lost(module, layer)
    if reason:
        raise ValueError(reason)
    kind = was.kind if type(layer) is was.kind else class_for(type(layer), was)
    own = [p for p in module.parameters(recurse=False) if p.is_floating_point()]
    if own and not any(parameter.requires_grad for parameter in own):
        layer.requires_grad_(False)
    layer.train(module.training)
    _unwind(module, layer)
    state = module.__dict__
    held = {id(tensor) for tensor in (*state["_parameters"].values(), *state["_buffers"].values())}
    before = getattr(module, "_of_layer", ())
    for name in [name for name in state if name not in _OF_MODULES]:
        if name in before or _holds(state[name], held):
            del state[name]
    more = tuple(name for name in vars(layer) if name not in state)
    on_input = {n: state["_modules"][n] for n in ON_INPUT if n in state["_modules"]}
    for name, value in vars(layer).items():
        if name in _CALL_HOOKS:
            _join(state[name], value, new_first=not name.endswith("pre_hooks"))
        elif name in _FLAGS_OF_HOOKS:
            state[name].update(value)
        elif name == "_is_full_backward_hook":
            state[name] = state[name] if value is None else value
        elif name != "training":
            state[name] = value
    state["_modules"].update(on_input)
    state["_of_layer"] = more
    module.__class__ = kind


def merge(root: nn.Module) -> tuple[list[str], list[str]]:
    """Give the layers below `root` whose places others took back, with the weights of those.

    Returns:
        The paths of those that could be, and of those that could not, since what stands there does
        not offer every tensor that they had.
    """
    merged, left = [], []
    device = next((p.device for p in root.parameters()), None)
    for path, module in list(root.named_modules()):
        was = former(module)
        if was is None:
            continue
        fits = not set(was.children) - module._modules.keys()
        tensors = {name: getattr(module, name, was) for name in was.tensors}
        if not fits or any(tensor is was for tensor in tensors.values()):
            left.append(path)
            continue
        _give_back(module, was, tensors, device)
        merged.append(path)
    return merged, left


def _give_back(
    module: Any, was: Former, tensors: dict[str, Any], device: torch.device | None
) -> None:
    trained = any(parameter.requires_grad for parameter in module.parameters())
    state = module.__dict__
    sizes = {  # which the new layer computes, and may have changed since
        name: getattr(module, name)
        for name in state
        if isinstance(inspect.getattr_static(type(module), name, None), property)
    }
    for name in state["_of_layer"]:
        state.pop(name, None)
    del state["_of_layer"]
    state.update(sizes)
    for group in ("_parameters", "_buffers"):
        state[group].clear()
    state["_non_persistent_buffers_set"] = set(was.unsaved)
    kept = (*was.children, *ON_INPUT)
    for name in [name for name in state["_modules"] if name not in kept]:
        del state["_modules"][name]
    module.__class__ = was.kind
    for name, tensor in tensors.items():
        if tensor is not None:
            plain = tensor.detach().as_subclass(Tensor)
            tensor = plain.contiguous() if device is None else plain.contiguous().to(device)
        if name in was.buffers:
            state["_buffers"][name] = tensor
        else:
            made = None if tensor is None else nn.Parameter(tensor, requires_grad=trained)
            state["_parameters"][name] = made


def _former_of(module: nn.Module) -> Former:
    """Return what a module was at first: one that stands in another's place gives that."""
    found = former(module)
    if found is not None:
        return found
    kind: type[nn.Module] = getattr(type(module), "_unpacked_class", type(module))
    packed = getattr(type(module), "_packed_names", ())
    return Former(
        kind,
        (*module._parameters, *packed),
        tuple(module._buffers),
        tuple(sorted(module._non_persistent_buffers_set)),
        tuple(name for name in module._modules if name not in (*packed, *ON_INPUT)),
    )


def _lost(module: nn.Module, layer: nn.Module) -> str | None:
    """Say what would be lost of a module if a layer took its place, or None."""
    if "forward" in vars(module):
        read = (*module._parameters, *module._buffers, *module._modules)
        lacks = [name for name in read if name not in ON_INPUT and not _offers(layer, name)]
        if lacks:
            return (
                f"it has a forward of its own, set on the instance, which may read {lacks[0]!r}; "
                f"{type(layer).__name__} offers nothing of that name"
            )
    hidden = [name for name in vars(module) if _collides(module, layer, name)]
    if hidden:
        return f"its attribute {hidden[0]!r} is something else in {type(layer).__name__}"
    kept = set(layer.modules())
    for path, part in module.named_modules():
        if part is module or part in kept:
            continue
        if "forward" in vars(part) or any(getattr(part, hooks) for hooks in _CALL_HOOKS):
            return f"its part {path!r} has hooks or a forward of its own, which would be lost"
    return None


def _offers(layer: nn.Module, name: str) -> bool:
    own = (layer._parameters, layer._buffers, layer._modules, vars(layer))
    found = inspect.getattr_static(type(layer), name, None)
    return found is not None or any(name in each for each in own)


def _collides(module: nn.Module, layer: nn.Module, name: str) -> bool:
    """Tell whether an attribute would hide what the new layer calls so, and not in its own way."""
    if name in _OF_MODULES or name in (*vars(layer), "forward", *getattr(module, "_of_layer", ())):
        return False
    if any(name in each for each in (layer._parameters, layer._buffers, layer._modules)):
        return True
    found = inspect.getattr_static(type(layer), name, None)
    return callable(found) and not hasattr(type(found), "__set__")


def _unwind(module: nn.Module, layer: nn.Module) -> None:
    """Where a layer holds the module that it replaces, let it hold another object of its kind."""
    inner = None
    for owner in _above(layer, module):
        for name, child in owner._modules.items():
            if child is module:
                if inner is None:
                    inner = _bare_copy(module)
                owner._modules[name] = inner


def _above(layer: nn.Module, module: nn.Module) -> Iterator[nn.Module]:
    if layer is not module:
        yield layer
        for child in layer.children():
            yield from _above(child, module)


def _bare_copy(module: nn.Module) -> nn.Module:
    """Return a module of the same tensors, without hooks and without a forward of its own."""
    made: nn.Module = object.__new__(type(module))
    fresh = vars(nn.Module())
    for name, value in vars(module).items():
        if name in ("_parameters", "_buffers", "_modules", "_non_persistent_buffers_set"):
            value = value.copy()
        elif name in fresh and name != "training":
            value = fresh[name]
        if name != "forward":
            made.__dict__[name] = value
    for name in ON_INPUT:  # of the object in whose place this one's layer is
        made._modules.pop(name, None)
    return made


def _holds(value: Any, tensors: set[int]) -> bool:
    """Tell whether an attribute holds tensors that go, as recurrent layers' lists of them do."""
    if isinstance(value, weakref.ref):
        value = value()
    if isinstance(value, (list, tuple)):
        return any(_holds(item, tensors) for item in value)
    return value is not None and id(value) in tensors


def _join(hooks: dict[int, Any], more: dict[int, Any], new_first: bool) -> None:
    """Add a new layer's hooks, which are part of it, inside of those that were put on the old."""
    if not more:
        return
    before = dict(hooks)
    hooks.clear()  # the same dict, which the handles of hooks know
    for each in (more, before) if new_first else (before, more):
        hooks.update(each)
