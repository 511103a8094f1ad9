"""Bias correction: what rounding shifts in a layer's mean output is taken back in its bias.

Source: Nagel et al. 2019, arXiv:1906.04721, section 4.2 (empirical); Banner et al. 2019,
arXiv:1810.05723, section 4.2; Finkelstein et al. 2019, arXiv:1906.03193.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from zoopress.models.input_grid import input_axis
from zoopress.models.model import Model

_SCALED = 0.1
"""A channel whose spread is so far from the original's, relatively, was scaled; rounding changes
it less."""


Moments = tuple[Tensor, Tensor]
"""Mean and standard deviation of each channel, [channels], float64."""


def output_moments(output: Tensor, axis: int) -> Moments:
    """Return mean and standard deviation of each channel of an output, [channels], float64."""
    rows = output.detach().double().movedim(axis, 0)
    rows = rows.reshape(len(rows), -1)
    return rows.mean(1), rows.std(1, correction=0)


def shifts_of(original: Moments, rounded: Moments) -> list[Tensor]:
    """Return by how much the means of channels could move, [channels] each.

    That is to the original's; and, where spreads tell that channels were scaled by a stage before,
    as smoothing and equalization do, to the original's scaled as much.

    Args:
        original: of the original's channels.
        rounded: of the rounded layer's.
    """
    ratio = rounded[1] / original[1]
    scaled = ratio.isfinite() & ((ratio - 1).abs() > _SCALED)
    found = [original[0] - rounded[0]]
    if bool(scaled.any()):
        found.append(original[0] * torch.where(scaled, ratio, 1.0) - rounded[0])
    return found


def squared_distance(original: Sequence[Tensor], other: Sequence[Tensor]) -> float:
    """Return the squared difference of outputs, relative to the original's squares, summed."""
    return sum(
        float((a.double() - b.double()).square().sum() / a.double().square().sum().clamp(min=1e-30))
        for a, b in zip(original, other, strict=True)
    )


def correct_biases(
    model: Model,
    original: nn.Module,
    run: Callable[[nn.Module, Any], object],
    batches: Sequence[Any],
    error: Callable[[], float],
) -> tuple[list[str], dict[str, str]]:
    """Give layers the mean output that they have in the original, in the order in which they run.

    A bias changes only if the model's outputs come closer to the original's: a layer may stand for
    more than the original's of its name does, such as for a normalization behind it.

    Args:
        model: has been rounded.
        original: what it was made of.
        run: runs a module on a batch.
        batches: what to measure means on.
        error: tells how far the model's outputs are from the original's.

    Returns:
        The names of the biases that changed, and why layers have no such bias.
    """
    layers, left = _layers(model.module, original)
    wanted: dict[str, list[Moments]] = {name: [] for name in layers}
    with _watched(original, layers, lambda name, moments: wanted[name].append(moments)):
        for batch in batches:
            run(original, batch)
    order: dict[str, None] = {}
    with _watched(model.module, layers, lambda name, _: order.setdefault(name)):
        run(model.module, batches[0])
    touched = []
    least = error()
    for name in order:
        # Those before it have been corrected, so it sees what they will give.
        here: list[Moments] = []
        with _watched(model.module, {name: layers[name]}, partial(_keep, here)):
            for batch in batches:
                run(model.module, batch)
        if len(here) != len(wanted[name]):
            left[name] = "it is called another number of times than the original's"
            continue
        bias = model.module.get_submodule(name)._parameters["bias"]
        assert bias is not None
        before, best = bias.detach().clone(), None
        for shift in shifts_of(_mean(wanted[name]), _mean(here)):
            if bool(shift.isfinite().all()) and bool(shift.any()):
                bias.data = before + shift.to(before)
                if (reached := error()) < least:
                    least, best = reached, bias.data
        bias.data = before
        if best is None:
            left[name] = "outputs come no closer to the original's"
        else:
            touched.append(f"{name}.bias" if name else "bias")
            model.set_values(touched[-1], best)
    return touched, left


def _keep(here: list[Moments], _: str, moments: Moments) -> None:
    here.append(moments)


def _mean(moments: Sequence[Moments]) -> Moments:
    """Return means over all calls, and the mean standard deviation."""
    means, spreads = zip(*moments, strict=True)
    return torch.stack(means).mean(0), torch.stack(spreads).mean(0)


def _layers(module: nn.Module, original: nn.Module) -> tuple[dict[str, int], dict[str, str]]:
    """Return the axis of the channels of layers with a bias, and why others have none."""
    originals = dict(original.named_modules())
    found, left = {}, {}
    for name, layer in module.named_modules():
        axis = input_axis(layer)
        if axis is None:
            continue
        bias = layer._parameters.get("bias")
        other = getattr(originals.get(name), "bias", None)
        if bias is None:
            left[name] = "it has no bias of its own"
        elif not isinstance(other, Tensor):
            left[name] = "the original has no layer of its name with a bias"
        elif other.shape != bias.shape:
            left[name] = "the original's has another size"
        else:
            found[name] = axis
    return found, left


def _watched(root: Any, layers: dict[str, int], tell: Any) -> Any:
    """Tell the moments of layers' outputs."""
    stack = ExitStack()
    for name, axis in layers.items():

        def hook(_: Any, given: Any, output: Tensor, name: str = name, axis: int = axis) -> None:
            tell(name, output_moments(output, axis))

        stack.callback(root.get_submodule(name).register_forward_hook(hook).remove)
    return stack
