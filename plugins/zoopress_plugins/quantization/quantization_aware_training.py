"""Quantization-aware training: a model is trained while it computes with what will be stored.

Each weight has a float shadow that steps of the optimizer move; forward passes see it rounded, and
gradients pass straight through. How it is rounded is a choice, one quantizer a file in `trained/`;
the codes that come out are those that the best evaluation saw.

Sources: Jacob et al. 2018, arXiv:1712.05877, section 3; Bengio et al. 2013, arXiv:1308.3432
(straight-through); Polino et al. 2018, arXiv:1802.05668, section 3 (quantized distillation); those
of each quantizer are in its file.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from pydantic import Field, model_validator

from zoopress.errors import StageError
from zoopress.plugins import hookimpl
from zoopress.techniques import (
    ACTIVATION_RANGES,
    MASKS,
    MATRICES,
    Effects,
    Kind,
    Outcome,
    Technique,
    WeightSelection,
)
from zoopress.training.config import TrainingConfig
from zoopress_plugins.distillation.distillation import Distillation, DistillationConfig
from zoopress_plugins.quantization.packing_weights import pack_weights
from zoopress_plugins.quantization.trained import (
    WEIGHT_BITS,
    InputScheme,
    WeightScheme,
    has_zero,
    input_scheme,
    weight_scheme,
)

if TYPE_CHECKING:
    from zoopress.models.model import Model
    from zoopress.models.weights import Weight
    from zoopress.techniques import Context
    from zoopress.training.constraints import Constraint
    from zoopress.training.term import Term
    from zoopress_plugins.quantization.trained.quantizer import InputQuantizer, WeightQuantizer
    from zoopress_plugins.quantization.trained.weights.differentiable_dynamic import (
        DifferentiableDynamic,
    )


class QuantizationAwareTrainingConfig(WeightSelection):
    """What rounds weights and inputs, and the training in which it does."""

    kinds: tuple[Kind, ...] = Field(
        default=(*MATRICES, "embedding"), min_length=1, description="kinds of weights"
    )
    weights: WeightScheme = Field(
        default="learned_step",
        description="what rounds weights: `learned_step` (LSQ), `dorefa`, `scaled_sign` "
        "(XNOR-Net), `binary_connect`, `ternary` (fixed thresholds), `trained_ternary`, "
        "`ternary_connect` (drawn), `stochastic_rounding` (fixed point), "
        "`differentiable_dynamic` (DDQ: each layer learns its levels and bits)",
    )
    bits: int | None = Field(
        default=None,
        ge=1,
        le=8,
        description="bits of a weight's code; by default 4, or what the scheme has; of "
        "`differentiable_dynamic` their mean over weights",
    )
    bit_penalty: float | None = Field(
        default=None,
        ge=0,
        description="of `differentiable_dynamic`: weight of what bits above the target cost, their "
        "share of it; 1 by default",
    )
    inputs: InputScheme | None = Field(
        default=None,
        description="what rounds the inputs of the same layers: `learned_step` (LSQ), `pact`, "
        "`dorefa`, `half_wave_gaussian`, `sign` (XNOR-Net); by default they stay floats",
    )
    input_bits: int | None = Field(
        default=None, ge=1, le=8, description="bits of an input's code; 8 by default, 1 of `sign`"
    )
    periodic: float = Field(
        default=0.0,
        ge=0,
        description="weight of a penalty, sin²(π w ÷ step), that pulls shadows to multiples of "
        "learned steps",
    )
    stochastic_precision: float = Field(
        default=0.0,
        ge=0,
        description="weight of what the model learns from itself with inputs of up to 8 bits, "
        "drawn for each layer and batch (SPEQ)",
    )
    self_study: TrainingConfig | None = Field(
        default=None,
        description="a training on labels alone before the teacher comes, as QKD has it",
    )
    training: DistillationConfig = Field(
        description="the training, with the keys of `distillation`, such as {epochs: 10}"
    )

    @model_validator(mode="after")
    def _check_training(self) -> QuantizationAwareTrainingConfig:
        allowed = WEIGHT_BITS[self.weights]
        if self.bits is not None and self.bits not in allowed:
            raise ValueError(
                f"'bits' of 'weights: {self.weights}' may be {', '.join(map(str, allowed))}, not "
                f"{self.bits}"
            )
        if self.bit_penalty is not None and self.weights != "differentiable_dynamic":
            raise ValueError(
                f"'bit_penalty' has no meaning for 'weights: {self.weights}': all layers have the "
                "same bits; use 'weights: differentiable_dynamic', or leave it out"
            )
        if self.periodic and self.weights != "learned_step":
            raise ValueError("'periodic' pulls to learned steps; use 'weights: learned_step'")
        if self.inputs == "sign" and self.input_bits not in (None, 1):
            raise ValueError(f"'inputs: sign' has 1 bit, not {self.input_bits}")
        if self.stochastic_precision and (
            self.inputs in (None, "sign") or self.code_bits_of_inputs == 8
        ):
            raise ValueError(
                "'stochastic_precision' teaches with inputs of more bits: give 'inputs' other than "
                "'sign', and 'input_bits' below 8"
            )
        trainings = [self.training, *([self.self_study] if self.self_study else [])]
        if any(each.lora is not None for each in trainings):
            raise ValueError("'lora' leaves weights as they are; leave it out of 'training'")
        return self

    @property
    def code_bits_of_inputs(self) -> int:
        """Bits of an input's code."""
        return self.input_bits or (1 if self.inputs == "sign" else 8)

    @property
    def code_bits(self) -> int:
        """Bits of a weight's code."""
        allowed = WEIGHT_BITS[self.weights]
        return self.bits or (4 if 4 in allowed else allowed[0])


class QuantizationAwareTraining(Technique[QuantizationAwareTrainingConfig]):
    """Train a model while it computes with rounded weights and inputs, and store these."""

    name = "quantization_aware_training"
    family = "quantization"
    config_type = QuantizationAwareTrainingConfig
    needs = Distillation.needs
    timed = False

    def effects(self) -> Effects:
        """Require float weights, and leave none of the kinds it works on."""
        config = self.config
        ranges = frozenset({ACTIVATION_RANGES} if config.inputs else ())
        without_zero = frozenset(() if has_zero(config.weights) else {MASKS})
        return Effects(
            requires=config.properties(), destroys=config.properties() | without_zero, adds=ranges
        )

    def apply(self, model: Model, context: Context) -> Outcome:
        """Train with quantizers in the weights' places, and pack what they give."""
        from zoopress_plugins.quantization.trained.held import AfterSteps, held
        from zoopress_plugins.quantization.trained.weights.differentiable_dynamic import BitBudget

        config, notes = self.config, dict[str, Any]()
        weights, left = config.fitting(model)
        rounding = self._weight_quantizers(model, weights, left)
        inputs = self._input_quantizers(model, [weight for weight, _ in rounding], context, notes)
        for quantizer in (*(q for _, q in rounding), *inputs.values()):
            quantizer.to(context.device)

        dynamic = self._dynamic(rounding)

        def constrain(steps: int) -> Constraint:
            other = context.constrain(steps) if context.constrain else None
            if dynamic:
                other = BitBudget(dynamic, config.code_bits, steps, other)
            return AfterSteps([*(q for _, q in rounding), *inputs.values()], other)

        with held(model, rounding, inputs):
            terms = [*context.terms, *self._terms(model, context, rounding, inputs)]
            within = replace(context, constrain=constrain, terms=terms)
            if config.self_study:
                notes["self_study"] = within.train(model, config.self_study).notes()
            trained = Distillation(config.training).apply(model, within)
        model.values_changed()
        by_name = {weight.name: quantizer for weight, quantizer in rounding}
        if dynamic:
            notes["bits"] = {
                weight.name: int(by_name[weight.name].form().bits) for weight, _ in rounding
            }
        packed = pack_weights(
            model,
            [weight for weight, _ in rounding],
            context,
            lambda weight: by_name[weight.name].form(),
            left,
            "Use fewer bits, or leave this stage out.",
            {**notes, **trained.notes},
        )
        for name, grid in inputs.items():
            model.quantize_input(name, *grid.grid())
        others = [name for name in trained.touched if name in model.tensors()]
        return replace(packed, touched=list(dict.fromkeys([*packed.touched, *others, *inputs])))

    def _dynamic(
        self, rounding: Sequence[tuple[Weight, WeightQuantizer]]
    ) -> list[DifferentiableDynamic]:
        """Return the quantizers that learn how many bits they have."""
        from zoopress_plugins.quantization.trained.weights.differentiable_dynamic import (
            DifferentiableDynamic,
        )

        return [each for _, each in rounding if isinstance(each, DifferentiableDynamic)]

    def _terms(
        self,
        model: Model,
        context: Context,
        rounding: Sequence[tuple[Weight, WeightQuantizer]],
        inputs: Mapping[str, InputQuantizer],
    ) -> list[Term]:
        """Return what is lowered besides the training's own loss."""
        from zoopress_plugins.quantization.trained.terms import PulledToSteps, StochasticPrecision
        from zoopress_plugins.quantization.trained.weights.differentiable_dynamic import BitPenalty
        from zoopress_plugins.quantization.trained.weights.learned_step import LearnedStep

        config, terms = self.config, list["Term"]()
        if dynamic := self._dynamic(rounding):
            penalty = 1.0 if config.bit_penalty is None else config.bit_penalty
            terms.append(BitPenalty(penalty, config.code_bits, dynamic))
        if config.periodic:
            steps = [q for _, q in rounding if isinstance(q, LearnedStep)]
            terms.append(PulledToSteps(config.periodic, steps))
        if config.stochastic_precision:
            assert context.task is not None
            grids = list(inputs.values())
            weight = config.stochastic_precision
            terms.append(StochasticPrecision(weight, context.task, model.module, grids))
        return terms

    def _weight_quantizers(
        self, model: Model, weights: Sequence[Weight], left: dict[str, str]
    ) -> list[tuple[Weight, WeightQuantizer]]:
        """Return what rounds each weight; of those that would take no fewer bytes, say so.

        Raises:
            StageError: if a weight is pruned and has no code for zero, or none takes fewer bytes.
        """
        config = self.config
        pruned = [weight.name for weight in weights if weight.name in model.masks]
        if pruned and not has_zero(config.weights):
            raise StageError(
                f"'weights: {config.weights}' has no zero, and weights are pruned: "
                f"{', '.join(pruned[:3])}. Take 'ternary', 'trained_ternary' or 'learned_step', or "
                "leave them out with 'exclude'."
            )
        found = []
        for weight in weights:
            quantizer = weight_scheme(config.weights)(weight, config.code_bits)
            size = quantizer.expected_bytes()
            if size >= weight.parameter.nbytes:
                left[weight.name] = f"packed it would take {size:,} bytes, as many or more"
            else:
                found.append((weight, quantizer))
        if not found:
            raise StageError(
                f"None of the {len(weights)} selected weights takes fewer bytes packed. Use fewer "
                "bits, or leave this stage out."
            )
        return found

    def _input_quantizers(
        self, model: Model, weights: Sequence[Weight], context: Context, notes: dict[str, Any]
    ) -> Mapping[str, InputQuantizer]:
        """Return what rounds the inputs of the weights' layers, by the layers' names.

        Raises:
            StageError: if there is no layer whose input can be rounded so.
        """
        from zoopress.models.input_grid import no_input_grid
        from zoopress_plugins.quantization.trained.seen_inputs import seen_inputs

        config = self.config
        if config.inputs is None:
            return {}
        kind, bits = input_scheme(config.inputs), config.code_bits_of_inputs
        layers, kept = {}, dict[str, str]()
        for path in dict.fromkeys(place.path for w in weights for place in w.locations):
            layer = model.module.get_submodule(path)
            reason = no_input_grid(layer)
            if reason is None:
                layers[path] = layer
            else:
                kept[path] = reason
        seen = seen_inputs(layers, lambda b: context.call(model.module, b), context.batches())
        found = {}
        for path in layers:
            told = seen.get(path)
            reason = "no calibration input reaches it" if told is None else kind.refusal(told)
            if told is not None and told.low < 0 and bits == 1 and config.inputs != "sign":
                reason = "its input goes below zero, for which one bit is 'sign' alone"
            if told is None or reason:
                kept[path] = str(reason)
            else:
                found[path] = kind(told, bits)
        if kept:
            notes["inputs_left"] = kept
        if not found:
            reasons = "; ".join(f"{name}: {reason}" for name, reason in list(kept.items())[:3])
            raise StageError(
                f"No layer's input can be rounded by 'inputs: {config.inputs}': {reasons}. Take "
                "another, or leave 'inputs' out."
            )
        notes["inputs_rounded"] = len(found)
        return found

    def cards(self) -> Sequence[str]:
        """Return the teacher's card, if it is another than the model's own."""
        return Distillation(self.config.training).cards()

    def training_work(self, training: int, validation: int) -> tuple[int, int]:
        """Return what both trainings do, and the passes of the model that teaches itself."""
        trained, looked_at = Distillation(self.config.training).training_work(training, validation)
        if self.config.self_study:
            before = self.config.self_study.work(training, validation)
            trained, looked_at = trained + before[0], looked_at + before[1]
        return trained, looked_at + (trained if self.config.stochastic_precision else 0)

    def working_bytes(self, total: int, largest: int) -> int:
        """Return room for the training, shadows, and what a pass keeps of rounding them."""
        training = Distillation(self.config.training).working_bytes(total, largest)
        # Whoever learns levels keeps, for the backward pass, which of them each weight takes.
        each = 12 if self.config.weights == "differentiable_dynamic" else 4
        return training + each * total


@hookimpl
def zoopress_techniques() -> list[type[QuantizationAwareTraining]]:
    """Register the technique."""
    return [QuantizationAwareTraining]
