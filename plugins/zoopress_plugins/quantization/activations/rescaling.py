"""Channels that can be scaled in one layer and scaled back in those that read it, at no change.

What stands between must be positively homogeneous in each channel, as ReLU, pooling and the mixing
of attention are, and nobody else may read the layer. Both is found out by trying: channels are
scaled by powers of two, which floats do exactly, and the model's outputs must stay what they are.
The powers reach far, so that a clipping such as ReLU6's is hit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from zoopress.evaluation.sensitivity import judged_outputs
from zoopress.models.input_grid import first_input, input_axis
from zoopress.models.input_scale import hold_input_scale, make_input_scale
from zoopress.models.model import Model
from zoopress.models.reading import multiplied, output_axis, reading_axis
from zoopress.techniques import Context

Run = Callable[[], Sequence[Tensor]]
"""Runs a model and returns all of its outputs: what keeps one may change another."""

_NEAREST = 6
"""How many layers before one are tried as its source."""
_POWERS = 5
_TOLERANCE = 1e-4


@dataclass(frozen=True)
class Link:
    """A layer whose outputs are scaled, and all that read them.

    Attributes:
        source: name of the layer, which may be a normalization.
        readers: names of linear layers and convolutions.
        channels: how many there are.
    """

    source: str
    readers: tuple[str, ...]
    channels: int


def scaled(module: nn.Module, link: Link, scale: Tensor) -> dict[str, Tensor]:
    """Return the values of parameters with which a source's outputs are divided by a scale.

    Args:
        module: the model.
        link: of it.
        scale: [channels], positive; readers multiply by it.

    Returns:
        New values by the parameters' full names.
    """
    found: dict[str, Tensor] = {}
    source = module.get_submodule(link.source)
    for name in ("weight", "bias"):
        parameter = source._parameters.get(name)
        if parameter is not None:
            axis = output_axis(source) if name == "weight" else 0
            found[_full(link.source, name)] = multiplied(parameter, axis, 1 / scale)
    return found | scaled_readers(module, link.readers, scale)


def scaled_readers(module: nn.Module, readers: Sequence[str], scale: Tensor) -> dict[str, Tensor]:
    """Return the values of weights that read channels, multiplied by a scale: [channels]."""
    found: dict[str, Tensor] = {}
    for path in readers:
        reader = module.get_submodule(path)
        weight, axis = reader._parameters["weight"], reading_axis(reader)
        assert weight is not None
        assert axis is not None
        found[_full(path, "weight")] = multiplied(weight, axis, scale)
    return found


def scale_is_undone(model: Model, reader: str, run: Run) -> bool:
    """Tell whether outputs stay if a layer's weight is multiplied and its input divided by as much.

    They do not where something else reads the weight.

    Args:
        model: is left as it was.
        reader: the layer's name; its input is not scaled yet.
        run: runs the model on a few inputs.
    """
    layer = model.module.get_submodule(reader)
    before = run()
    generator = torch.Generator().manual_seed(0)
    powers = torch.randint(-_POWERS, _POWERS + 1, (_width(layer),), generator=generator)
    factor = torch.exp2(powers.float()).to(layer.get_parameter("weight").device)
    scale = make_input_scale(layer)
    scale.factor.copy_(1 / factor)
    undo = hold_input_scale(layer, scale.to(factor.device))
    try:
        with changed(model.module, scaled_readers(model.module, [reader], factor)):
            return _alike(before, run())
    finally:
        undo()


def find_links(model: Model, run: Run) -> tuple[list[Link], dict[str, str]]:
    """Return the links of a model, and why layers are read through none.

    Args:
        model: is left as it was.
        run: runs it on a few inputs.
    """
    module = model.module
    order, readings = _calls(module, run)
    before = run()
    generator = torch.Generator().manual_seed(0)
    links: list[Link] = []
    left: dict[str, str] = {}
    taken: set[str] = set()
    for readers, started in readings:
        odd = [path for path in readers if reading_axis(module.get_submodule(path)) is None]
        if odd:
            left |= dict.fromkeys(readers, f"{odd[0]} has no column for each channel that it reads")
            continue
        channels = _width(module.get_submodule(readers[0]))
        near = [
            path
            for path in reversed(order[:started])
            if path not in taken and path not in readers
            if _outputs(module.get_submodule(path)) == channels
        ][:_NEAREST]
        for path in near:
            link = Link(path, readers, channels)
            powers = torch.randint(-_POWERS, _POWERS + 1, (channels,), generator=generator)
            with changed(module, scaled(module, link, torch.exp2(powers.float()))):
                same = _alike(before, run())
            if same:
                links.append(link)
                taken.add(path)
                break
        else:
            reason = "no layer before it can be scaled in its place: others read that, too, or "
            reason += "what stands between is not proportional, as GELU and a residual are not"
            left |= dict.fromkeys(readers, reason)
    return links, left


def read_together(module: nn.Module, run: Run) -> list[tuple[str, ...]]:
    """Return the names of layers that read channels, those in one group that read one tensor."""
    return [readers for readers, _ in _calls(module, run)[1]]


@contextmanager
def changed(module: nn.Module, values: Mapping[str, Tensor]) -> Iterator[None]:
    """Give parameters other values for a while."""
    kept = []
    for name, value in values.items():
        path, _, attribute = name.rpartition(".")
        parameter = module.get_submodule(path)._parameters[attribute]
        assert parameter is not None
        kept.append((parameter, parameter.data))
        parameter.data = value.to(parameter.dtype)
    try:
        yield
    finally:
        for parameter, data in reversed(kept):
            parameter.data = data


def _calls(module: nn.Module, run: Run) -> tuple[list[str], list[tuple[tuple[str, ...], int]]]:
    """Return layers in the order of their first calls, and which read the same tensor, and when."""
    order: list[str] = []
    inputs: list[tuple[Tensor, list[str], int]] = []

    def note(path: str) -> Callable[..., None]:
        def hook(part: nn.Module, arguments: Any, named: Any) -> None:
            if _reads(part) and path not in order:
                x = first_input(part, arguments, named)
                if x is not None:
                    for other, paths, _ in inputs:
                        if other is x:
                            paths.append(path)
                            break
                    else:
                        inputs.append((x, [path], len(order)))
            if path not in order:
                order.append(path)

        return hook

    handles = [
        part.register_forward_pre_hook(note(path), with_kwargs=True)
        for path, part in module.named_modules()
        if _outputs(part) is not None
    ]
    try:
        run()
    finally:
        for handle in handles:
            handle.remove()
    return order, [(tuple(paths), started) for _, paths, started in inputs]


def _alike(some: Sequence[Tensor], others: Sequence[Tensor]) -> bool:
    if [each.shape for each in some] != [each.shape for each in others]:
        return False
    return all(
        bool(other.isfinite().all())
        and float((one - other).norm()) <= _TOLERANCE * float(one.norm())
        for one, other in zip(some, others, strict=True)
    )


def outputs_of_run(context: Context, model: Model, inputs: Any) -> Run:
    """Return what runs a model on a batch's inputs, for `find_links` and `scale_is_undone`."""
    return lambda: judged_outputs(context.call, model.module, inputs, None)


def _parameter(part: nn.Module, name: str = "weight") -> Tensor | None:
    found = part._parameters.get(name)
    return found if found is not None and found.is_floating_point() else None


def _reads(part: nn.Module) -> bool:
    weight = _parameter(part)
    return weight is not None and weight.ndim > 1 and input_axis(part) is not None


def _outputs(part: nn.Module) -> int | None:
    """Return how many channels a layer with a plain weight gives, None if it cannot be scaled."""
    weight = _parameter(part)
    if weight is None or isinstance(part, nn.Embedding):
        return None
    if weight.ndim == 1:
        return len(weight)
    return weight.shape[output_axis(part)] if _reads(part) else None


def reads_all_channels(part: nn.Module) -> bool:
    """Tell whether each output of a layer reads all channels, not those of a group."""
    return getattr(part, "groups", 1) == 1


def _width(part: nn.Module) -> int:
    weight = part._parameters["weight"]
    axis = reading_axis(part)
    assert weight is not None
    assert axis is not None
    return weight.shape[axis]


def _full(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def largest_of(module: nn.Module, path: str, reading: bool) -> Tensor:
    """Return the largest size of a layer's weights for each channel that it reads, or gives.

    Args:
        module: the model, or the layer itself.
        path: the layer's name in it, "" for itself.
        reading: whether of the channels that it reads.
    """
    part = module.get_submodule(path)
    weight = part._parameters["weight"]
    assert weight is not None
    axis = reading_axis(part) if reading else output_axis(part)
    assert axis is not None
    sizes = weight.detach().float().abs().movedim(axis, 0)
    return sizes.reshape(len(sizes), -1).amax(1)


def largest_read(module: nn.Module, link: Link) -> Tensor:
    """Return the largest size of the readers' weights for each channel of a link."""
    sizes = [largest_of(module, path, reading=True) for path in link.readers]
    return torch.stack(sizes).amax(0)
