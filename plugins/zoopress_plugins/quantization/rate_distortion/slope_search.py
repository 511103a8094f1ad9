"""Find the slope at which a model meets a target: what rate–distortion quantization does.

checkpoint/
    sensitivities.safetensors   measured once; a killed run goes on without measuring again
    trials.json                 what was tried, and what that gave
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from zoopress.errors import StageError
from zoopress.models.model import Model
from zoopress.models.weights import Weight
from zoopress.store.files import write_atomic
from zoopress.tasks.batches import batch_length
from zoopress.techniques import Claim, Context, Outcome
from zoopress_plugins.quantization.rate_distortion.packing import (
    Packing,
    bits_per_weight,
    packed_copy,
    quantize_weights,
    starting_slope,
)
from zoopress_plugins.quantization.rate_distortion.sensitivity import (
    Sensitivity,
    measure_sensitivities,
    not_reached,
)
from zoopress_plugins.quantization.rate_distortion.sensitivity_file import (
    read_sensitivities,
    write_sensitivities,
)
from zoopress_plugins.quantization.rate_distortion.solver import Settings
from zoopress_plugins.quantization.rate_distortion.target_measures import (
    Measure,
    bits_measure,
    fidelity_measure,
    metric_measure,
    size_measure,
    split_batches,
)
from zoopress_plugins.quantization.rate_distortion.target_search import (
    Search,
    Trial,
    least_met,
    run_search,
)

if TYPE_CHECKING:
    from zoopress_plugins.quantization.rate_distortion_quantization import RateDistortionConfig

SIZES = frozenset({"ratio", "size_bytes", "bits_per_weight"})
"""Targets that a coarser quantization meets; the others ask for a finer one."""
_FIRST_BITS = 4.0
"""Of a weight in the first trial, where the target does not tell."""
_FINEST_BITS, _COARSEST_BITS = 12.0, -8.0
"""Between them the search stays; below zero about all weights are."""


_MEASURING = 0.2
"""Of the whole work, for the display of progress."""


@dataclass(frozen=True)
class Found:
    """A slope that meets the target, or was given.

    Attributes:
        slope: the distortion that a bit is worth.
        packings: of each weight at this slope.
        figure: what was reached, in the target's unit; None without a target.
        notes: how it was found.
    """

    slope: float
    packings: list[Packing | None]
    figure: float | None = None
    notes: dict[str, Any] = field(default_factory=dict)


def find_slope(
    config: RateDistortionConfig, model: Model, context: Context, claim: Callable[[float], Claim]
) -> Found:
    """Quantize copies of a model until one meets the target; the model itself stays as it is.

    Args:
        config: of the technique.
        model: what to quantize.
        context: of the stage.
        claim: makes the claim of a figure, which is part of what an artifact holds.

    Raises:
        StageError: if the target cannot be measured or met.
    """
    selected = config.select(model)
    weights, _ = config.fitting(model)  # of the others no packing comes
    target = None if config.target is None else _measurable(*config.target.chosen(), context)
    seen, judging = _inputs(config, target, context)
    # Before all else: what cannot be measured has to be told before long work.
    measure = _measure(target, judging, weights, model, context, claim) if target else None
    sensitivities = _sensitivities(config, model, weights, context, seen)
    settings = Settings(config.quantizer, config.error_feedback, config.steps)
    begun = 0

    def quantize(slope: float) -> list[Packing | None]:
        def progress(name: str, fraction: float) -> None:
            # How many trials it takes is not known: each is a third of what is left.
            done = 1 - (2 / 3) ** (begun + fraction) if target else fraction
            context.progress(name, _MEASURING + (1 - _MEASURING) * done)

        return quantize_weights(selected, model.masks, sensitivities, settings, slope, progress)

    unknown = not_reached(sensitivities, weights)
    if measure is None or target is None:
        assert config.slope is not None
        return Found(config.slope, quantize(config.slope), notes=unknown)
    name, value = target
    sign = 1 if name in SIZES else -1
    best: dict[float, list[Packing | None]] = {}

    def attempt(effort: float) -> Trial:
        nonlocal begun
        packings = quantize(2 ** (sign * effort))
        begun += 1
        context.progress(f"judging trial {begun}")
        measured = measure(packed_copy(model, config.select, packings))
        if measured.surplus >= 0 and effort < min(best, default=math.inf):
            best.clear()  # those of all trials would take as much memory as the model
            best[effort] = packings
        return Trial(effort, measured.surplus, measured.figure, bits_per_weight(packings))

    file = context.checkpoint / "trials.json"
    trials = _read_trials(file)
    begun = len(trials)
    search = _search(name, value, weights, sensitivities)
    trials = run_search(search, attempt, trials, lambda done: _write_trials(file, done))
    met = least_met(trials)
    if met is None:
        raise StageError(_unmet(name, value, max(trials, key=lambda trial: trial.effort)))
    slope = 2 ** (sign * met.effort)
    notes = {
        "trials": [
            {"slope": 2 ** (sign * t.effort), name: t.figure, "bits_per_weight": t.bits_per_weight}
            for t in trials
        ],
        "judged_on": _judged_on(name, seen, judging),
        **unknown,
    }
    return Found(slope, best.get(met.effort) or quantize(slope), met.figure, notes)


def _measurable(name: str, value: float, context: Context) -> tuple[str, float]:
    """Return the target, or what takes as long to meet where `zoopress plan` only times.

    Its small models have neither labels nor files.
    """
    if context.task is not None and (context.stored_bytes is not None or name not in SIZES):
        return name, value
    if name == "ratio":
        return "bits_per_weight", 32 / value
    return ("bits_per_weight", _FIRST_BITS) if name in SIZES else ("cosine", 0.99)


def _inputs(
    config: RateDistortionConfig, target: tuple[str, float] | None, context: Context
) -> tuple[Sequence[Any], Sequence[Any]]:
    """Return calibration inputs for sensitivities, and for judging fidelity."""
    fidelity = target is not None and target[0] not in {*SIZES, "max_metric_drop"}
    if fidelity and config.sensitivity == "calibration":
        return split_batches(context.batches())
    seen = context.batches() if config.sensitivity == "calibration" else ()
    return seen, context.batches() if fidelity else ()


def _measure(
    target: tuple[str, float],
    judging: Sequence[Any],
    weights: Sequence[Weight],
    model: Model,
    context: Context,
    claim: Callable[[float], Claim],
) -> Measure:
    name, value = target
    if name == "bits_per_weight":
        count = sum(weight.parameter.numel() for weight in weights)
        return bits_measure(context, {weight.name for weight in weights}, count, value)
    if name in SIZES:
        limit = context.original_bytes / value if name == "ratio" else value
        names = [weight.name for weight in weights]
        outcome = Outcome(names, [claim(context.original_bytes / limit)])
        return size_measure(context, limit, outcome)
    original = model.module if context.teacher is None else context.teacher(None)
    if name == "max_metric_drop":
        return metric_measure(context, original, value)
    return fidelity_measure(context, original, judging, name, value)


def _sensitivities(
    config: RateDistortionConfig,
    model: Model,
    weights: Sequence[Weight],
    context: Context,
    seen: Sequence[Any],
) -> Mapping[str, Sensitivity]:
    """Return what was measured before the run was killed, or measure it."""
    if config.sensitivity == "none":
        return {}
    if context.task is None:  # to be timed: as much work for the solver as any other
        return {w.name: Sensitivity(torch.eye(w.matrix().shape[1])) for w in weights}
    file = context.checkpoint / "sensitivities.safetensors"
    known = read_sensitivities(file)
    if known is None:

        def progress(item: str, fraction: float | None = None) -> None:
            context.progress(item, fraction and _MEASURING * fraction)

        known = measure_sensitivities(
            model.module,
            weights,
            replace(context, batches=lambda: seen, progress=progress),
            data=config.sensitivity,
        )
        write_sensitivities(file, known)
    return known


def _search(
    name: str, value: float, weights: Sequence[Weight], sensitivities: Mapping[str, Sensitivity]
) -> Search:
    """Return where to look for the slope.

    log₂ of the bytes falls by about ½ ÷ (bits a weight) where that of the slope rises by one, log₂
    of the distance of outputs rises as much as that of the slope.
    """
    count = sum(weight.parameter.numel() for weight in weights)
    bits = _FIRST_BITS
    if name == "bits_per_weight":
        bits = value
    elif name == "ratio":
        bits = 32 / value
    elif name == "size_bytes":
        bits = 8 * value / count
    middle, finest, coarsest = (
        math.log2(starting_slope(weights, sensitivities, wanted))
        for wanted in (min(bits, _FINEST_BITS), _FINEST_BITS, _COARSEST_BITS)
    )
    if name in SIZES:
        return Search(middle, 0.5 / max(0.5, bits), finest, coarsest, 0.004, 0.01)
    # Labels of some hundred samples change one by one: what lies between is noise.
    resolution = 0.06 if name in ("cosine", "probability_loyalty") else 0.15
    return Search(-middle, 1.0, -coarsest, -finest, resolution, resolution)


def _unmet(name: str, value: float, last: Trial) -> str:
    """Say what was reached, and what to do."""
    reached = f"at {last.bits_per_weight:.3g} bits per weight it is {last.figure:.5g}"
    if name in SIZES:
        figure = "the ratio" if name in ("ratio", "size_bytes") else "it"
        return (
            f"The target {name} {value:g} cannot be met: at {last.bits_per_weight:.3g} bits per "
            f"weight {figure} is {last.figure:.5g}. The rest is side information, tensors that are "
            "not selected, and other files. Ask for less, select more with 'kinds' and 'include', "
            "or remove layers or neurons in a stage before."
        )
    return (
        f"The target {name} {value:g} cannot be met: {reached}, a standard error not yet "
        "subtracted. So much the stages before have cost, or this few inputs can tell no better. "
        "Ask for less, make the stages before milder, or give the card more 'calibration_samples'."
    )


def _judged_on(name: str, seen: Sequence[Any], judging: Sequence[Any]) -> str:
    if name in SIZES:
        return "files" if name != "bits_per_weight" else "coded weights"
    if name == "max_metric_drop":
        return "validation split, one standard error below"
    count = sum(map(batch_length, judging))
    shared = ", which the sensitivities have seen" if judging is seen and seen else ""
    return f"{count} calibration inputs{shared}; one standard error below their mean"


def _read_trials(file: Path) -> list[Trial]:
    try:
        return [Trial(**trial) for trial in json.loads(file.read_text())]
    except (OSError, ValueError, TypeError):
        return []


def _write_trials(file: Path, trials: Sequence[Trial]) -> None:
    write_atomic(file, json.dumps([asdict(trial) for trial in trials]))
