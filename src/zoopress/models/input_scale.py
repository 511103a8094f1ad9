"""Factors that the channels of a layer's input are multiplied by, before it is rounded.

It is a child module `input_scale` of the layer, called by a hook ahead of an `InputGrid`'s. With
its weights divided by as much the layer computes what it did, from channels that are alike
and so easier to round; for where no layer before can be scaled instead.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from zoopress.models.input_grid import (
    INPUT_GRID,
    InputGrid,
    change_input,
    input_axis,
    input_channels,
    input_grid,
)
from zoopress.models.stand_in_classes import own_class

INPUT_SCALE = "input_scale"
"""What the child module of a layer is called."""

ON_INPUT = (INPUT_SCALE, INPUT_GRID)
"""What a layer may have that changes its input, in the order in which it does."""


class InputScale(nn.Module):
    """Multiplies each channel of a tensor by a factor.

    Buffers:
        factor: [channels], float32, positive.

    Attributes:
        axis: of the channels, counted from the last.
    """

    factor: Tensor

    def __init__(self, channels: int, axis: int = -1) -> None:
        super().__init__()
        self.axis = axis
        self.register_buffer("factor", torch.empty(channels))

    def forward(self, x: Tensor) -> Tensor:
        """Return x, of its type and shape, with its channels multiplied."""
        if not x.is_floating_point():
            return x
        return x * self.factor.to(x.dtype).view(-1, *(1,) * (-1 - self.axis))

    def check(self) -> None:
        """Refuse factors that change a channel's sign, or take it away.

        Raises:
            ValueError: saying what is wrong.
        """
        factor = self.factor
        if not factor.is_meta and not bool((factor.isfinite() & (factor > 0)).all()):
            raise ValueError("a factor is not a positive number")

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        """Move the factors; a cast leaves them as they are, as it does a grid's."""

        def moved(tensor: Tensor) -> Tensor:
            new = fn(tensor)
            return new if new.dtype == tensor.dtype else tensor.to(new.device)

        return super()._apply(moved, recurse)  # type: ignore[no-untyped-call]


def input_scale(module: nn.Module) -> InputScale | None:
    """Return what multiplies a layer's input, None if nothing does."""
    found = module._modules.get(INPUT_SCALE)
    return found if isinstance(found, InputScale) else None


def input_changes(root: nn.Module) -> dict[str, InputGrid | InputScale]:
    """Return all grids and scales of inputs below `root` by their full names."""
    named = root.named_modules()
    return {name: part for name, part in named if isinstance(part, (InputGrid, InputScale))}


def no_input_scale(module: nn.Module) -> str | None:
    """Say why the channels of a layer's input cannot be scaled in front of it, None if they can."""
    kind = own_class(module)
    if issubclass(kind, nn.modules.linear.NonDynamicallyQuantizableLinear):
        return "attention takes its weight and never calls it"
    if input_grid(module) is not None:
        return "its input is rounded to a grid already"
    if INPUT_SCALE in module._modules:
        return "its input is scaled already"
    if hasattr(module, INPUT_SCALE):
        return f"it has something of its own that is called {INPUT_SCALE!r}"
    if input_axis(module) is None or input_channels(module) is None:
        return f"{kind.__name__} is no linear, convolutional or recurrent layer"
    return None


def make_input_scale(module: nn.Module) -> InputScale:
    """Return a scale for a layer's input, without values.

    Raises:
        ValueError: if the layer can have none.
    """
    axis, channels, reason = input_axis(module), input_channels(module), no_input_scale(module)
    if reason or axis is None or channels is None:
        raise ValueError(reason)
    return InputScale(channels, axis)


def hold_input_scale(module: nn.Module, scale: InputScale) -> Callable[[], None]:
    """Let a layer scale its first input before all else.

    Returns:
        A function that takes it back.
    """
    module._modules[INPUT_SCALE] = scale
    handle = module.register_forward_pre_hook(_scale_input, with_kwargs=True, prepend=True)

    def undo() -> None:
        handle.remove()
        module._modules.pop(INPUT_SCALE, None)

    return undo


def drop_input_scale(part: nn.Module) -> None:
    """Take what multiplies a layer's input from it."""
    for key in [key for key, each in part._forward_pre_hooks.items() if each is _scale_input]:
        del part._forward_pre_hooks[key]
        part._forward_pre_hooks_with_kwargs.pop(key, None)
    part._modules.pop(INPUT_SCALE, None)


def _scale_input(
    module: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Scale a layer's first input, by position or by name."""
    return change_input(module, INPUT_SCALE, arguments, named)
