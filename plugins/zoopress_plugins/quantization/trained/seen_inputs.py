"""What calibration shows of layers' inputs before a training starts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from zoopress_plugins.quantization.activations.inputs import inputs_told
from zoopress_plugins.quantization.trained.quantizer import SeenInput


def seen_inputs(
    layers: Mapping[str, nn.Module], run: Callable[[Any], object], batches: Sequence[Any]
) -> dict[str, SeenInput]:
    """Return what layers are given, of those that are called with anything but zeros.

    Args:
        layers: by name.
        run: runs the model on a batch.
        batches: what to run it on.
    """
    found: dict[str, tuple[int, float, float, float, float]] = {}

    def add(name: str, x: Tensor) -> None:
        values = x[x.isfinite()].double()
        if not values.numel():
            return
        count, low, high, size, square = found.get(name, (0, 0.0, 0.0, 0.0, 0.0))
        found[name] = (
            count + values.numel(),
            min(low, float(values.min())),
            max(high, float(values.max())),
            size + float(values.abs().sum()),
            square + float(values.square().sum()),
        )

    with inputs_told(layers, add):
        for batch in batches:
            run(batch)
    return {
        name: SeenInput(low, high, size / count, square / count)
        for name, (count, low, high, size, square) in found.items()
        if size > 0
    }
