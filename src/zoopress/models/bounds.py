"""Bounds on what building a module may ask for, since its sizes may come from a stranger."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as registration
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from zoopress.errors import SourceError
from zoopress.models.dispatch import without_compiler


def memory_bytes() -> int:
    """Return the memory that this process may use at most, as far as the system tells."""
    bounds = [1 << 62]
    with suppress(AttributeError, ValueError, OSError):  # not on every platform
        bounds.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    with suppress(OSError, ValueError):  # no container, or one without a bound
        bounds.append(int(Path("/sys/fs/cgroup/memory.max").read_text(encoding="ascii")))
    return min(bounds)


@contextmanager
def bounded_build(most_parts: int, keep_parameters: bool = True) -> Iterator[None]:
    """Stop a module's constructor that makes too many parts or fills more than all memory.

    Args:
        most_parts: modules, parameters and buffers, all together.
        keep_parameters: whether parameters keep their memory; else those of torch's own layers
            never have any, and each other moves to the meta device as soon as a module has it.

    Raises:
        SourceError: from within the constructor.
    """
    thread, parts = threading.get_ident(), 0

    def count(*_: Any) -> None:
        nonlocal parts
        if threading.get_ident() != thread:  # the hooks see every thread's modules
            return
        parts += 1
        if parts > most_parts:
            raise SourceError(
                f"its architecture has more than {most_parts:,} modules and tensors, far more "
                "than its files can hold"
            )

    def free(_: nn.Module, name: str, parameter: nn.Parameter) -> Any:
        # One that is there already is tied, and must stay the same.
        plain = type(parameter) is nn.Parameter and not parameter.is_meta
        if threading.get_ident() != thread or not plain:
            return None
        return nn.Parameter(parameter.detach().to("meta"), parameter.requires_grad)

    with ExitStack() as stack:
        if not keep_parameters:
            stack.callback(registration.register_module_parameter_registration_hook(free).remove)
            stack.enter_context(_LayersWithoutMemory())
        for register in (
            registration.register_module_module_registration_hook,
            registration.register_module_parameter_registration_hook,
            registration.register_module_buffer_registration_hook,
        ):
            stack.callback(register(count).remove)
        stack.enter_context(_BoundedMemory(memory_bytes()))
        yield


class _LayersWithoutMemory(TorchFunctionMode):
    """Lets torch's own layers make their weights on the meta device; other code is left alone."""

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        given = dict(kwargs or {})
        if func is torch.empty and given.get("device") is None:
            caller = sys._getframe(1).f_globals.get("__name__", "")
            if str(caller).startswith("torch.nn.modules."):
                given["device"] = torch.device("meta")
        return func(*args, **given)


@without_compiler
class _BoundedMemory(TorchDispatchMode):
    """Refuses to make tensors, off the meta device, of more bytes in sum than the bound."""

    def __init__(self, most_bytes: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._most = most_bytes
        self._made = 0

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        given = dict(kwargs or {})
        makes = any(argument.name == "device" for argument in func._schema.arguments)
        if makes and not _is_meta(given.get("device"), args):
            made = None
            with suppress(RuntimeError, NotImplementedError):  # of sparse tensors' own values
                made = func(*args, **{**given, "device": torch.device("meta"), "pin_memory": None})
            if isinstance(made, Tensor):
                self._made += made.numel() * made.itemsize
            if self._made > self._most:
                raise SourceError(
                    f"building its architecture would take {self._made / 1e9:.1f} GB, more than "
                    f"this machine's {self._most / 1e9:.1f} GB of memory; it was not allocated"
                )
        return func(*args, **given)


def _is_meta(device: Any, args: Sequence[Any]) -> bool:
    if device is not None:
        return torch.device(device).type == "meta"
    return bool(args) and isinstance(args[0], Tensor) and args[0].is_meta
