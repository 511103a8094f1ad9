"""How far a candidate is from a target of size or of fidelity."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from zoopress.artifacts.encoding import encode
from zoopress.coding.zpz import write_zpz
from zoopress.errors import StageError
from zoopress.evaluation.fidelity import call_observed, probability_loyalties, sample_cosines
from zoopress.evaluation.likeness import sample_similarities, spread_of
from zoopress.evaluation.observed import Observed
from zoopress.evaluation.statistics import bootstrap
from zoopress.models.model import Model
from zoopress.tasks import Task, is_judged
from zoopress.tasks.batches import batch_length, map_tensors
from zoopress.techniques import Context, Outcome

HELD_OUT = 4
"""One of so many calibration samples judges fidelity and is not seen by sensitivities."""
_FEWEST_HELD_OUT = 8
_FLOOR = 1 / 64
"""Of an allowed distance: smaller distances are all the same to a search."""
_CLAIM_BYTES = 16
"""By which a manifest may differ that has the figure reached, not the one asked for."""


class Measured(NamedTuple):
    """What a candidate reaches.

    Attributes:
        figure: in the target's own unit.
        surplus: log2 of how many times better than the target it is; negative if it is missed.
    """

    figure: float
    surplus: float


Measure = Callable[[Model], Measured]


def split_batches(batches: Sequence[Any]) -> tuple[list[Any], list[Any]]:
    """Part calibration inputs in those for sensitivities and those that judge fidelity.

    Every fourth sample judges, whatever the order of samples; where there would be fewer than
    eight, all samples serve both.
    """
    seen, held_out = [], []
    for batch in batches:
        positions = torch.arange(batch_length(batch))
        judging = positions % HELD_OUT == HELD_OUT - 1
        seen.append(_samples(batch, positions[~judging]))
        held_out.append(_samples(batch, positions[judging]))
    held_out = [batch for batch in held_out if batch_length(batch)]
    if sum(map(batch_length, held_out)) < _FEWEST_HELD_OUT:
        return list(batches), list(batches)
    return seen, held_out


def _samples(batch: Any, rows: Tensor) -> Any:
    length = batch_length(batch)
    return map_tensors(batch, lambda _, tensor: tensor[rows] if len(tensor) == length else tensor)


def size_measure(context: Context, limit: float, outcome: Outcome) -> Measure:
    """Measure the bytes of all files of the artifact; the figure is the compression ratio.

    Args:
        context: what saves the candidate.
        limit: bytes that are allowed.
        outcome: what the technique will report, but for the figure reached.
    """
    stored_bytes = context.stored_bytes
    assert stored_bytes is not None

    def measure(candidate: Model) -> Measured:
        size = stored_bytes(candidate, outcome)
        surplus = math.log2(max(1.0, limit - _CLAIM_BYTES) / size)
        return Measured(context.original_bytes / size, surplus)

    return measure


def bits_measure(context: Context, names: Collection[str], count: int, limit: float) -> Measure:
    """Measure how many bits each number of some weights takes, steps and index included.

    Args:
        context: where to write.
        names: of the weights.
        count: of their numbers.
        limit: bits that are allowed.
    """
    file = context.checkpoint / "trial.zpz"

    def measure(candidate: Model) -> Measured:
        chosen = {
            name: tensor
            for name, tensor in candidate.tensors().items()
            if name in names or name.rpartition(".")[0] in names
        }
        _, stored = encode(chosen, candidate.masks, candidate.code_layouts())
        try:
            write_zpz(file, stored)
            bits = 8 * file.stat().st_size / count
        finally:
            file.unlink(missing_ok=True)
        return Measured(bits, math.log2(limit / bits))

    return measure


def fidelity_measure(
    context: Context, original: nn.Module, batches: Sequence[Any], target: str, least: float
) -> Measure:
    """Measure how close outputs are to the original's; a standard error below the mean counts.

    Args:
        context: what runs models.
        original: what to compare with.
        batches: inputs.
        target: "cosine", "label_loyalty" or "probability_loyalty".
        least: the mean that is asked for.

    Raises:
        StageError: if the outputs carry no label, but the target is of labels.
    """
    task = context.task
    if target == "cosine" and task is not None:
        return _similarity_measure(task, original, batches, least)
    reference = [context.call(original, batch) for batch in batches]
    scores = task.similarity(reference) if task is not None else None
    if target != "cosine" and scores is None:
        raise StageError(
            f"The target {target!r} cannot be measured: this task's outputs carry no label. Use "
            "'cosine'."
        )

    def measure(candidate: Model) -> Measured:
        outputs = [context.call(candidate.module, batch) for batch in batches]
        if not all(bool(output.isfinite().all()) for output in outputs):
            values = torch.zeros(2)
        elif target == "cosine":
            pairs = zip(reference, outputs, strict=True)
            values = torch.cat([sample_cosines(a.double(), b.double()) for a, b in pairs])
        else:
            assert task is not None
            assert scores is not None
            other = task.similarity(outputs)
            assert other is not None
            values = (
                (scores.argmax(1) == other.argmax(1)).double()
                if target == "label_loyalty"
                else probability_loyalties(scores, other)
            )
        figure = float(values.mean())
        error = float(values.std() / len(values) ** 0.5) if len(values) > 1 else 0.0
        return Measured(figure, _surplus(1 - least, 1 - figure + error))

    return measure


def _similarity_measure(
    task: Task, original: nn.Module, batches: Sequence[Any], least: float
) -> Measure:
    """Measure the similarity of the worst output that is judged, by what no constant would meet."""
    reference = [call_observed(task, original, batch) for batch in batches]
    first = reference[0]
    rows = {
        name: [seen.rows(name) for seen in reference if name in seen.named]
        for name in first.named
        if is_judged(task, name, first.main) and first.named[name].numel()
    }
    rows = {name: r for name, r in rows.items() if all(bool(x.isfinite().all()) for x in r)}
    if not rows:
        raise StageError(
            "The target 'cosine' cannot be measured: no output of the original that is judged is "
            "finite. Use a target of size."
        )
    spreads = {name: spread_of(values, first.epsilon(name)) for name, values in rows.items()}

    def measure(candidate: Model) -> Measured:
        seen = [call_observed(task, candidate.module, batch) for batch in batches]
        measured = [_of_output(name, seen) for name in rows]
        figure, error = min(measured, key=lambda pair: pair[0] - pair[1])
        return Measured(figure, _surplus(1 - least, 1 - figure + error))

    def _of_output(name: str, seen: Sequence[Observed]) -> tuple[float, float]:
        found = [each.rows(name) for each in seen if name in each.named]
        finite = all(bool(values.isfinite().all()) for values in found)
        if len(found) != len(rows[name]) or not finite:
            return 0.0, 0.0
        pairs = list(zip(rows[name], found, strict=True))
        values = sample_similarities(first.kinds[name], pairs, spreads[name], least)
        error = float(values.std() / len(values) ** 0.5) if len(values) > 1 else 0.0
        return float(values.mean()), error

    return measure


def metric_measure(context: Context, original: nn.Module, allowed: float) -> Measure:
    """Measure how much worse the task's metric is on the validation split.

    A standard error by the bootstrap is added to the drop.

    Raises:
        StageError: if the task has no metric.
        CardError: if there is no such split.
    """
    task = context.task
    if task is None or task.metric is None:
        raise StageError(
            "The target 'max_metric_drop' cannot be measured: this task has no labels. Use "
            "'cosine', or give the card a task with a 'data: {dataset: …}'."
        )
    name, sign = task.metric, 1 if task.higher_is_better else -1
    before = _statistics(context, task, original)
    scale = abs(task.metrics(before)[name])

    def measure(candidate: Model) -> Measured:
        after = _statistics(context, task, candidate.module)
        if not all(bool(values.isfinite().all()) for values in after.values()):
            return Measured(math.inf, _surplus(allowed, max(scale, 1.0)))
        drop = sign * (task.metrics(before)[name] - task.metrics(after)[name])
        spread = bootstrap(before, after, task.metrics, resamples=200, confidence=0.68)
        interval = spread.intervals.get(name)
        error = 0.0 if interval is None else (interval.difference[1] - interval.difference[0]) / 2
        return Measured(drop, _surplus(allowed, max(0.0, drop + error), 1e-4 * scale))

    return measure


def _statistics(context: Context, task: Task, module: nn.Module) -> Mapping[str, Tensor]:
    rows = []
    for example in task.examples("validation"):
        rows.append(task.statistics(context.call(module, example.inputs), example.targets))
    return task.collect(rows)


def _surplus(allowed: float, distance: float, floor: float = 1e-9) -> float:
    floor += _FLOOR * allowed
    return math.log2((allowed + floor) / (distance + floor))
