"""How much each weight, rounded alone to some bits, harms the model.

`outputs` is measured: 1 − the mean cosine of the outputs with and without, as reports' and
`activation_quantization`'s figures are. `moments` is an estimate that takes one pass: the error of
the layer's own outputs, ‖ΔW x‖² ÷ ‖W x‖² over the inputs that calibration shows. `none` asks no
data: ‖ΔW‖² ÷ ‖W‖². Errors of different weights have nothing to do with each other, so all three add
up as long as they are small.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from zoopress.evaluation.sensitivity import judged_outputs, outputs_distance
from zoopress.models.weights import as_matrix
from zoopress.store.files import write_atomic
from zoopress.tasks.batches import batch_length
from zoopress_plugins.quantization.activations.inputs import some_samples
from zoopress_plugins.quantization.bit_allocation.knapsack import Numbers
from zoopress_plugins.quantization.bit_allocation.options import Forms, dense_form
from zoopress_plugins.quantization.layer_moments import input_moments

if TYPE_CHECKING:
    from zoopress.models.model import Model
    from zoopress.models.weights import Weight
    from zoopress.techniques import Context
    from zoopress_plugins.quantization.mixed_precision import MixedPrecisionConfig

_MOST_SAMPLES = 32
_MOST_COST = 200_000_000_000
"""Bound of parameters × samples × measurements: the same on every machine."""
WORST = 2.0
"""Of outputs that are not finite: as far as a cosine goes."""

Damage = Callable[["Weight", Tensor], float]


def measure_damages(
    model: Model,
    weights: Sequence[Weight],
    widths: Sequence[Sequence[int | None]],
    forms: Forms,
    config: MixedPrecisionConfig,
    context: Context,
    batches: Sequence[Any],
    notes: dict[str, Any],
) -> list[Numbers]:
    """Return the damage of each weight [widths]; 0 where it stays in floating point.

    What a killed run measured is read from its checkpoint.

    Args:
        model: left as it was.
        weights: of it.
        widths: the bits to try.
        forms: makes what is tried.
        config: of the technique.
        context: of the stage.
        batches: calibration inputs.
        notes: gets how it was measured, and for which weights it could not be so.
    """
    file = context.checkpoint / "damages.json"
    known = _read(file)
    damage: Damage | None = None
    found = []
    for done, (weight, of_weight) in enumerate(zip(weights, widths, strict=True), start=1):
        own = known.setdefault(weight.name, {})
        asked = [bits for bits in of_weight if bits is not None and str(bits) not in own]
        for bits in asked:
            if damage is None:
                damage = _damage(model, weights, config, context, batches, len(config.bits), notes)
            dense = dense_form(weight, forms.of(weight, bits))
            own[str(bits)] = damage(weight, dense)
        if asked:
            write_atomic(file, json.dumps(known))
        found.append(np.array([0.0 if bits is None else own[str(bits)] for bits in of_weight]))
        context.progress(weight.name, done / len(weights))
    return found


def _damage(
    model: Model,
    weights: Sequence[Weight],
    config: MixedPrecisionConfig,
    context: Context,
    batches: Sequence[Any],
    widths: int,
    notes: dict[str, Any],
) -> Damage:
    if config.sensitivity == "none":
        return lambda weight, dense: _relative(weight, dense, None)
    if config.sensitivity == "moments":
        without: dict[str, Any] = {}
        moments = input_moments(model, weights, context, without)

        def of_layer(weight: Weight, dense: Tensor) -> float:
            found = _relative(weight, dense, moments(weight))
            if without:
                notes["without_moments"] = dict(without["not_corrected"])
            return found

        return of_layer
    count = sum(parameter.numel() for parameter in model.module.parameters()) + 1
    affordable = _MOST_COST // (count * max(1, widths * len(weights)))
    few = some_samples(batches, max(1, min(_MOST_SAMPLES, affordable)))

    def outputs() -> list[list[Tensor]]:
        run, task = context.call, context.task
        return [judged_outputs(run, model.module, batch, task) for batch in few]

    before = outputs()
    notes["measured_on_samples"] = sum(map(batch_length, few))

    def of_outputs(weight: Weight, dense: Tensor) -> float:
        # Not copied into the parameter: its memory may be a read-only file's. All layers that
        # share the parameter see the change.
        own = weight.parameter.data
        weight.parameter.data = dense
        try:
            after = outputs()
        finally:
            weight.parameter.data = own
        if not all(bool(output.isfinite().all()) for outputs in after for output in outputs):
            return WORST
        samples = sum(map(batch_length, few))
        return (
            sum(
                batch_length(batch) * outputs_distance(a, b)
                for batch, a, b in zip(few, before, after, strict=True)
            )
            / samples
        )

    return of_outputs


def _relative(weight: Weight, dense: Tensor, moments: Tensor | None) -> float:
    """Return ‖ΔW x‖² ÷ ‖W x‖² over inputs of moments E[x xᵀ]; without, of white ones."""
    with torch.no_grad():
        before = weight.matrix().float()
        change = before - as_matrix(dense, weight.output_axis).float()
        energies = []
        for matrix in (change, before):
            product = matrix if moments is None else matrix @ moments.to(matrix)
            energies.append(max(0.0, float((product.double() * matrix.double()).sum())))
    return energies[0] / energies[1] if energies[1] else float(energies[0] > 0)


def _read(file: Path) -> dict[str, dict[str, float]]:
    try:
        known = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    whole = isinstance(known, Mapping) and all(isinstance(v, Mapping) for v in known.values())
    return {name: dict(found) for name, found in known.items()} if whole else {}
