"""Weights that are computed whenever they are read: they can be read, and not be written into.

A packed weight, or the product that a factored layer stands for, is a new tensor at each reading.
What somebody wrote into it would be lost without a word, so it is refused in words.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

import torch
from torch import Tensor, nn

from zoopress.errors import ComputedWeightError

_HARMLESS = frozenset({"detach_", "share_memory_"})
_SETTERS = frozenset({"__set__", "__setitem__", "__delitem__"})


class ComputedWeight(Tensor):
    """A weight as it is read; what would change it in place, or a view of it, is refused.

    Attributes:
        is_attribute: whether this is the tensor that was read, and none that shares its memory.
    """

    is_attribute = False

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Refuse what writes, and do all else as with an ordinary tensor."""
        kwargs = kwargs or {}
        if _writes(func, args, kwargs):
            raise _lost("This weight")
        with torch._C.DisableTorchFunctionSubclass():
            result = func(*args, **kwargs)
            if getattr(func, "__name__", "") in ("numpy", "__array__"):
                result.setflags(write=False)
            return _guarded(result, args)

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Pickle an ordinary tensor: a copy is nobody's weight."""
        return self.as_subclass(Tensor).__reduce_ex__(protocol)

    def __deepcopy__(self, memo: dict[int, Any]) -> Tensor:
        """Copy an ordinary tensor."""
        with torch._C.DisableTorchFunctionSubclass():
            copied: Tensor = self.as_subclass(Tensor).detach().clone()
        memo[id(self)] = copied
        return copied


def readable(weight: Tensor) -> Tensor:
    """Return a computed weight as one that refuses to be written into.

    What looks at single operations, such as a tracer or torch's compiler, gets it as it is.
    """
    watched = (
        type(weight) is not Tensor
        or torch.compiler.is_compiling()
        or torch._C._len_torch_dispatch_stack()
        or torch._C._len_torch_function_stack()
        or torch._C._get_tracing_state() is not None
    )
    if watched:
        return weight
    read = weight.as_subclass(ComputedWeight)
    read.is_attribute = True
    return read


def computed_property(get: Callable[[Any], Any]) -> property:
    """Return a property whose tensors refuse to be written into.

    Args:
        get: computes the tensor, or None, from the module.
    """

    def read(self: nn.Module) -> Any:
        found = get(self)
        return readable(found) if isinstance(found, Tensor) else found

    return property(read)


def guards(kind: type[nn.Module], names: Collection[str]) -> dict[str, Any]:
    """Return methods for a subclass of a module's class that keep computed tensors from being set.

    Args:
        kind: the class.
        names: of the tensors.
    """

    def check(self: nn.Module, name: str, value: Any = None) -> None:
        own = name in self._parameters or name in self._buffers
        if (name in names and not own) or _is_computed(value):
            raise _lost(f"{name!r} of this {type(self).__name__}")

    def set_attribute(self: nn.Module, name: str, value: Any) -> None:
        if name in names:
            check(self, name)
        kind.__setattr__(self, name, value)

    def delete_attribute(self: nn.Module, name: str) -> None:
        check(self, name)
        kind.__delattr__(self, name)

    def register_parameter(self: nn.Module, name: str, param: nn.Parameter | None) -> None:
        check(self, name, param)
        kind.register_parameter(self, name, param)

    return {
        "__setattr__": set_attribute,
        "__delattr__": delete_attribute,
        "register_parameter": register_parameter,
    }


def _lost(what: str) -> ComputedWeightError:
    return ComputedWeightError(
        f"{what} is computed from its compressed form whenever it is read, so what is written into "
        "it would be lost. Call zoopress.unpack(model) first: it makes ordinary weights of all "
        "that are computed, in place. While compressing, leave the layer out with 'exclude'."
    )


def _writes(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    out = kwargs.get("out")
    if any(_is_computed(each) for each in (out if isinstance(out, (tuple, list)) else (out,))):
        return True
    name: str = getattr(func, "__name__", "")
    in_place = name.startswith("__i") and name not in ("__invert__", "__index__", "__int__")
    if not (in_place or (name.endswith("_") and not name.endswith("__")) or name in _SETTERS):
        return False
    attribute = _attribute(func) if name == "__set__" else ""
    if name in _HARMLESS or attribute not in ("", "data", "grad", "requires_grad"):
        return False
    if "requires_grad" in (attribute, name.removesuffix("_")) and not _wanted(args, kwargs):
        return False  # it asks for what is so
    first = args[0] if args else kwargs.get("tensor", kwargs.get("input"))
    return any(
        _is_computed(each) for each in (first if isinstance(first, (list, tuple)) else [first])
    )


def _wanted(args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Tell whether a layer's weight was to have gradients, or to have none any more."""
    if not getattr(args[0], "is_attribute", False):
        return False  # somebody's own, as what nn.Parameter(weight) makes first
    value = args[1] if len(args) > 1 else kwargs.get("requires_grad", True)
    return bool(value) or bool(args[0].requires_grad)


def _attribute(func: Any) -> str:
    return getattr(getattr(func, "__self__", None), "__name__", "")


def _is_computed(value: Any) -> bool:
    # One that was made a parameter of something else has memory of its own, and an owner.
    return isinstance(value, ComputedWeight) and not getattr(value, "_is_param", False)


def _guarded(result: Any, args: tuple[Any, ...]) -> Any:
    """Let what shares memory with a computed weight be one, too."""
    if isinstance(result, (tuple, list)) and any(isinstance(each, Tensor) for each in result):
        guarded = [_guarded(each, args) for each in result]
        return type(result)(guarded) if type(result) in (tuple, list) else result
    if type(result) is not Tensor:
        return result
    alias: Any = torch._C._is_alias_of  # type: ignore[attr-defined]
    shares = any(_is_computed(a) and alias(a, result) for a in args)
    return result.as_subclass(ComputedWeight) if shares else result
