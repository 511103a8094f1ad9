"""Bias correction: what rounding shifts in a layer's mean output is taken back in its bias.

Source: Nagel et al. 2019, arXiv:1906.04721, section 4.2 (empirical); Banner et al. 2019,
arXiv:1810.05723, section 4.2; Finkelstein et al. 2019, arXiv:1906.03193.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

from torch import Tensor, nn

from zoopress.models.input_grid import input_axis
from zoopress.models.model import Model


def output_mean(output: Tensor, axis: int) -> Tensor:
    """Return the mean of each channel of an output, [channels], float64."""
    rows = output.detach().double().movedim(axis, 0)
    return rows.reshape(len(rows), -1).mean(1)


def correct_biases(
    model: Model,
    original: nn.Module,
    run: Callable[[nn.Module, Any], object],
    batches: Sequence[Any],
) -> tuple[list[str], dict[str, str]]:
    """Give each layer the mean output that it has in the original, in the order in which they run.

    Args:
        model: has been rounded.
        original: what it was made of.
        run: runs a module on a batch.
        batches: what to measure means on.

    Returns:
        The names of the biases that changed, and why layers have no such bias.
    """
    layers, left = _layers(model.module, original)
    shifts: dict[str, Tensor] = {}
    for batch in batches:
        wanted: dict[str, Tensor] = {}
        with _watched(original, layers, wanted.__setitem__):
            run(original, batch)
        # A layer after one that was corrected is to see what that will give.
        with _corrected(model.module, layers, wanted, shifts):
            run(model.module, batch)
    touched = []
    for name, shift in shifts.items():
        bias = model.module.get_submodule(name)._parameters["bias"]
        assert bias is not None
        mean = (shift / len(batches)).to(bias)
        if bool(mean.isfinite().all()) and bool(mean.any()):
            touched.append(f"{name}.bias" if name else "bias")
            model.set_values(touched[-1], bias.detach() + mean)
    return touched, left


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
    """Tell the mean output of layers."""
    stack = ExitStack()
    for name, axis in layers.items():

        def hook(_: Any, given: Any, output: Tensor, name: str = name, axis: int = axis) -> None:
            tell(name, output_mean(output, axis))

        stack.callback(root.get_submodule(name).register_forward_hook(hook).remove)
    return stack


def _corrected(
    root: Any, layers: dict[str, int], wanted: dict[str, Tensor], shifts: dict[str, Tensor]
) -> Any:
    """Move each layer's output to the mean that is wanted, and add up by how much."""
    stack = ExitStack()
    for name, axis in layers.items():

        def hook(_: Any, given: Any, output: Tensor, name: str = name, axis: int = axis) -> Any:
            if name not in wanted:
                return output
            shift = wanted[name] - output_mean(output, axis)
            shifts[name] = shifts.get(name, 0) + shift
            return output + shift.to(output).view(-1, *(1,) * (-1 - axis))

        stack.callback(root.get_submodule(name).register_forward_hook(hook).remove)
    return stack
