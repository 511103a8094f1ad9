"""Structure edits: what a technique did to an architecture, as data that can be replayed.

The same function, `apply_edit`, changes a live model while a technique works and rebuilds the
architecture on the meta device while an artifact is loaded. An edit can only shrink a module or a
list of them, put a registered layer in its place, put a registered packed weight in a parameter's
place, make a weight that the module computes an ordinary one, convert the float types that enter
and leave a module, or round what enters a layer; it never names code, and all sizes follow from the
module it changes. So a hostile list of edits can neither run anything nor ask for more memory than
the base architecture.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from zoopress.models.edit_records import (
    AnyEdit as AnyEdit,
    Argument as Argument,
    Convert as Convert,
    Edit as Edit,
    Fold as Fold,
    Keep as Keep,
    Pack as Pack,
    QuantizeInput as QuantizeInput,
    Replace as Replace,
    Resize as Resize,
    ScaleInput as ScaleInput,
    layers_of as layers_of,
)
from zoopress.models.folding import fold
from zoopress.models.input_grid import hold_input_grid, make_input_grid
from zoopress.models.input_scale import hold_input_scale, make_input_scale
from zoopress.models.packing import PackedWeight, hold_packed
from zoopress.models.precision import convert_at_borders
from zoopress.models.stacks import keep_blocks
from zoopress.models.stand_in import stand_in
from zoopress.models.type_and_device import keep_type_known
from zoopress.models.weights import LAST_IS_INPUT, kind_of, row_count

PACKED_DTYPES = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64)
}


class ReplacementLayer(Protocol):
    """What a registered layer offers: building itself in the place of a module.

    It is put into the module's own object, see `stand_in.py`. Where code may read a tensor of the
    module's, such as `weight` or `bias`, or a size, such as `out_features`, give the layer a
    property of that name; a tensor has the shape that the module's had. Reports compare `weight`
    with the module's.
    """

    @classmethod
    def from_module(cls, module: nn.Module, **arguments: Any) -> nn.Module:
        """Return the layer, with uninitialized tensors on torch's default device.

        Raises:
            ValueError: if the module is of the wrong class or an argument is out of range.
        """


def submodule(root: nn.Module, path: str) -> nn.Module:
    """Return the module at a dotted path, looking at registered children only.

    Raises:
        ValueError: if there is none.
    """
    module = root
    for part in path.split(".") if path else []:
        child = module._modules.get(part)
        if child is None:
            raise ValueError(f"the architecture has no module {path!r} (nothing called {part!r})")
        module = child
    return module


def place_now(path: str, edits: Iterable[AnyEdit]) -> tuple[str | None, bool]:
    """Follow a module through edits.

    Returns:
        Its path now, None if it was removed with its block, and whether a registered layer took its
        place.
    """
    replaced = False
    for edit in edits:
        if isinstance(edit, Replace):
            replaced = replaced or edit.module == path
        elif isinstance(edit, Keep) and path.startswith(f"{edit.module}." if edit.module else ""):
            start = len(edit.module) + 1 if edit.module else 0
            block, dot, rest = path[start:].partition(".")
            if block.isdigit():  # blocks that stay are numbered anew
                if int(block) not in edit.indices:
                    return None, replaced
                path = f"{path[:start]}{edit.indices.index(int(block))}{dot}{rest}"
    return path, replaced


def apply_edit(root: nn.Module, edit: AnyEdit, layers: Mapping[str, type]) -> None:
    """Change the structure of `root` in place; tensors that the edit makes are left to be filled.

    Args:
        root: the model, on any device.
        edit: what to do.
        layers: registered layers and packed weights by name.

    Raises:
        ValueError: if the edit does not fit the model.
    """
    module = submodule(root, edit.module)
    if isinstance(edit, Resize):
        _resize(module, edit)
    elif isinstance(edit, Fold):
        fold(module, edit.attributes)
    elif isinstance(edit, Keep):
        parts = edit.module.split(".") if edit.module else []
        owners = [submodule(root, ".".join(parts[:depth])) for depth in range(len(parts))]
        keep_blocks(owners, module, edit.module, edit.indices)
    elif isinstance(edit, Replace):
        layer: Any = _registered(layers, edit.layer, nn.Module)
        if not hasattr(layer, "from_module"):
            raise ValueError(f"{edit.layer!r} is a packed weight, which cannot replace a module")
        if not edit.module:
            raise ValueError("the root module cannot be replaced")
        stand_in(module, layer.from_module(module, **edit.arguments))
    elif isinstance(edit, Convert):
        convert_at_borders(module, getattr(torch, edit.outside))
    elif isinstance(edit, QuantizeInput):
        arguments: dict[str, Any] = edit.arguments
        hold_input_grid(module, make_input_grid(module, **arguments))
    elif isinstance(edit, ScaleInput):
        hold_input_scale(module, make_input_scale(module))
    else:
        packing: Any = _registered(layers, edit.packing, PackedWeight)
        parameter = module._parameters.get(edit.attribute)
        if parameter is None:
            raise ValueError(f"module {edit.module!r} has no parameter {edit.attribute!r}")
        _, axis = kind_of(module, edit.attribute, parameter.ndim)
        shape = parameter.shape
        if edit.folded and parameter.numel():
            shape, axis = torch.Size((row_count(shape, LAST_IS_INPUT), shape[-1])), 0
        axis = max(axis, 0)
        if edit.dtype is not None and edit.dtype not in PACKED_DTYPES:
            raise ValueError(f"dtype must be one of {list(PACKED_DTYPES)}, not {edit.dtype!r}")
        dtype = PACKED_DTYPES[edit.dtype] if edit.dtype else parameter.dtype
        packed = packing(shape, dtype, axis, **edit.arguments)
        hold_packed(module, edit.attribute, packed)
        keep_type_known(root, edit.module)


def _registered(layers: Mapping[str, type], name: str, base: type) -> type:
    layer = layers.get(name)
    if layer is None or not issubclass(layer, base):
        kind = "packed weight" if base is PackedWeight else "layer"
        raise ValueError(
            f"{kind} {name!r} is not registered here; install the plugin that provides it. "
            f"Registered: {', '.join(sorted(layers)) or 'none'}"
        )
    return layer


def _resize(module: nn.Module, edit: Resize) -> None:
    if isinstance(module, PackedWeight):
        raise ValueError(f"{edit.module!r} is a packed weight, whose buffers have fixed sizes")
    for name, shape in edit.shapes.items():
        old = tensor_of(module, name)
        fits = len(shape) == old.ndim and all(
            0 < new <= size for new, size in zip(shape, old.shape, strict=True)
        )
        if not fits:
            raise ValueError(
                f"{edit.module}.{name}: cannot resize {tuple(old.shape)} to {tuple(shape)}; "
                "a resize keeps the number of axes and makes none larger"
            )
        # An untouched tensor of a live model is replaced right after by its selected part.
        set_tensor(module, name, torch.empty(shape, dtype=old.dtype, device=old.device))
    for name, value in edit.attributes.items():
        current = module.__dict__.get(name)
        if type(current) is not int or not 0 < value <= current:
            raise ValueError(f"{edit.module}.{name}: cannot change {current!r} to {value!r}")
        setattr(module, name, value)


def tensor_of(module: nn.Module, name: str) -> Tensor:
    """Return a module's own parameter or buffer.

    Raises:
        ValueError: if there is none of that name.
    """
    tensor: Tensor | None = module._parameters.get(name)
    if tensor is None:
        tensor = module._buffers.get(name)
    if tensor is None:
        raise ValueError(f"{type(module).__name__} has no tensor {name!r}")
    return tensor


def set_tensor(module: nn.Module, name: str, tensor: Tensor) -> None:
    """Put a tensor in the place of a module's own parameter or buffer.

    Raises:
        ValueError: if there is none of that name.
    """
    old = tensor_of(module, name)
    if name in module._parameters:
        if not isinstance(tensor, nn.Parameter):
            tensor = nn.Parameter(tensor, requires_grad=old.requires_grad)
        # Not into _parameters: recurrent modules keep a second list in step through setattr.
        setattr(module, name, tensor)
    else:
        module._buffers[name] = tensor
