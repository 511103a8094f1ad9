"""Along which axis of its weight a layer reads, and along which its outputs lie."""

from __future__ import annotations

from torch import Tensor, nn

from zoopress.models.input_grid import input_grid
from zoopress.models.input_scale import drop_input_scale, input_scale
from zoopress.models.stand_in_classes import own_class
from zoopress.models.weights import kind_of


def output_axis(part: nn.Module) -> int:
    """Return the axis of a layer's plain weight along which outputs lie."""
    return kind_of(part, "weight", _weight(part).ndim)[1]


def reading_axis(part: nn.Module) -> int | None:
    """Return the axis of a layer's plain weight along which inputs lie, None if groups share it."""
    weight = _weight(part)
    groups = getattr(part, "groups", 1)
    if groups == 1:
        return 1 - output_axis(part)
    # Of a depthwise convolution each row reads one channel.
    depthwise = weight.shape[0] == groups and weight.shape[1] == 1
    return 0 if depthwise and output_axis(part) == 0 else None


def multiplied(weight: Tensor, axis: int, factor: Tensor) -> Tensor:
    """Return a weight with the places along an axis multiplied by a factor each."""
    shape = [1] * weight.ndim
    shape[axis] = -1
    return weight.detach() * factor.to(weight).view(shape)


def fold_input_scales(root: nn.Module) -> list[str]:
    """Multiply scales of inputs into the weights behind them, in place.

    One that a grid comes after stays: the grid rounds what is scaled.

    Returns:
        Names of the layers whose scales stay though no grid comes after.
    """
    left: list[str] = []
    for path, part in list(root.named_modules()):
        scale = input_scale(part)
        if scale is None or input_grid(part) is not None:
            continue
        weight = part._parameters.get("weight")
        recurrent = issubclass(own_class(part), nn.RNNBase)
        axis = None if weight is None or recurrent else reading_axis(part)
        if weight is None or axis is None:
            left.append(path)
            continue
        # A weight of its own: other layers may share that which it has.
        own = multiplied(weight, axis, scale.factor)
        part.register_parameter("weight", nn.Parameter(own, weight.requires_grad))
        drop_input_scale(part)
    return left


def _weight(part: nn.Module) -> nn.Parameter:
    weight = part._parameters["weight"]
    assert weight is not None
    return weight
