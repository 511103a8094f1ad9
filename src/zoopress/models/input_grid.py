"""The grid that a layer's input is rounded to: integers, a scale and a zero point.

It is a child module `input_grid` of the layer, which a hook calls before the layer's forward pass;
so any layer can have one, whatever its weights are in, and so it is copied, pickled and moved with
its layer. Its codes are those of QuantizeLinear: round half to even of x ÷ scale, plus the zero
point, clipped to what the bits can hold.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn.utils.rnn import PackedSequence

from zoopress.models.stand_in_classes import former, own_class

Per = Literal["tensor", "token", "channel"]
"""What has a scale of its own: the whole input, each row of its last axis, or each channel."""

INPUT_GRID = "input_grid"
"""What the child module of a layer is called."""

_CONV_AXES: tuple[tuple[tuple[type[nn.Module], ...], int], ...] = (
    ((nn.Conv1d, nn.ConvTranspose1d), -2),
    ((nn.Conv2d, nn.ConvTranspose2d), -3),
    ((nn.Conv3d, nn.ConvTranspose3d), -4),
)
_LAST = (nn.Linear, nn.RNNBase, nn.RNNCellBase)
_SIZES = ("in_features", "in_channels", "input_size", "nx")


class InputGrid(nn.Module):
    """Rounds a tensor to integers times a scale.

    Buffers:
        scale: float32, 0-d or [channels]; only if it is not dynamic.
        zero_point: the code of zero, of the codes' type and the shape of `scale`; the same.

    Attributes:
        bits: of a code, 1 to 8; a symmetric one of 1 bit is a sign, −1 or 1.
        symmetric: whether codes have a sign (int8) and zero is 0; else they are uint8.
        per: what has a scale of its own.
        dynamic: whether the range is taken of each call's input, or stored.
        axis: of the channels, counted from the last.
        channels: how many there are; None if `per` is not "channel".
    """

    scale: Tensor | None
    zero_point: Tensor | None

    def __init__(
        self,
        bits: int,
        symmetric: bool,
        per: Per,
        dynamic: bool,
        axis: int = -1,
        channels: int | None = None,
    ) -> None:
        super().__init__()
        if type(bits) is not int or not 1 <= bits <= 8:
            raise ValueError(f"bits must be 1 to 8, not {bits!r}")
        for name, flag in (("symmetric", symmetric), ("dynamic", dynamic)):
            if type(flag) is not bool:
                raise ValueError(f"{name} must be true or false, not {flag!r}")
        if per not in get_args(Per):
            raise ValueError(f"per must be one of {list(get_args(Per))}, not {per!r}")
        if per == "token" and not dynamic:
            raise ValueError("per 'token' needs dynamic ranges: no token is known beforehand")
        if per == "token" and axis != -1:
            raise ValueError(
                "per 'token' rounds rows of the last axis, which in a convolution are no tokens; "
                "use 'tensor' or 'channel'"
            )
        if bits == 1 and symmetric and dynamic:
            raise ValueError("signs need a stored scale, since no range of a call tells it")
        self.bits, self.symmetric, self.per, self.dynamic = bits, symmetric, per, dynamic
        self.axis, self.channels = axis, channels
        shape: tuple[int, ...] = ()
        if per == "channel":
            if channels is None:
                raise ValueError("per 'channel' needs a layer that tells how many inputs it takes")
            shape = (channels,)
        self.register_buffer("scale", None if dynamic else torch.empty(shape))
        zero = None if dynamic else torch.empty(shape, dtype=self.dtype)
        self.register_buffer("zero_point", zero)

    @property
    def dtype(self) -> torch.dtype:
        """The type of the codes."""
        return torch.int8 if self.symmetric else torch.uint8

    @property
    def is_sign(self) -> bool:
        """Whether codes are signs: 1 from zero on, −1 below."""
        return self.bits == 1 and self.symmetric

    @property
    def limits(self) -> tuple[int, int]:
        """The lowest and the highest code."""
        half = 1 << (self.bits - 1)
        if self.is_sign:
            return -1, 1
        return (-half, half - 1) if self.symmetric else (0, 2 * half - 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return x on the grid, of its type and shape; NaN stays NaN, infinity becomes the end.

        Gradients go straight through where x lies within the grid's range, and nowhere else.
        """
        if not x.is_floating_point() or not x.numel():
            return x
        with torch.no_grad():
            given = x.detach()
            levels, scale, zero = self._levels(given)
            rounded = levels.sub_(zero).mul_(scale).to(x.dtype)
        if not _wants_derivative(x):
            return rounded
        low, high = self.limits
        ends = ((low - 0.5 - zero) * scale, (high + 0.5 - zero) * scale)
        inside = torch.where((given >= ends[0]) & (given <= ends[1]), x, 0.0)
        # Of the value exactly `rounded`, since what is added is 0.
        return rounded + (inside - inside.detach())

    def codes(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the integers of x, and what makes numbers of them: (codes − zero point) · scale.

        Args:
            x: float, any shape.

        Returns:
            codes: as x, int8 or uint8; NaN has the code of zero.
            scale: float32 (float64 for such x), broadcasts to x.
            zero_point: of the codes' type, broadcasts to x.
        """
        with torch.no_grad():
            levels, scale, zero = self._levels(x.detach())
            levels = torch.where(levels.isnan(), zero.to(levels.dtype), levels)
            return levels.to(self.dtype), scale, zero.to(self.dtype)

    def range(self, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        """Return scale and zero point with which the grid spans ranges, zero included.

        Args:
            low: smallest numbers, any shape; float.
            high: largest numbers, of the same shape.

        Returns:
            scale: as `low`; 1 where the range is empty or too small for a scale.
            zero_point: as `low`, of the type of `low`, a whole number.
        """
        low, high = low.clamp(max=0), high.clamp(min=0)
        first, last = self.limits
        most = torch.finfo(low.dtype).max
        if self.symmetric:
            scale = torch.maximum(high, -low) / last
            zero = torch.zeros_like(scale)
        else:
            scale = (high - low).clamp(max=most) / last
            zero = first - low / torch.where(scale > 0, scale, 1.0)
        # Below it, x ÷ scale would overflow or scales be subnormal, which some CPUs make zero.
        usable = scale >= torch.finfo(torch.float32).tiny
        scale = torch.where(usable, scale, 1.0)
        return scale, torch.where(usable, zero, zero.new_zeros(())).round().clamp(first, last)

    def check(self) -> None:
        """Refuse scales and zero points that no grid has.

        Raises:
            ValueError: saying what is wrong.
        """
        if self.scale is None or self.zero_point is None or self.scale.is_meta:
            return
        if not bool((self.scale.isfinite() & (self.scale > 0)).all()):
            raise ValueError("a scale is not a positive number")
        low, high = self.limits
        zero = self.zero_point.to(torch.int16)
        if bool((zero < low).any() or (zero > high).any()):
            raise ValueError(f"a zero point is none of the codes {low} to {high}")
        if self.symmetric and bool(zero.any()):
            raise ValueError("a symmetric grid has a zero point other than 0")

    def extra_repr(self) -> str:
        """Return what `repr` says of it."""
        how = "dynamic" if self.dynamic else "static"
        return f"bits={self.bits}, symmetric={self.symmetric}, per={self.per}, {how}"

    def _levels(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return codes as new floats, NaN among them, with scale and zero point as floats."""
        values = x.to(torch.promote_types(x.dtype, torch.float32))
        scale, zero = self._of_call(values) if self.dynamic else self._stored(values)
        if self.is_sign:
            signs = torch.where(values >= 0, 1.0, -1.0).to(values.dtype)
            return torch.where(values.isnan(), values, signs), scale, zero
        levels = (values / scale).round_().add_(zero).clamp_(*self.limits)
        return levels, scale, zero

    def _stored(self, values: Tensor) -> tuple[Tensor, Tensor]:
        assert self.scale is not None
        assert self.zero_point is not None
        scale, zero = self.scale.to(values.dtype), self.zero_point.to(values.dtype)
        if self.per == "channel":
            shape = (-1, *(1,) * (-1 - self.axis))
            scale, zero = scale.view(shape), zero.view(shape)
        return scale, zero

    def _of_call(self, values: Tensor) -> tuple[Tensor, Tensor]:
        # A NaN or an infinity in one sample must not take the others' range from them.
        finite = torch.where(values.isfinite(), values, 0.0)
        if self.per == "tensor":
            low, high = finite.amin(), finite.amax()
        else:
            axis = -1 if self.per == "token" else self.axis
            kept = axis % values.ndim
            over = [kept] if self.per == "token" else [i for i in range(values.ndim) if i != kept]
            low, high = finite.amin(over, keepdim=True), finite.amax(over, keepdim=True)
            if self.per == "channel":  # broadcasts to inputs with a batch and without
                shape = (-1, *(1,) * (-1 - self.axis))
                low, high = low.reshape(shape), high.reshape(shape)
        return self.range(low, high)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        """Move the buffers; a cast leaves them as they are, as it does those of packed weights."""

        def moved(tensor: Tensor) -> Tensor:
            new = fn(tensor)
            return new if new.dtype == tensor.dtype else tensor.to(new.device)

        return super()._apply(moved, recurse)  # type: ignore[no-untyped-call]


def input_grid(module: nn.Module) -> InputGrid | None:
    """Return the grid that a layer's input is rounded to, None if it is not."""
    found = module._modules.get(INPUT_GRID)
    return found if isinstance(found, InputGrid) else None


def input_grids(root: nn.Module) -> dict[str, InputGrid]:
    """Return the input grids below `root` by the path of the layer."""
    pairs = ((path, input_grid(module)) for path, module in root.named_modules())
    return {path: grid for path, grid in pairs if grid is not None}


def no_input_grid(module: nn.Module) -> str | None:
    """Say why a layer's input cannot be rounded to a grid, None if it can."""
    kind = own_class(module)
    if issubclass(kind, nn.modules.linear.NonDynamicallyQuantizableLinear):
        return "attention takes its weight and never calls it"
    if input_grid(module) is not None:
        return "its input is rounded to a grid already"
    if INPUT_GRID in module._modules or hasattr(module, INPUT_GRID):
        return f"it has something of its own that is called {INPUT_GRID!r}"
    if input_axis(module) is None:
        return f"{kind.__name__} is no linear, convolutional or recurrent layer"
    return None


def make_input_grid(
    module: nn.Module,
    bits: int = 8,
    symmetric: bool = False,
    per: Per = "tensor",
    dynamic: bool = False,
) -> InputGrid:
    """Return a grid for a layer's input, without values.

    Raises:
        ValueError: if the layer can have none, or none like this.
    """
    reason = no_input_grid(module)
    axis = input_axis(module)
    if reason or axis is None:
        raise ValueError(reason)
    channels = input_channels(module) if per == "channel" else None
    return InputGrid(bits, symmetric, per, dynamic, axis, channels)


def hold_input_grid(module: nn.Module, grid: nn.Module) -> Callable[[], None]:
    """Let a layer round its first input to a grid.

    Args:
        module: the layer.
        grid: an `InputGrid`, or what stands for one while it is trained.

    Returns:
        A function that takes it back.
    """
    module._modules[INPUT_GRID] = grid
    handle = module.register_forward_pre_hook(_round_input, with_kwargs=True)

    def undo() -> None:
        handle.remove()
        module._modules.pop(INPUT_GRID, None)

    return undo


def first_input(
    module: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]
) -> Tensor | None:
    """Return the tensor that a grid would round, of what a layer is called with."""
    value = arguments[0] if arguments else named.get(_first_parameter(type(module)))
    if isinstance(value, PackedSequence):
        value = value.data
    return value if isinstance(value, Tensor) else None


def _round_input(
    module: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Round a layer's first input, by position or by name."""
    return change_input(module, INPUT_GRID, arguments, named)


def change_input(
    module: nn.Module, child: str, arguments: tuple[Any, ...], named: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return what a layer is called with, its first input given to its child module of a name."""
    change = module._modules[child]
    assert change is not None
    if arguments:
        return (_changed(change, arguments[0]), *arguments[1:]), named
    name = _first_parameter(type(module))
    if name in named:
        named = {**named, name: _changed(change, named[name])}
    return arguments, named


def _changed(change: nn.Module, value: Any) -> Any:
    if isinstance(value, PackedSequence):
        return value._replace(data=change(value.data))
    return change(value) if isinstance(value, Tensor) else value


def _first_parameter(kind: type[nn.Module]) -> str:
    names = list(inspect.signature(kind.forward).parameters)
    return names[1] if len(names) > 1 else ""


def input_channels(module: nn.Module) -> int | None:
    """Return how many channels a layer takes, None if it does not tell."""
    return next((getattr(module, name) for name in _SIZES if hasattr(module, name)), None)


def input_axis(module: nn.Module) -> int | None:
    """Return the axis of a layer's input channels, counted from the last, None if it has none."""
    was = former(module)
    for kind in (own_class(module), *([was.kind] if was else [])):
        for convolutions, axis in _CONV_AXES:
            if issubclass(kind, convolutions):
                return axis
        # GPT-2's linear layer is known by its name, as among the kinds of weights.
        if issubclass(kind, _LAST) or any(base.__name__ == "Conv1D" for base in kind.__mro__):
            return -1
    return None


def _wants_derivative(x: Tensor) -> bool:
    if torch.compiler.is_compiling():  # which cannot look into what follows
        return torch.is_grad_enabled() and x.requires_grad
    if torch._C._functorch.is_functorch_wrapped_tensor(x):
        return True
    if forward_ad.unpack_dual(x).tangent is not None:
        return True
    return torch.is_grad_enabled() and x.requires_grad
