"""One pass over calibration data, in which layers tell what they are given."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch import Tensor, nn

from zoopress.models.input_grid import InputGrid, first_input
from zoopress.tasks.batches import batch_length, first_samples
from zoopress_plugins.quantization.ranges.seen import BINS_OF_ALL, BINS_OF_CHANNEL, Seen

Told = Callable[[str, Tensor], None]


@contextmanager
def inputs_told(layers: Mapping[str, nn.Module], tell: Told) -> Iterator[None]:
    """Call a function with the name and the first input of each layer that is called meanwhile."""

    def note(
        name: str, module: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]
    ) -> None:
        x = first_input(module, arguments, named)
        if x is not None and x.is_floating_point() and x.numel():
            tell(name, x.detach())

    handles = [
        layer.register_forward_pre_hook(partial(note, name), with_kwargs=True)
        for name, layer in layers.items()
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def seen_by(
    layers: Mapping[str, nn.Module],
    grids: Mapping[str, InputGrid],
    run: Callable[[Any], object],
    batches: Sequence[Any],
    told: Callable[[float], None] = lambda fraction: None,
) -> dict[str, Seen]:
    """Return what layers are given, of those that are called at all.

    Args:
        layers: by name.
        grids: those that are to round the inputs, by the same names; what they hold is not read.
        run: runs the model on a batch.
        batches: what to run it on.
        told: called with the part that is done.
    """
    found: dict[str, Seen] = {}

    def add(name: str, x: Tensor) -> None:
        grid = grids[name]
        channels = grid.channels if grid.per == "channel" else None
        if name not in found:
            found[name] = Seen(channels or 1, BINS_OF_CHANNEL if channels else BINS_OF_ALL)
        found[name].add(by_channel(x, grid.axis) if channels else x.reshape(1, -1))

    with inputs_told(layers, add):
        for done, batch in enumerate(batches, start=1):
            run(batch)
            told(done / len(batches))
    return found


def by_channel(x: Tensor, axis: int) -> Tensor:
    """Return an input as [channels, n]."""
    return x.movedim(axis, 0).reshape(x.shape[axis], -1)


def some_samples(batches: Iterable[Any], most: int) -> list[Any]:
    """Return batches that hold so many samples at most, the last one perhaps cut."""
    found: list[Any] = []
    left = most
    for batch in batches:
        if left <= 0:
            break
        found.append(first_samples(batch, left))
        left -= batch_length(found[-1])
    return found
