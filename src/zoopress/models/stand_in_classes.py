"""Classes of layers that stand in the place of others.

Such a class has two bases, the layer's class and that of the layer in whose place it stands. It is
made when it is needed, once for each pair, and pickled as what it is made of.
"""

from __future__ import annotations

import copyreg
import inspect
from typing import Any, NamedTuple

from torch import nn

from zoopress.errors import MissingTensorError
from zoopress.models.computed import computed_property, guards

_MACHINERY = tuple(
    name
    for name, value in vars(nn.Module).items()
    if not name.startswith("__") or callable(value)
    if name not in ("__annotate__", "__annotate_func__", "__class_getitem__", "__new__")
)


class Former(NamedTuple):
    """What a layer was before another took its place.

    Attributes:
        kind: its class.
        parameters: names of its parameters, those that are None too.
        buffers: names of its buffers.
        unsaved: names of the buffers that are no part of its state dict.
        children: names of its children.
    """

    kind: type[nn.Module]
    parameters: tuple[str, ...]
    buffers: tuple[str, ...]
    unsaved: tuple[str, ...]
    children: tuple[str, ...]

    @property
    def tensors(self) -> tuple[str, ...]:
        return (*self.parameters, *self.buffers)


def former(module: nn.Module) -> Former | None:
    """Return what a module was, if it stands in the place of another."""
    found: Former | None = getattr(type(module), "_former", None)
    return found


def own_class(module: nn.Module) -> type[nn.Module]:
    """Return a module's class; of one that stands in the place of another, the new layer's."""
    found: type[nn.Module] = getattr(type(module), "_layer_class", type(module))
    return found


class _StandInType(type):
    """The class of classes that are made here: they are pickled as what they are made of."""


_CLASSES: dict[tuple[type, Former], type] = {}
_TYPES: dict[type, type] = {type: _StandInType}


def class_for(layer: type[nn.Module], was: Former) -> type[nn.Module]:
    """Return the class of a layer that stands in the place of another.

    Raises:
        ValueError: if Python cannot make it.
    """
    layer = getattr(layer, "_layer_class", layer)
    key = (layer, was)
    if key in _CLASSES:
        return _CLASSES[key]
    absent = object()
    found = {name: inspect.getattr_static(layer, name, absent) for name in _MACHINERY}
    body: dict[str, Any] = {name: value for name, value in found.items() if value is not absent}
    for name in was.tensors:
        static = inspect.getattr_static(layer, name, None)
        if isinstance(static, property) and static.fget is not None:
            body[name] = computed_property(static.fget)
    body.update(
        **guards(layer, was.tensors),
        _former=was,
        _layer_class=layer,
        __getattr__=_missing_told(body["__getattr__"], was, layer),
        __module__=layer.__module__,
        __qualname__=layer.__qualname__,
        __doc__=layer.__doc__,
    )
    bases = (layer,) if issubclass(layer, was.kind) else (layer, was.kind)
    try:
        made: type[nn.Module] = _type_for(*bases)(layer.__name__, bases, body)
    except TypeError as error:
        raise ValueError(
            f"{layer.__name__} cannot stand in the place of {was.kind.__name__}: {error}"
        ) from error
    _CLASSES[key] = made
    return made


def _missing_told(get: Any, was: Former, layer: type) -> Any:
    """Return a `__getattr__` that says of a tensor that is gone why it is."""

    def find(self: nn.Module, name: str) -> Any:
        try:
            return get(self, name)
        except AttributeError as error:
            if name not in was.tensors:
                raise
            raise MissingTensorError(
                f"{name!r} of a {was.kind.__name__} was read, in whose place compression put a "
                f"{layer.__name__}, which has none. The model, or whoever reads it, uses the "
                "layer's tensor without calling the layer: leave that layer out with 'exclude'."
            ) from error

    return find


def _type_for(*bases: type) -> type:
    """Return the metaclass for a class of these bases, which pickles it."""
    kinds = {type(base) for base in bases} - {type}
    lowest = next((k for k in kinds if all(issubclass(k, other) for other in kinds)), type)
    if lowest not in _TYPES:
        _TYPES[lowest] = type(_StandInType.__name__, (_StandInType, lowest), {})
        copyreg.pickle(_TYPES[lowest], _reduce)
    return _TYPES[lowest]


def _reduce(made: type) -> Any:
    """Pickle a class as what it is made of; of one that was derived from it, only the name."""
    own = vars(made)
    if "_layer_class" not in own:
        return made.__qualname__
    was = own["_former"]
    return _class_again, (own["_layer_class"], *was)


def _class_again(layer: type[nn.Module], *was: Any) -> type[nn.Module]:
    return class_for(layer, Former(*was))


copyreg.pickle(_StandInType, _reduce)
