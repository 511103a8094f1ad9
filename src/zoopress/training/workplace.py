"""Where a model is trained: on a device, in a precision that small steps are not lost in."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from zoopress.models.packing import PackedWeight, packed_weights
from zoopress.models.precision import LOW, computing_in_float32
from zoopress.training.config import TrainingConfig


@contextmanager
def workplace(
    module: nn.Module,
    device: torch.device,
    trained: Iterable[nn.Parameter],
    channels_last: bool = False,
) -> Iterator[None]:
    """Take a module to a device, and bring its new values back into its own tensors.

    Objects stay what they are, so whatever is tied, in parameters or in packed weights, still is.

    Args:
        module: what is trained there.
        device: where.
        trained: its parameters that are trained. If one is a 16-bit float, all are float32 there:
            a step is often below half of what bfloat16 resolves, and rounding would lose it.
        channels_last: whether weights of four axes are laid out so there, which torch's kernels
            pass on to what they put out.
    """
    in_float32 = any(parameter.dtype in LOW for parameter in trained)
    packed = packed_weights(module).values()
    inside = {id(buffer) for weight in packed for buffer in weight.buffers()}
    homes: list[tuple[Tensor, Tensor]] = []
    types: list[tuple[PackedWeight, torch.dtype]] = []
    with computing_in_float32(module) if in_float32 else nullcontext():
        try:
            for tensor in (*module.parameters(), *module.buffers()):
                low = in_float32 and tensor.dtype in LOW and id(tensor) not in inside
                turned = channels_last and tensor.ndim == 4 and id(tensor) not in inside
                if low or turned or tensor.device != device:
                    homes.append((tensor, tensor.data))
                    form = torch.channels_last if turned else torch.preserve_format
                    dtype = torch.float32 if low else tensor.dtype
                    tensor.data = tensor.data.to(device, dtype, memory_format=form)
            for weight in packed:
                if in_float32 and weight.dtype in LOW:
                    types.append((weight, weight.dtype))
                    weight.dtype = torch.float32
            yield
        finally:
            for weight, dtype in types:
                weight.dtype = dtype
            for tensor, home in homes:
                home.copy_(tensor.data)
                tensor.data = home


@contextmanager
def as_trained(module: nn.Module) -> Iterator[None]:
    """Leave a module in evaluation mode, without gradients, its `requires_grad` as it was.

    Inside, attention has no faster path in evaluation mode: that reads the weights of inner layers
    and passes by what has been put in their place, such as low-rank updates.
    """
    flags = [(parameter, parameter.requires_grad) for parameter in module.parameters()]
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
        module.eval()
        for parameter, flag in flags:
            parameter.requires_grad_(flag)
            parameter.grad = None


@contextmanager
def deterministic(device: torch.device) -> Iterator[None]:
    """Choose algorithms of a GPU that give equal bits in equal runs, where there are any."""
    if device.type != "cuda":
        yield
        return
    before = torch.are_deterministic_algorithms_enabled()
    only_warns = torch.is_deterministic_algorithms_warn_only_enabled()
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS asks for it
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before, warn_only=only_warns)


def precision(config: TrainingConfig, device: torch.device) -> AbstractContextManager[object]:
    """Return the context of forward passes, entered anew for each."""
    wanted = config.precision == "bfloat16"
    if config.precision == "auto":
        wanted = device.type == "cuda" and torch.cuda.is_bf16_supported()
    return torch.autocast(device.type, torch.bfloat16) if wanted else nullcontext()


def to_device(value: Any, device: torch.device) -> Any:
    """Return a tensor, or all that a dict, tuple or list holds, on a device."""
    if hasattr(value, "to"):
        return value.to(device)
    if isinstance(value, Mapping):
        return {key: to_device(item, device) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        items = [to_device(item, device) for item in value]
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    return value
