"""Which tensors of a model can be held in 16 bits so that it still runs, found by running it.

Models whose code only calls layers compute in 16 bits throughout. Others make float32 numbers of
their own between the layers (a table of positions, a Fourier transform, a mask of -1e9), and fail
there. In those each layer computes in 16 bits by itself, and all code between in what it was
written for; what still fails keeps its type.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as registration
from torch.overrides import TorchFunctionMode

from zoopress.models.caches import caches_forgotten
from zoopress.models.precision import LOW, accept_float32, convert_at_borders

Run = Callable[[nn.Module], Tensor]
Lower = Callable[[Tensor], Tensor]

_FAR = 0.1
"""Outputs further apart than this, of their norm, are not those of the same numbers rounded."""


@dataclass(frozen=True)
class Lowering:
    """What can be lowered.

    Attributes:
        names: of the tensors.
        layers: paths of the modules that convert floats at their borders, and the type around
            them; none if the whole model computes in 16 bits.
        kept: tensors that keep their type though they were asked for.
        why: what stopped the whole model from computing in 16 bits, in words.
    """

    names: list[str]
    layers: dict[str, torch.dtype] = field(default_factory=dict)
    kept: list[str] = field(default_factory=list)
    why: str = ""


@dataclass(frozen=True)
class _Part:
    """A module that holds tensors of its own.

    Attributes:
        names: of them, or of all below it if nothing below is called by itself.
        is_layer: whether its forward pass calls no other layer, so that it can convert.
    """

    path: str
    module: nn.Module
    names: list[str]
    is_layer: bool


@dataclass
class _Failure:
    """How a run failed.

    Attributes:
        reason: in words.
        modules: where, the innermost last.
        tensors: what the operation that failed was given.
        overflown: where a number first left the range of 16 bits.
    """

    reason: str = ""
    modules: list[nn.Module] = field(default_factory=list)
    tensors: list[Tensor] = field(default_factory=list)
    overflown: list[nn.Module] | None = None


def find_lowering(
    module: nn.Module, tensors: Mapping[str, Tensor], lower: Lower, run: Run
) -> Lowering:
    """Find what of a model can be lowered.

    Args:
        module: the model; left as it was.
        tensors: what to lower, its own parameters and buffers, tied ones under each name.
        lower: returns a tensor in 16 bits.
        run: runs the model on calibration inputs.

    Raises:
        Exception: what `run` raises of the model as it is.
    """
    with caches_forgotten(module):
        reference = run(module)  # if it fails without any of this, that is what is to be told
    whole = _try(module, tensors, tensors, {}, lower, run, reference)
    if whole is None:
        return Lowering(list(tensors))
    parts = _parts(module, tensors)
    low = {
        name: tensors[name]
        for part in parts
        for name in part.names
        # What stands between layers is computed with in the wider type; only weights are worth it.
        if part.is_layer or isinstance(tensors[name], nn.Parameter)
    }
    while low:
        layers = {p.path: _outside(p, tensors) for p in parts if _is_low(p, low)}
        failure = _try(module, tensors, low, layers, lower, run, reference)
        if failure is None:
            known = {id(tensor) for tensor in low.values()}
            names = [name for name, tensor in tensors.items() if id(tensor) in known]
            return Lowering(names, layers, [n for n in tensors if n not in names], whole.reason)
        kept = _to_keep(parts, low, failure)
        if not kept:
            break
        low = {name: tensor for name, tensor in low.items() if name not in kept}
    return Lowering([], {}, list(tensors), whole.reason)


def _parts(module: nn.Module, tensors: Mapping[str, Tensor]) -> list[_Part]:
    parts, inside = [], set[nn.Module]()
    for path, part in module.named_modules():
        if part in inside:
            continue
        closed = isinstance(part, nn.MultiheadAttention) or "parametrizations" in part._modules
        if closed:  # they read the tensors of their children, and do not call them
            inside |= set(part.modules())
        start = f"{path}." if path else ""
        names = [
            start + name
            for name, _ in (
                *part.named_parameters(recurse=closed),
                *part.named_buffers(recurse=closed),
            )
            if start + name in tensors
        ]
        below = (child for child in part.modules() if child is not part)
        calls = any(child._parameters or child._buffers for child in below)
        if names:
            parts.append(_Part(path, part, names, closed or not calls))
    return parts


def _is_low(part: _Part, low: Collection[str]) -> bool:
    return part.is_layer and all(name in low for name in part.names)


def _outside(part: _Part, tensors: Mapping[str, Tensor]) -> torch.dtype:
    return tensors[part.names[0]].dtype


def _try(
    module: nn.Module,
    tensors: Mapping[str, Tensor],
    low: Collection[str],
    layers: Mapping[str, torch.dtype],
    lower: Lower,
    run: Run,
    reference: Tensor,
) -> _Failure | None:
    """Run the model with some tensors lowered; None if that goes well."""
    failure = _Failure()
    with ExitStack() as stack:
        stack.enter_context(caches_forgotten(module))
        stack.enter_context(_lowered([tensors[name] for name in low], lower))
        for path, outside in layers.items():
            stack.callback(convert_at_borders(module.get_submodule(path), outside))
        if not layers:
            stack.callback(accept_float32(module))
        stack.enter_context(_watching(failure))
        try:
            output = run(module)
        except Exception as error:  # whatever the model's code makes of 16 bits
            cause = error.__cause__ or error
            failure.reason = f"{type(cause).__name__}: {cause}"
            return failure
    finite = bool(output.isfinite().all())
    if finite and (failure.overflown is None or _distance(reference, output) < _FAR):
        return None
    if not finite and not bool(reference.isfinite().all()):
        return None  # the model's own way, which the gates tell of
    failure.reason = "a number leaves the range of 16 bits"
    failure.tensors, failure.modules = [], failure.overflown or []
    return failure


def _distance(reference: Tensor, output: Tensor) -> float:
    if reference.shape != output.shape:
        return float("inf")
    return float((reference - output).norm() / reference.norm().clamp_min(1e-30))


@contextmanager
def _lowered(tensors: Collection[Tensor], lower: Lower) -> Iterator[None]:
    homes = {id(tensor): (tensor, tensor.data) for tensor in tensors}
    try:
        for tensor, home in homes.values():
            tensor.data = lower(home)
        yield
    finally:
        for tensor, home in homes.values():
            tensor.data = home


@contextmanager
def _watching(failure: _Failure) -> Iterator[None]:
    """Note where a run fails, and where numbers leave the range of 16 bits."""
    running: list[nn.Module] = []

    def enter(module: nn.Module, arguments: Any) -> None:
        running.append(module)
        failure.modules = list(running)

    def leave(module: nn.Module, arguments: Any, output: Any) -> None:
        while running and running.pop() is not module:
            pass
        failure.modules = list(running)

    handles = (
        registration.register_module_forward_pre_hook(enter),
        registration.register_module_forward_hook(leave),
    )
    try:
        with _Operations(failure):
            yield
    finally:
        for handle in handles:
            handle.remove()


class _Operations(TorchFunctionMode):
    """Notes what the operation that failed last was given, and which one first overflows."""

    def __init__(self, failure: _Failure) -> None:
        super().__init__()
        self._failure = failure

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        given = (*args, *(kwargs or {}).values())
        try:
            result = func(*args, **(kwargs or {}))
        except Exception:
            self._failure.tensors = [value for value in given if isinstance(value, Tensor)]
            raise
        if self._failure.overflown is None and _overflows(result, given):
            self._failure.overflown = list(self._failure.modules)
        return result


def _overflows(result: Any, given: Iterable[Any]) -> bool:
    """Tell whether numbers of 16 bits came out infinite, of what was finite."""
    if not isinstance(result, Tensor) or result.dtype not in LOW:
        return False
    try:
        # Infinity as a number is meant so: it hides places from attention.
        return bool(result.isinf().any()) and not any(map(_is_infinite, given))
    except RuntimeError:  # inside vmap nobody may look at values
        return False


def _is_infinite(value: Any) -> bool:
    if isinstance(value, Tensor):
        return value.is_floating_point() and bool(value.isinf().any())
    return isinstance(value, float) and math.isinf(value)


def _to_keep(parts: Collection[_Part], low: Mapping[str, Tensor], failure: _Failure) -> set[str]:
    """Return the names of the lowered tensors to blame for a failure."""
    blamed = set(map(id, failure.tensors))
    kept = {name for name, tensor in low.items() if id(tensor) in blamed}
    found = [part for part in parts if kept & set(part.names)]
    if not found:
        of = {part.module: part for part in parts if any(name in low for name in part.names)}
        found = [of[module] for module in reversed(failure.modules) if module in of][:1]
        kept = {name for part in found for name in part.names if name in low}
    # Of the same kind all fail alike. Of torch's own, what one is used for need not be another's.
    alike = {
        type(part.module)
        for part in found
        if not type(part.module).__module__.startswith("torch.nn") or "not impl" in failure.reason
    }
    for part in parts:
        if type(part.module) in alike or (part in found and part.is_layer):
            kept.update(name for name in part.names if name in low)
    if not kept:  # what stands between layers
        kept = {n for part in parts if not part.is_layer for n in part.names if n in low}
    known = {id(low[name]) for name in kept}
    return {name for name, tensor in low.items() if id(tensor) in known}
