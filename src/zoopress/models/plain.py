"""What a model must be so that it can be changed, saved and built again; what is not, is refused.

A model is rebuilt by its own code and filled with stored tensors. So each of its modules must be
Python that can be taken apart, all that it learned must be in its state dict, and each tensor there
must have a shape and numbers in a row.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from zoopress.errors import SourceError

_DEPTH = 4
_MOST = 10_000
"""Of longer lists, such as a vocabulary, only the first items are looked at."""
_OWN = frozenset(vars(nn.Module()))
_QUANTIZED = ("torch.ao.nn.quantized", "torch.ao.nn.intrinsic.quantized", "torch.nn.quantized")


def without_compiler_wrappers(module: nn.Module) -> nn.Module:
    """Return a module with what `torch.compile` has wrapped taken out of it, in place.

    The compiler is for running: it hides modules behind ones that cannot be changed, and what it
    has compiled does not see their changes.
    """
    module = _unwrapped(module)
    for owner in list(module.modules()):
        for name, child in owner._modules.items():
            if child is not None:
                owner._modules[name] = _unwrapped(child)
        if getattr(owner, "_compiled_call_impl", None) is not None:
            owner._compiled_call_impl = None
    return module


def check_plain(module: nn.Module) -> None:
    """Refuse a model that could not be changed, saved or built again.

    Raises:
        SourceError: naming the module or the tensor, and what to do instead.
    """
    for path, part in module.named_modules():
        if reason := _why_no_module(part):
            raise SourceError(f"{_shown(path, part)} {reason}")
        for name, tensor in (*part._parameters.items(), *part._buffers.items()):
            if tensor is not None and (reason := _why_no_tensor(tensor)):
                raise SourceError(f"The tensor {f'{path}.{name}'.lstrip('.')!r} {reason}")
    _check_registered(module)


def held_by(module: nn.Module) -> Iterator[tuple[str, Any]]:
    """Yield the tensors and modules that a module holds in plain attributes, by where they are.

    Lists, tuples, sets, dicts and objects of plain classes are looked into.
    """
    seen: set[int] = set()

    def walk(where: str, value: Any, depth: int) -> Iterator[tuple[str, Any]]:
        if isinstance(value, (Tensor, nn.Module)):
            yield where, value
            return
        if depth == 0 or id(value) in seen or isinstance(value, (str, bytes, type)):
            return
        seen.add(id(value))
        if isinstance(value, Mapping):
            for key, item in islice(list(value.items()), _MOST):
                yield from walk(f"{where}[{key!r}]", item, depth - 1)
        elif isinstance(value, (list, tuple, set, frozenset)):
            for i, item in enumerate(islice(value, _MOST)):
                yield from walk(f"{where}[{i}]", item, depth - 1)
        elif _is_plain_object(value):
            for name, item in list(vars(value).items()):
                yield from walk(f"{where}.{name}", item, depth - 1)

    for name, value in list(vars(module).items()):
        if name not in _OWN:
            yield from walk(name, value, _DEPTH)


def _is_plain_object(value: Any) -> bool:
    """Tell whether an object may hold tensors: not one of a library's, such as a config."""
    home = type(value).__module__.partition(".")[0]
    return hasattr(value, "__dict__") and not callable(value) and home not in ("torch", "builtins")


def _unwrapped(module: nn.Module) -> nn.Module:
    # By name: importing the compiler takes seconds.
    while type(module).__name__ == "OptimizedModule" and "_orig_mod" in module._modules:
        inner = module._modules["_orig_mod"]
        assert inner is not None
        module = inner
    return module


def _why_no_module(module: nn.Module) -> str | None:
    if isinstance(module, torch.jit.ScriptModule):
        return (
            "is compiled to TorchScript, which cannot be taken apart or changed. Let the factory "
            "return it without torch.jit.script or torch.jit.trace; script what was compressed "
            "afterwards."
        )
    if type(module).__module__.startswith(_QUANTIZED):
        return (
            "is quantized by torch.ao already, and holds its weights in a form that cannot be "
            "changed. Start from the float model."
        )
    return None


def _why_no_tensor(tensor: Tensor) -> str | None:
    if is_lazy(tensor):
        return (
            "has no shape yet: its module is a lazy one, which takes its size from its first "
            "input. Run the model once in the factory, as `model(torch.zeros(…))`, before it "
            "returns it."
        )
    if tensor.is_quantized:
        return "is quantized by torch already. Start from the float model."
    if tensor.is_nested:
        return (
            "is a nested tensor, whose rows differ in length. Keep its rows as parameters or "
            "buffers of their own."
        )
    if tensor.layout != torch.strided:
        layout = str(tensor.layout).removeprefix("torch.")
        return (
            f"is sparse ({layout}), and only dense tensors are stored. Register its indices and "
            "its values as two buffers, or its dense form as one, and make the sparse tensor of "
            "them in forward."
        )
    return None


def _check_registered(module: nn.Module) -> None:
    """Refuse weights that hang in no module, so that no state dict has them."""
    modules = set(module.modules())
    known = {id(tensor) for tensor in (*module.parameters(), *module.buffers())}
    for path, owner in module.named_modules():
        for where, held in held_by(owner):
            if isinstance(held, nn.Module):
                hidden = held not in modules and any(
                    id(parameter) not in known for parameter in held.parameters()
                )
                remedy = "nn.ModuleList, nn.ModuleDict or a plain attribute of their own"
            else:
                hidden = isinstance(held, nn.Parameter) and id(held) not in known
                remedy = "nn.ParameterList, nn.ParameterDict or a plain attribute of their own"
            if hidden:
                full = f"{path}.{where}".lstrip(".")
                raise SourceError(
                    f"{full!r}, of {type(owner).__name__}, has weights that are not registered, so "
                    f"they are in no state dict and would be lost. Hold them in {remedy}, and save "
                    "the state dict anew."
                )


def _shown(path: str, module: nn.Module) -> str:
    kind = getattr(module, "original_name", type(module).__name__)
    return f"The module {path!r} ({kind})" if path else f"The model ({kind})"
