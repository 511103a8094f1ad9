"""What compression did to each weight by itself: its error, and what that does to the outputs.

The sensitivity of a weight is 1 − the mean cosine between the original's outputs and those of the
original with this weight alone in its compressed form. It tells which layers a recipe should treat
more gently, and which could bear more.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from zoopress.artifacts.encoding import KEPT, MASK
from zoopress.artifacts.manifest import Manifest
from zoopress.artifacts.tensor_files import open_tensors
from zoopress.evaluation.fidelity import call
from zoopress.evaluation.likeness import (
    is_number,
    sample_concordances,
    sample_cosines,
    spread_of,
)
from zoopress.evaluation.observed import numbers
from zoopress.models.edits import AnyEdit, place_now as place_now, submodule
from zoopress.models.model import Model
from zoopress.models.on_disk import pieces
from zoopress.models.weights import Location, Weight, as_matrix, find_weights
from zoopress.progress import Progress
from zoopress.results import LayerResult
from zoopress.tasks import (
    Task,
    is_cache,
    is_judged,
    named_outputs,
    outputs_of,
    samples_first,
)
from zoopress.tasks.batches import batch_length, first_samples

MAX_SAMPLES = 8
"""Sensitivity is measured on so many evaluation samples at most."""
MAX_COST = 10_000_000_000
"""Bound of the model's parameters × samples × measured weights: the same on every machine."""


def measure_layers(
    task: Task,
    original: nn.Module,
    compressed: Model,
    stored: Mapping[str, int],
    progress: Progress = lambda item, fraction=None: None,
    since: int = 0,
) -> list[LayerResult]:
    """Compare every weight of two or more axes, tied ones once, with its compressed form.

    Weights whose shape changed have neither error nor sensitivity. Those with the most bytes are
    measured first; where `MAX_COST` is reached, the sensitivity of the others stays unknown.

    Args:
        task: gives the inputs and runs the model.
        original: the model as it came; it is left as it was.
        compressed: the model that was made from it.
        stored: bytes in the artifact of each of its tensors, see `stored_bytes`.
        progress: called with each weight's name.
        since: how many of `compressed.edits` the original has too, being a compressed model itself.
    """
    weights = list(find_weights(original))
    edits = compressed.edits[since:]
    errors = {
        weight.name: None if dense is None else relative_error(weight, dense)
        for weight in weights
        for dense in [compressed_form(weight, compressed, edits)]
    }
    sensitivities: dict[str, float | None] = {n: 0.0 for n, error in errors.items() if error == 0}
    changed = [weight for weight in weights if errors[weight.name]]  # neither 0 nor None
    parameters = sum(parameter.numel() for parameter in original.parameters())
    samples, count = affordable(parameters, len(changed))
    if count:
        batches = task.batches("test")
        batch = first_samples(batches[len(batches) // 2], samples)
        before = _outputs(task, original, batch)
        largest = sorted(changed, key=lambda weight: -_bytes(weight))[:count]
        for done, weight in enumerate(largest, start=1):
            dense = compressed_form(weight, compressed, edits)
            assert dense is not None
            after = _call_with(task, original, weight, dense, batch)
            sensitivities[weight.name] = outputs_distance(before, after)
            progress(weight.name, done / len(largest))
    return [
        LayerResult(
            name=weight.name,
            kind=weight.kind,
            parameters=weight.parameter.numel(),
            bytes_before=_bytes(weight),
            bytes_after=_bytes_after(weight, edits, stored),
            relative_error=None if error is None or math.isinf(error) else error,
            sensitivity=sensitivities.get(weight.name),
        )
        for weight in weights
        for error in [errors[weight.name]]
    ]


def affordable(parameters: int, weights: int) -> tuple[int, int]:
    """Return on how many samples to measure how many of a model's changed weights.

    Fewer samples before fewer weights: one sample tells more than none.
    """
    samples = max(1, min(MAX_SAMPLES, MAX_COST // max(1, parameters * weights)))
    return samples, min(weights, MAX_COST // max(1, parameters * samples))


def judged_outputs(
    run: Callable[[nn.Module, Any], Tensor], module: nn.Module, inputs: Any, task: Task | None
) -> list[Tensor]:
    """Run a module on a batch; return its float outputs that count, float32 [samples, …].

    Args:
        run: runs the module, and returns what the task does: the first of the outputs.
        module: the model.
        inputs: of the batch.
        task: says which outputs are judged; without one all are, but caches.
    """
    if task is not None and not task.every_output:
        return [run(module, inputs)]
    with outputs_of(module) as calls:
        main = run(module, inputs)
    samples = batch_length(inputs)
    found = [main]
    for returned in calls:
        for name, tensor in named_outputs(returned, samples).items():
            judged = not is_cache(name) if task is None else is_judged(task, name, "")
            number = tensor.is_floating_point() or tensor.is_complex()
            if judged and number and tensor.numel() and tensor.data_ptr() != main.data_ptr():
                rows = samples_first(tensor, samples)
                found.append(numbers(tensor[None] if rows is None else rows).clone())
    return found


def outputs_distance(original: Sequence[Tensor], other: Sequence[Tensor]) -> float:
    """Return the largest `output_distance` of several outputs; 1 if shapes differ."""
    if [one.shape for one in original] != [one.shape for one in other]:
        return 1.0
    return max(output_distance(a, b) for a, b in zip(original, other, strict=True))


def output_distance(original: Tensor, other: Tensor) -> float:
    """Return 1 − the mean cosine of outputs [samples, …]; 1 if `other` is not finite.

    Of one number a sample it is 1 − the concordance.
    """
    if not bool(other.isfinite().all()):
        return 1.0
    if is_number("real", original):
        concordances = sample_concordances([(original, other)], spread_of([original]))
        return max(0.0, 1 - float(concordances.mean()))
    # In double precision, where an error of 10⁻⁸ still shows, and one sample at a time, since the
    # outputs of a language model are large.
    pairs = zip(original.split(1), other.split(1), strict=True)
    cosines = [float(sample_cosines(a.double(), b.double())) for a, b in pairs]
    return max(0.0, 1 - sum(cosines) / len(cosines))


def compressed_form(weight: Weight, compressed: Model, edits: Iterable[AnyEdit]) -> Tensor | None:
    """Return the dense weight that a compressed model has in the place of an original's.

    None if its shape is another, its block was removed, nothing there has a weight of that name, or
    another layer was folded into it.

    Args:
        weight: the original's.
        compressed: the model that was made from it.
        edits: what was done to the architecture since.
    """
    path, replaced = place_now(weight.path, edits)
    if path is None:
        return None
    try:
        owner = submodule(compressed.module, path)
    except ValueError:
        return None
    if getattr(owner, "is_folded", False) and not getattr(weight.module, "is_folded", False):
        return None  # it computes what a layer after it did, too
    with torch.no_grad():
        dense = getattr(owner, weight.attribute, None)
    if not isinstance(dense, Tensor):
        return None
    dense = dense.as_subclass(Tensor)
    if replaced and dense.shape != weight.parameter.shape:
        # Layers of older plugins give [out, in, …], whichever axis was the output's.
        matrix = as_matrix(dense, 0)
        if matrix.shape != weight.matrix().shape:
            return None
        return weight.from_matrix(matrix.detach()).to(weight.parameter.dtype)
    if dense.shape != weight.parameter.shape:
        return None
    return dense.detach().to(weight.parameter.dtype)


def stored_bytes(
    folder: Path, manifest: Manifest, names: Iterable[str], stored_name: Callable[[str], str]
) -> dict[str, int]:
    """Return how many bytes each tensor takes in an artifact's files, masks included.

    Args:
        folder: the artifact.
        manifest: what it says.
        names: of the model's tensors.
        stored_name: gives the name in the file of a tensor of the model.
    """
    sizes = {}
    with open_tensors(folder, manifest.storage, manifest.weights) as readers:
        for name in names:
            parts = [stored_name(name) + suffix for suffix in ("", MASK, KEPT)]
            sizes[name] = sum(readers[p].stored_bytes(p) for p in parts if p in readers)
    return sizes


def relative_error(weight: Weight, dense: Tensor) -> float:
    """Return ‖compressed − original‖ ÷ ‖original‖ (Frobenius).

    Infinite if the original is all zeros and the compressed form is not, or is not finite.

    Args:
        weight: the original's.
        dense: its compressed form, of the same shape.
    """
    original = weight.parameter.detach()
    if torch.equal(dense, original):
        return 0.0
    pairs = zip(pieces(dense), pieces(original), strict=True)
    off = math.hypot(*(float((a.float() - b.float()).norm()) for a, b in pairs))
    size = math.hypot(*(float(piece.float().norm()) for piece in pieces(original)))
    error = off / size if size else math.inf
    return error if math.isfinite(error) else math.inf


def _outputs(task: Task, module: nn.Module, batch: Any) -> list[Tensor]:
    return judged_outputs(lambda part, inputs: call(task, part, inputs), module, batch, task)


def _call_with(
    task: Task, original: nn.Module, weight: Weight, dense: Tensor, batch: Any
) -> list[Tensor]:
    """Run the original with one weight in another form, and put its own back."""
    # Not copied into the parameter: its memory may be a read-only file's. All modules that share
    # the parameter see the change.
    own = weight.parameter.data
    weight.parameter.data = dense
    try:
        return _outputs(task, original, batch)
    finally:
        weight.parameter.data = own


def _bytes(weight: Weight) -> int:
    return weight.parameter.numel() * weight.parameter.itemsize


def _bytes_after(weight: Weight, edits: Sequence[AnyEdit], stored: Mapping[str, int]) -> int:
    """Add up all tensors that stand for a weight: itself, a packed one's, a layer's factors."""
    total = 0
    for location in weight.locations:
        path, replaced = place_now(location.path, edits)
        if path is None:
            continue
        name = Location(path, location.attribute).name
        total += stored.get(name, 0)
        below = f"{path if replaced else name}."
        total += sum(
            size
            for tensor, size in stored.items()
            if tensor.startswith(below) and not tensor.endswith(".bias")
        )
    return total
