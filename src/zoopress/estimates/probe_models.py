"""Measure a card's model for estimates: run it if it is here, else count its operations."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from zoopress.artifacts.card_model import find_model
from zoopress.cards import Card
from zoopress.cards.maker import list_files
from zoopress.errors import ZoopressError
from zoopress.estimates.measurements import ModelProfile, WeightShape
from zoopress.evaluation.fidelity import MAX_OUTPUT_ELEMENTS
from zoopress.evaluation.peak_memory import forget_peak, peak_bytes
from zoopress.evaluation.sensitivity import affordable
from zoopress.models.weights import find_weights
from zoopress.plugins import Plugins
from zoopress.tasks import Split, Task, open_task
from zoopress.tasks.batches import first_samples

_LARGEST_LOADED = 2_000_000_000
"""Bytes of files; a model of more is not loaded in order to be timed."""
_LONGEST_S = 4.0
_BACKWARD = 3
"""How often a batch could run forward in the time that it takes forward and backward."""
_EFFICIENCY = 0.5
"""Share of a matrix product's speed that a model reaches; for models that are not run."""


def measure_model(card: Card, now: Callable[[], float], plugins: Plugins) -> ModelProfile:
    """Load and run a card's model; if it is not here, or large, count its operations.

    Args:
        card: whose model.
        now: the clock.
        plugins: what builds and runs it.

    Raises:
        ZoopressError: if it cannot be built.
    """
    listing = list_files(card, plugins, ["others"])
    files = listing.files
    begin = now()
    model = find_model(card, files, plugins)
    task = open_task(card, files.folder, plugins)
    here = not listing.absent and files.size_bytes() <= _LARGEST_LOADED
    module = model.load() if here else model.on_meta()
    batches = task.batches("test")
    middle = batches[len(batches) // 2]
    weights = tuple(
        WeightShape(
            tuple(place.name for place in weight.locations),
            weight.kind,
            *weight.matrix().shape,
        )
        for weight in find_weights(module)
    )
    tensor_bytes = sum(tensor.nbytes for tensor in (*module.parameters(), *module.buffers()))
    samples, changed = affordable(sum(p.numel() for p in module.parameters()), len(weights))
    if here:
        run_bytes, elements = _run_bytes(task, module, middle)
        opened = now() - begin
        times = _times(task, module, batches, samples, now)
        training = _training(task, module, middle, now) or (_BACKWARD * times[1], run_bytes)
        del module
        begin = now()
        model.load()
        loaded = now()
        find_model(card, files, plugins).on_meta()
        imported = now()
        find_model(card, files, plugins).on_meta()
        load, build = loaded - begin, now() - imported
        # What building imports is paid once, however many stages build.
        opened += max(0.0, imported - loaded - build)
    else:
        run_bytes, load, build, opened = 0, 0.0, now() - begin, now() - begin
        batch, elements = _counted(task, module, middle, now)
        single = batch / next(_tensors(middle)).shape[0]
        times = batch, batch, single, samples * single
        training = _BACKWARD * batch, 0
    mean, batch, single, few = times
    return ModelProfile(
        measured=here,
        weights=weights,
        tensor_bytes=tensor_bytes,
        open=opened,
        load=load,
        build=build,
        evaluation=mean * len(batches),
        batch=batch,
        single=single,
        sensitivity=(changed + 1) * few,
        calibration_batches=len(task.batches("calibration")),
        # Outputs are kept until there are more than that.
        output_elements=elements * min(len(batches), 1 + MAX_OUTPUT_ELEMENTS // max(1, elements)),
        run_bytes=run_bytes,
        training_samples=_size(task, "training"),
        validation_samples=_size(task, "validation"),
        training_batch=training[0],
        training_bytes=training[1],
    )


def _times(
    task: Task, module: nn.Module, batches: Any, samples: int, now: Callable[[], float]
) -> tuple[float, float, float, float]:
    """Return seconds for an average batch, the middle one, one sample, and some samples."""

    def seconds(batch: Any) -> float:
        start = now()
        task.call(module, batch)
        return now() - start

    last, middle = len(batches) - 1, batches[len(batches) // 2]
    timed = [seconds(middle)]
    # Where batches are sorted by length, they differ; these are the shortest and the longest.
    for position in sorted({0, last}):
        if sum(timed) < _LONGEST_S:
            timed.append(seconds(batches[position]))
    few, one = first_samples(middle, samples), first_samples(middle, 1)
    seconds(one)
    return (
        sum(timed) / len(timed),
        timed[0],
        min(seconds(one) for _ in range(3)),
        seconds(few),
    )


def _training(
    task: Task, module: nn.Module, batch: Any, now: Callable[[], float]
) -> tuple[float, int] | None:
    """Return the seconds and the memory of a batch forward and backward; None if it cannot be.

    Whose weights are packed, or whose code keeps gradients away, is not trained as a whole.
    """
    before = forget_peak()
    start = now()
    try:
        task.forward(module, batch).float().square().mean().backward()
    except RuntimeError:
        return None
    return now() - start, max(0, peak_bytes() - before)


def _size(task: Task, split: Split) -> int:
    """Return the number of samples of a split; 0 if there are too few, which a run will tell."""
    try:
        return len(task.samples(split))
    except ZoopressError:
        return 0


def _run_bytes(task: Task, module: nn.Module, batch: Any) -> tuple[int, int]:
    """Return the memory that a first batch takes, and how many numbers come out."""
    before = forget_peak()
    elements = task.call(module, batch).numel()
    return max(0, peak_bytes() - before), elements


def _counted(
    task: Task, module: nn.Module, batch: Any, now: Callable[[], float]
) -> tuple[float, int]:
    """Return the likely seconds of a batch, and how many numbers come out, without running it."""
    from zoopress.models.dispatch import flop_counter_mode

    try:
        with flop_counter_mode(display=False) as counter:
            elements = task.call(module, _on_meta(batch)).numel()
        operations = counter.get_total_flops()
    except Exception:  # whatever a model does that needs values
        positions = max(
            tensor.shape[0] if tensor.is_floating_point() else tensor.numel()
            for tensor in _tensors(batch)
        )
        operations = 2 * positions * sum(p.numel() for p in module.parameters())
        elements = 0
    return operations * matrix_product_seconds(now) / _EFFICIENCY, elements


def matrix_product_seconds(now: Callable[[], float], size: int = 1024) -> float:
    """Return the seconds of a floating point operation in a product of matrices."""
    a, b = torch.randn(size, size), torch.randn(size, size)
    times = []
    for _ in range(4):
        start = now()
        torch.mm(a, b)
        times.append(now() - start)
    return min(times) / (2 * size**3)


def _tensors(batch: Any) -> Iterator[Tensor]:
    if isinstance(batch, Tensor):
        yield batch
    elif isinstance(batch, (Mapping, tuple, list)):
        for value in batch.values() if isinstance(batch, Mapping) else batch:
            yield from _tensors(value)


def _on_meta(batch: Any) -> Any:
    if isinstance(batch, Tensor):
        return batch.to("meta")
    if isinstance(batch, Mapping):
        return {key: _on_meta(value) for key, value in batch.items()}
    if isinstance(batch, (tuple, list)):
        return type(batch)(_on_meta(value) for value in batch)
    return batch
