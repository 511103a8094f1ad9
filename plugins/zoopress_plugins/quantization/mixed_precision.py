"""Mixed precision: bits of each weight by a budget, from measured damage, by an exact solver.

Each weight is rounded alone to every number of bits, and what that does to the outputs is measured.
Which bits every weight gets, so that the sum of damages is least within the budget, is a
multiple-choice knapsack, which is solved exactly, or with the gap to the optimum told.

Sources: Hubara et al. 2021, arXiv:2006.10518, section 3.2 (bits by integer programming); Dong et
al. 2020, arXiv:1911.03852, section 3.2 (HAWQ-V2: sums of sensitivities under a budget).
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, field_validator

from zoopress.errors import StageError
from zoopress.plugins import hookimpl
from zoopress.techniques import Effects, Outcome, Technique
from zoopress_plugins.quantization.rate_distortion_quantization import Target
from zoopress_plugins.quantization.weight_quantization import UniformGridConfig

if TYPE_CHECKING:
    from zoopress.models.model import Model
    from zoopress.models.weights import Weight
    from zoopress.techniques import Context
    from zoopress_plugins.quantization.bit_allocation.budget_search import Found
    from zoopress_plugins.quantization.bit_allocation.options import Allocation

_CLAIM_BYTES = 16
"""By which a manifest may differ that has the figure reached, not the one asked for."""
_SIZES = ("ratio", "size_bytes", "bits_per_weight")


class MixedPrecisionConfig(UniformGridConfig):
    """The budget, the bits to choose from, and how damage is measured."""

    target: Target = Field(
        description="the budget: one of `ratio`, `size_bytes`, `bits_per_weight`, `cosine`, "
        "`label_loyalty`, `probability_loyalty`, `max_metric_drop`",
    )
    bits: tuple[int, ...] = Field(
        default=(2, 3, 4, 5, 6, 7, 8), min_length=1, description="bits to choose from, 2 to 8"
    )
    floats: bool = Field(
        default=True, description="whether a weight may also stay in floating point"
    )
    sensitivity: Literal["outputs", "moments", "none"] = Field(
        default="outputs",
        description="the damage of a weight rounded alone: measured on the model's outputs; "
        "estimated on the layer's, by second moments of its inputs; or `none`, the relative error "
        "of the weight",
    )

    @field_validator("bits")
    @classmethod
    def _range(cls, bits: tuple[int, ...]) -> tuple[int, ...]:
        wrong = [b for b in bits if not 2 <= b <= 8]
        if wrong:
            raise ValueError(f"bits are 2 to 8, not {wrong[0]}; 'floats: true' adds floating point")
        return tuple(sorted(set(bits)))


class MixedPrecision(Technique[MixedPrecisionConfig]):
    """Share out bits among weights under a budget, and quantize them."""

    name = "mixed_precision"
    family = "quantization"
    config_type = MixedPrecisionConfig
    needs = frozenset({"calibration"})

    def __init__(self, config: MixedPrecisionConfig) -> None:
        super().__init__(config)
        if config.target.chosen()[0] not in _SIZES:
            # Of the stage, not of the class: bytes are counted without the original.
            self.__dict__.update(needs=frozenset({"calibration", "teacher"}))

    def effects(self) -> Effects:
        """Require float weights, and leave none of the kinds it works on."""
        return Effects(requires=self.config.properties(), destroys=self.config.properties())

    def apply(self, model: Model, context: Context) -> Outcome:
        """Measure damages, solve for the budget, and pack."""
        from zoopress_plugins.quantization.bit_allocation.options import widths_of

        config, notes = self.config, dict[str, Any]()
        weights, left = config.fitting(model)
        widths = [widths_of(weight, config) for weight in weights]
        small = [w.name for w, of in zip(weights, widths, strict=True) if of == [None]]
        left |= dict.fromkeys(small, "packed it would take as many bytes, or more")
        if len(small) == len(weights):
            raise StageError(
                f"None of the {len(weights)} selected weights takes fewer bytes packed: scales "
                "would cost what is saved. Use a larger 'group_size', fewer 'bits', or leave this "
                "stage out."
            )
        allocation, found = self._search(model, weights, widths, context, notes)
        bits = allocation.bits(found.options)
        before = sum(weight.parameter.nbytes for weight in weights)
        count = sum(weight.parameter.numel() for weight in weights)
        touched = []
        for weight in weights:
            width = bits[weight.name]
            if width is not None:
                form = allocation.forms.of(weight, width)
                model.pack(weight, form.packing, form.arguments, form.tensors)
                touched.append(weight.name)
        if not touched:
            raise StageError(
                f"The budget lets all {len(weights)} selected weights stay in floating point, "
                f"{before:,} bytes. Ask for less, or leave this stage out."
            )
        sizes = allocation.bytes()
        taken = sum(float(s[o]) for s, o in zip(sizes, found.options, strict=True))
        return Outcome(
            touched=touched,
            claims=[config.target.claim(found.figure, context)],
            notes={
                "bits": {name: "float" if b is None else b for name, b in bits.items()},
                "bits_per_weight": 8 * taken / count,
                "damage": found.damage,
                "optimality_gap": found.gap,
                "sensitivity": config.sensitivity,
                **notes,
                **({"trials": found.trials} if found.trials else {}),
                **({"left": left} if left else {}),
                **allocation.forms.notes(),
            },
        )

    def _search(
        self,
        model: Model,
        weights: list[Weight],
        widths: list[list[int | None]],
        context: Context,
        notes: dict[str, Any],
    ) -> tuple[Allocation, Found]:
        from zoopress_plugins.quantization.bit_allocation.budget_search import (
            to_fidelity,
            within_bytes,
            within_payload,
        )
        from zoopress_plugins.quantization.bit_allocation.damage import measure_damages
        from zoopress_plugins.quantization.bit_allocation.options import Allocation, Forms
        from zoopress_plugins.quantization.rate_distortion.target_measures import (
            fidelity_measure,
            metric_measure,
            split_batches,
        )

        config = self.config
        name, value = config.target.chosen()
        seen = judging = context.batches()
        measure = None
        if name not in _SIZES and context.task is not None:
            # Before all else: what cannot be measured has to be told before long work.
            original = model.module if context.teacher is None else context.teacher(None)
            if name == "max_metric_drop":
                measure = metric_measure(context, original, value)
            else:
                seen, judging = split_batches(context.batches())
                measure = fidelity_measure(context, original, judging, name, value)
        forms = Forms(model, weights, config, context)
        damages = measure_damages(model, weights, widths, forms, config, context, seen, notes)
        allocation = Allocation(model, weights, config, widths, damages, forms)
        count = sum(weight.parameter.numel() for weight in weights)
        if measure is not None:
            start = 1 - value if name != "max_metric_drop" else value
            return allocation, to_fidelity(allocation, name, value, measure, start)
        stored_bytes = context.stored_bytes
        if name == "bits_per_weight" or stored_bytes is None or name not in _SIZES:
            # Where `zoopress plan` only times, there are no files: as much work for the solver.
            own = 8 * sum(weight.parameter.nbytes for weight in weights) / count
            told = {"bits_per_weight": value, "ratio": own / value}.get(name, own / 6)
            return allocation, within_payload(allocation, told, count)
        limit = context.original_bytes / value if name == "ratio" else value
        outcome = Outcome(
            [weight.name for weight in weights],
            [config.target.claim(context.original_bytes / limit, context)],
        )
        tensors = {id(tensor): tensor for tensor in model.tensors().values()}
        others = sum(t.nbytes for t in tensors.values()) - sum(w.parameter.nbytes for w in weights)
        limit = int(limit) - _CLAIM_BYTES
        found = within_bytes(allocation, limit, others, lambda other: stored_bytes(other, outcome))
        return allocation, replace(found, figure=context.original_bytes / found.figure)

    def working_bytes(self, total: int, largest: int) -> int:
        """Return room for the codes of two candidates, and for a weight's dense forms."""
        return total // 2 + 10 * largest


@hookimpl
def zoopress_techniques() -> list[type[MixedPrecision]]:
    """Register the technique."""
    return [MixedPrecision]
