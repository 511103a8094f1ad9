"""What a cell will take: seconds, memory and disk, from what was measured on this machine.

    start       Python, torch and plugins; load the original, warm up
    reference   run the original on the evaluation inputs
    a stage     load what is before it, apply the technique, evaluate, save, reload and compare
    finish      load the result, measure latency and the sensitivity of layers

A technique's time is what its work on each weight takes, times the model's weights, and its runs of
the model; that of training is the model's own, forward and backward, for each sample.
`calibration.py` has the constants; docs/plan.md says how far off this is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from zoopress.estimates.measurements import (
    LARGE_WEIGHT,
    MachineSpeed,
    ModelProfile,
    StageSpeed,
    WeightShape,
    selected,
)
from zoopress.estimates.memory import memory_bytes
from zoopress.recipes import Recipe, Stage
from zoopress.techniques import Technique

__all__ = ["Estimate", "Sizes", "estimate", "latency_seconds", "memory_bytes", "needs_large"]

_LATENCY_S, _LATENCY_RUNS, _FEWEST_RUNS, _WARM_UPS = 4.0, 200, 3, 2
"""What `evaluation.measure_latency` does for each batch size."""
_ENTRY_BYTES, _BYTES_A_WEIGHT = 16_000, 500
"""Of manifest, record, report and headers."""


@dataclass(frozen=True)
class Sizes:
    """What a model's tensors take after a stage, at most.

    Attributes:
        stored: bytes in the file.
        symbols: how many an entropy coder codes, 0 if there is none.
    """

    stored: int
    symbols: int


@dataclass(frozen=True)
class Estimate:
    """What a recipe takes on one model, all stages computed; seconds are None if not measured.

    Attributes:
        start: seconds to begin.
        reference: seconds to run the original.
        stages: seconds of each stage.
        finish: seconds to compare the result with the original.
        stage_bytes: what each stage's result takes in the store, at most, without tokenizers and
            the like.
    """

    start: float | None
    reference: float | None
    stages: tuple[float | None, ...]
    finish: float | None
    stage_bytes: tuple[int, ...]


def estimate(
    recipe: Recipe,
    tensor_bytes: int,
    batch_size: int,
    profile: ModelProfile | None,
    machine: MachineSpeed | None,
    speeds: Sequence[StageSpeed | None],
) -> Estimate:
    """Estimate a recipe on a model.

    Args:
        recipe: the stages.
        tensor_bytes: of the model.
        batch_size: of its evaluation.
        profile: what was measured of the model.
        machine: what was measured of the machine.
        speeds: what was measured of each stage's technique.

    Returns:
        Without measurements no seconds, and sizes as if nothing shrank.
    """
    stages = recipe.stages
    if profile is None:
        nothing = (None,) * len(stages)
        return Estimate(None, None, nothing, None, (tensor_bytes + _ENTRY_BYTES,) * len(stages))
    sizes = _sizes(recipe, profile, speeds)
    beside = _ENTRY_BYTES + _BYTES_A_WEIGHT * len(profile.weights)
    stage_bytes = tuple(size.stored + beside for size in sizes[1:])
    if machine is None:
        return Estimate(None, None, (None,) * len(stages), None, stage_bytes)
    opening = machine.start + profile.open
    first = profile.load
    if not profile.measured:
        opening += profile.tensor_bytes * machine.load
        first = profile.tensor_bytes * machine.load + profile.build
    loads = [first, *(_load_seconds(size, profile, machine) for size in sizes[1:])]
    seconds: list[float | None] = []
    for i, (stage, speed) in enumerate(zip(stages, speeds, strict=True)):
        if speed is None:
            seconds.append(None)
            continue
        after = sizes[i + 1]
        training = _training_seconds(stage, profile, batch_size)
        if training is None:
            seconds.append(None)
            continue
        seconds.append(
            loads[i]
            + training
            + _apply_seconds(stage.technique, profile, speed)
            + profile.evaluation
            + after.stored * machine.save
            + after.symbols * machine.code
            + loads[i + 1]
            + 2 * profile.batch
        )
    singles_and_batches = {1: profile.single, min(32, batch_size): profile.batch}
    finish = loads[-1] + profile.sensitivity
    finish += sum(latency_seconds(2 * once) for once in singles_and_batches.values())
    return Estimate(opening, profile.evaluation, tuple(seconds), finish, stage_bytes)


def latency_seconds(pair: float) -> float:
    """Return how long one batch size is measured, given the seconds of a run of both models."""
    measured = min(max(_LATENCY_S, _FEWEST_RUNS * pair), _LATENCY_RUNS * pair)
    return _WARM_UPS * pair + measured


def needs_large(technique: Technique[Any], weights: Sequence[WeightShape]) -> bool:
    """Tell whether a technique has to be timed on a large weight for a model."""
    return any(weights[i].count >= LARGE_WEIGHT for i in selected(technique, weights))


def _apply_seconds(technique: Technique[Any], profile: ModelProfile, speed: StageSpeed) -> float:
    own = speed.once
    for i in selected(technique, profile.weights):
        weight = profile.weights[i]
        rate = speed.large_work if weight.count >= LARGE_WEIGHT else speed.work
        own += speed.weight + rate * technique.work(weight.rows, weight.columns)
    calls = speed.calls + speed.batch_calls * profile.calibration_batches
    gradients = technique.gradient_passes() * profile.calibration_batches
    return own + calls * profile.batch + gradients * profile.training_batch


def _training_seconds(stage: Stage, profile: ModelProfile, batch_size: int) -> float | None:
    """Return what the stage's training takes, at most; None if the samples are not known.

    At most, since `patience` may end it early.
    """
    seconds = 0.0
    for technique, times in ((stage.technique, 1), (stage.recovery, stage.technique.rounds())):
        if technique is None or "training" not in technique.needs:
            continue
        if not profile.training_samples:
            return None
        trained, run = technique.training_work(profile.training_samples, profile.validation_samples)
        once = trained * profile.training_batch + run * profile.batch
        seconds += times * once / batch_size
    return seconds


def _sizes(
    recipe: Recipe, profile: ModelProfile, speeds: Sequence[StageSpeed | None]
) -> list[Sizes]:
    """Return sizes before the first stage and after each, as bounds.

    All numbers stay: which layers a technique finds to factor or to narrow only it can tell. Of
    stages that store them in fewer bits, the best counts: together they give more, but how much
    depends on the weights.
    """
    weights = profile.weights
    numbers = sum(weight.count for weight in weights)
    dense = min(32.0, 8 * profile.tensor_bytes / max(1, numbers))
    rest = max(0, profile.tensor_bytes - int(numbers * dense / 8))
    bits, coded = [dense] * len(weights), False
    sizes = [Sizes(profile.tensor_bytes, 0)]
    for stage, speed in zip(recipe.stages, speeds, strict=True):
        if speed is not None:
            for i in selected(stage.technique, weights):
                bits[i] = min(bits[i], speed.bits)
            coded = coded or speed.coded
        pairs = list(zip(weights, bits, strict=True))
        stored = rest + int(sum(weight.count * bit for weight, bit in pairs) / 8)
        # A symbol is a code of up to 8 bits, or a byte of a float.
        symbols = rest + int(sum(weight.count * max(1.0, bit / 8) for weight, bit in pairs))
        sizes.append(Sizes(stored, symbols if coded else 0))
    return sizes


def _load_seconds(size: Sizes, profile: ModelProfile, machine: MachineSpeed) -> float:
    return profile.build + size.stored * machine.load + size.symbols * machine.decode
