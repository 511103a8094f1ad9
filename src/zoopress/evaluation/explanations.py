"""Explanation fidelity: does the compressed model look at the same inputs for its answer?"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from zoopress.evaluation.attacks import Values
from zoopress.evaluation.attributions import gradient_times_input, integrated_gradients
from zoopress.evaluation.comparison import Comparison
from zoopress.evaluation.metrics import spearman
from zoopress.evaluation.statistics import mean_interval
from zoopress.evaluation.surface import Surface, surface_of
from zoopress.evaluation.task_metrics import CONFIDENCE
from zoopress.models.packing import differentiable
from zoopress.progress import Progress
from zoopress.tasks import Task

MAX_SAMPLES = 32
STEPS = 16
"""Of MiniLM, ranks from 16 points correlate 0.994 to 1 with those from 100; from 8, 0.95 to 1."""
MAX_COST = 12_500_000_000
"""Bound of parameters × samples × steps: the same on every machine."""
LEAST_SAMPLES = 8
"""With fewer, gradient × input is taken, which needs one step only."""

_BATCH = 8


def measure(comparison: Comparison, progress: Progress) -> dict[str, Any]:
    """Correlate the ranks of input attributions of both models, sample by sample.

    Both explain the same answer, the original's; see `direction`. Inputs that have no attribution
    in either model, such as padding, are left out.

    Returns:
        "method", "steps", "attributed" ("inputs" or "token embeddings"), "explained" (what of the
        output), "samples", "rank_correlation" (the mean of Spearman's over samples), its
        "interval", "confidence", and "left_out", how many samples have no two different
        attributions; or "skipped", why there is nothing to compare.
    """
    task = comparison.task
    parameters = sum(parameter.numel() for parameter in comparison.original.parameters())
    samples, steps = affordable(parameters)
    rows = _spread(len(task.samples("test")), samples)
    correlations: list[float] = []
    left_out = 0
    attributed = explained = ""
    modules = comparison.original, comparison.compressed
    for start in range(0, len(rows), _BATCH):
        progress(f"sample {start + 1} of {len(rows)}", start / len(rows))
        inputs = task.samples("test").batch(rows[start : start + _BATCH]).inputs
        target, explained = direction(task, task.call(comparison.original, inputs))
        surface = surface_of(task, inputs)
        attributed = "token embeddings" if surface.of_embedding else "inputs"
        try:
            found = [attribute(surface, module, target, steps) for module in modules]
        except (ValueError, RuntimeError) as error:  # torch has no derivative of all that it does
            return {"skipped": f"inputs cannot be attributed: {error}"}
        for before, after in zip(*found, strict=True):
            correlation = rank_correlation(before, after)
            if correlation is None:
                left_out += 1
            else:
                correlations.append(correlation)
    if not correlations:
        return {"skipped": "no sample has attributions of two different values"}
    values = torch.tensor(correlations, dtype=torch.float64)
    return {
        "method": "integrated gradients" if steps > 1 else "gradient × input",
        "steps": steps,
        "attributed": attributed,
        "explained": explained,
        "samples": len(values),
        "left_out": left_out,
        "rank_correlation": float(values.mean()),
        "interval": list(mean_interval(values, seed=comparison.seed)) if len(values) > 1 else None,
        "confidence": CONFIDENCE,
    }


def attribute(surface: Surface, module: nn.Module, target: Tensor, steps: int) -> list[Tensor]:
    """Attribute what a model gives along `target` to its inputs.

    Of token ids to their embeddings, summed over the embedding's size: one number a token.

    Args:
        surface: a batch.
        module: the model.
        target: [samples, …], see `direction`.
        steps: of integrated gradients; 1 for gradient × input.

    Returns:
        Of each sample its attributions [features], of several tensors one after the other.

    Raises:
        ValueError: if the inputs are neither continuous nor go into an embedding.
    """

    def output(values: Values) -> Tensor:
        with differentiable(module):
            return (surface.run(module, values).float() * target).sum()

    values = surface.values(module)
    if steps > 1:
        found = integrated_gradients(output, values, steps)
    else:
        found = gradient_times_input(output, values)
    if surface.of_embedding:
        found = [each.sum(-1) for each in found]
    return list(torch.cat([each.flatten(1) for each in found], 1).unbind(0))


def direction(task: Task, output: Tensor) -> tuple[Tensor, str]:
    """Return what of the outputs to explain, as a tensor to multiply them with.

    The score of the class that the original predicts, in a sequence the mean over positions. Of
    outputs that are no class scores, such as embeddings and regressions, their part along the
    original's output: of embeddings of length 1 the cosine similarity to the original's.

    Args:
        task: tells by `similarity` whether outputs are class scores.
        output: [samples, …], the original's.

    Returns:
        The direction [samples, …], and it in words.
    """
    output = output.float().clone()  # what inference mode made has no gradients
    scores = task.similarity([output])
    axis = -1 if output.ndim <= 3 else 1
    if scores is not None and torch.equal(
        scores, output.movedim(axis, -1).reshape(-1, output.shape[axis])
    ):
        best = torch.zeros_like(output).scatter_(axis, output.argmax(axis, keepdim=True), 1.0)
        return best * best.shape[axis] * len(best) / best.numel(), "the original's predicted class"
    flat = output.reshape(len(output), -1)
    unit = torch.nn.functional.normalize(flat, dim=1).reshape(output.shape)
    return unit, "the output along the original's"


def rank_correlation(original: Tensor, compressed: Tensor) -> float | None:
    """Return Spearman's correlation of two attributions [features] of the same inputs.

    Inputs that are 0 in both are left out: padding, and whatever equals the baseline, would count
    as agreement. None if the original's attributions are all the same; 0 if the compressed
    model's are, or are not finite.
    """
    used = (original != 0) | (compressed != 0)
    before, after = original[used], compressed[used]
    if len(before) < 2 or bool((before == before[0]).all()):
        return None
    if not bool(after.isfinite().all()):
        return 0.0
    return spearman(after, before)


def affordable(parameters: int) -> tuple[int, int]:
    """Return how many samples to explain, and in how many steps, for a number of parameters."""
    each = max(1, parameters)
    samples = min(MAX_SAMPLES, MAX_COST // (each * STEPS))
    if samples >= LEAST_SAMPLES:
        return samples, STEPS
    return max(1, min(MAX_SAMPLES, MAX_COST // each)), 1


def _spread(count: int, wanted: int) -> list[int]:
    """Return rows evenly from all of them."""
    return torch.linspace(0, count - 1, min(count, wanted)).round().long().tolist()
