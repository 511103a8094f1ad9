"""Weights that a module computes from others, as weight norm does, made ordinary ones.

In evaluation mode such a computation gives the same weight every time, so its result can take its
place. Then the weight is found under its own name and kind, and can be pruned, packed, factored and
resized as any other. Three ways of torch are known: parametrizations, the hooks of the older
`weight_norm` and `spectral_norm`, and those of `torch.nn.utils.prune`.
"""

from __future__ import annotations

import copy
from collections.abc import Container, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from zoopress.models.edit_records import AnyEdit, Keep

_CONTAINERS = ("_forward_pre_hooks", "_state_dict_hooks", "_load_state_dict_pre_hooks")


def computed_names(module: nn.Module) -> list[str]:
    """Return the attributes of a module that it computes from parameters of its own, sorted."""
    names = set(getattr(module, "parametrizations", {}))
    return sorted(names | {_name(hook) for hook in _hooks(module)})


def computed_alone(root: nn.Module) -> dict[str, list[str]]:
    """Return by path the computed names of modules that can be given ordinary ones.

    Left out are those whose parameters other modules have, too, and those whose computation gives
    another result each time, or one of another shape than what it computes from: a rebuilt model
    is told by shapes alone.
    """
    found = {}
    holders: dict[int, int] = {}
    for module in root.modules():
        for tensor in module._parameters.values():
            holders[id(tensor)] = holders.get(id(tensor), 0) + (tensor is not None)
    for path, module in root.named_modules():
        names = computed_names(module)
        alone = all(holders[id(tensor)] == 1 for tensor in _sources(module))
        if names and alone and _fixed(module, names):
            found[path] = names
    return found


def fold(module: nn.Module, names: list[str]) -> None:
    """Put ordinary parameters in the place of what a module computes.

    Args:
        module: real or on the meta device, where it ends with parameters of the right shapes.
        names: all of `computed_names`, sorted.

    Raises:
        ValueError: if it computes something else.
    """
    there = computed_names(module)
    if names != there:
        raise ValueError(f"it computes {there or 'none of its parameters'}, not {names}")
    trained = any(tensor.requires_grad for tensor in _sources(module))
    shapes = _shapes(module, names)
    if shapes.keys() != set(names):
        raise ValueError(f"it has no parameters of its own to compute {names} from")
    bare = any(tensor.is_meta for tensor in shapes.values())  # being rebuilt: values come later
    values = {n: torch.empty_like(t) for n, t in shapes.items()} if bare else _values(module, names)
    if getattr(module, "parametrizations", None) is not None:
        del module._modules["parametrizations"]
        module.__class__ = type(module).__bases__[0]
    for hook in _hooks(module):
        name = _name(hook)
        for end in ("_orig", "_mask", "_g", "_v", "_u"):
            for held in (module._parameters, module._buffers):
                held.pop(name + end, None)
        module._non_persistent_buffers_set.difference_update({f"{name}_mask"})
    for container in _CONTAINERS:
        hooks: dict[int, Any] = getattr(module, container)
        for key in [key for key, hook in hooks.items() if _computes(hook)]:
            del hooks[key]
    for name, value in values.items():
        module.__dict__.pop(name, None)
        # Not into _parameters: recurrent modules keep a second list in step through setattr.
        setattr(module, name, nn.Parameter(value, requires_grad=trained))


class Folded:
    """A module whose computed weights were made ordinary, and that can become what it was.

    Attributes:
        path: of the module.
        names: of the weights.
    """

    def __init__(self, module: nn.Module, path: str, names: list[str]) -> None:
        self.path = path
        self.names = names
        self._module = module
        self._kind = type(module)
        state = module.__dict__
        self._before = {name: copy.copy(v) if _mutable(v) else v for name, v in state.items()}
        fold(module, names)
        self._made = {name: module._parameters[name] for name in names}
        self._values = {name: tensor.detach().clone() for name, tensor in self._made.items()}  # type: ignore[union-attr]
        self._others = self._tensors()

    def untouched(self, edits: Iterable[AnyEdit], masks: Container[str]) -> bool:
        """Return whether the weights, and the module's other tensors, are what they were made.

        Args:
            edits: what was done to the model since.
            masks: names of the weights that are pruned.
        """
        below = f"{self.path}." if self.path else ""
        for edit in edits:
            if isinstance(edit, Keep) or f"{edit.module}.".startswith(below):
                return False
        now = self._tensors()
        same = now.keys() == self._others.keys() and all(now[n] is self._others[n] for n in now)
        return same and not any(
            below + name in masks or not _equal(self._module._parameters[name], value)  # type: ignore[arg-type]
            for name, value in self._values.items()
        )

    def restore(self) -> None:
        """Let the module compute its weights again."""
        held = dict(self._module.__dict__)
        self._module.__dict__.clear()
        for name, value in self._before.items():
            own = value
            if _mutable(value):
                own = held.get(name, value)  # the same object, which the handles of hooks know
                own.clear()
                own.extend(value) if isinstance(own, list) else own.update(value)
            self._module.__dict__[name] = own
        self._module.__class__ = self._kind

    def _tensors(self) -> dict[str, Tensor | None]:
        return {**self._module._parameters, **self._module._buffers}


def _mutable(value: Any) -> bool:
    return isinstance(value, (dict, list, set))


def _computes(hook: Any) -> bool:
    return isinstance(getattr(hook, "fn", hook), (WeightNorm, SpectralNorm, BasePruningMethod))


def _hooks(module: nn.Module) -> list[Any]:
    return [hook for hook in module._forward_pre_hooks.values() if _computes(hook)]


def _name(hook: Any) -> str:
    name: str = hook._tensor_name if isinstance(hook, BasePruningMethod) else hook.name
    return name


def _sources(module: nn.Module) -> list[nn.Parameter]:
    """Return the parameters that a module computes others from."""
    sources = []
    if getattr(module, "parametrizations", None) is not None:
        sources += list(module.parametrizations.parameters())  # type: ignore[union-attr]
    for hook in _hooks(module):
        names = (_name(hook) + end for end in ("_orig", "_g", "_v"))
        sources += [p for name in names if (p := module._parameters.get(name)) is not None]
    return sources


def _shapes(module: nn.Module, names: list[str]) -> dict[str, Tensor]:
    """Return for each computed name the source whose shape and type it has, where it has one's."""
    found: dict[str, Tensor] = {}
    parametrizations: Any = getattr(module, "parametrizations", {})
    for name in names:
        if name in parametrizations:
            own = [p for p in parametrizations[name]._parameters.values() if p is not None]
        else:
            own = [
                p for e in ("_v", "_orig") if (p := module._parameters.get(name + e)) is not None
            ]
        if own:
            found[name] = max(own, key=Tensor.numel)
    return found


def _values(module: nn.Module, names: list[str]) -> dict[str, Tensor]:
    """Return what a module computes, in evaluation mode."""
    found: dict[str, Tensor] = {}
    with torch.no_grad():
        for hook in _hooks(module):
            if isinstance(hook, SpectralNorm):
                value = hook.compute_weight(module, do_power_iteration=False)
            elif isinstance(hook, BasePruningMethod):
                value = hook.apply_mask(module)
            else:
                value = hook.compute_weight(module)
            found[_name(hook)] = value.detach().clone()
        for name in names:
            if name not in found:
                found[name] = getattr(module, name).detach().clone()
    return found


def _fixed(module: nn.Module, names: list[str]) -> bool:
    """Return whether a module computes the same each time, of the shape of a source."""
    shapes = _shapes(module, names)
    if any(tensor.is_meta for tensor in shapes.values()):
        return shapes.keys() == set(names)  # without values no more is known
    once, twice = _values(module, names), _values(module, names)
    return all(
        name in shapes
        and once[name].shape == shapes[name].shape
        and once[name].dtype == shapes[name].dtype
        and torch.equal(once[name], twice[name])
        for name in names
    )


def _equal(first: Tensor, second: Tensor) -> bool:
    return first.is_meta or torch.equal(first, second)
