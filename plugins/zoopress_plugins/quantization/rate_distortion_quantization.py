"""Rate–distortion quantization: every bit goes where it saves the most of what outputs lose.

Weights become integers times steps, chosen so that distortion + slope · bits is least: the bits are
those that the entropy coder will take, the distortion is what an error does to the outputs. At the
optimum all weights have the same slope, so one number sets the size of the whole model; it is found
by a search for a target of size or of fidelity.

Sources: Shoham and Gersho 1988, doi:10.1109/29.90373 (one slope for all); Frantar et al. 2022,
arXiv:2210.17323 (error feedback); Schwarz et al. 2019, doi:10.1109/DCC.2019.00017 (trellis); see
`grids` for the rest.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field, model_validator

from zoopress.errors import StageError
from zoopress.plugins import hookimpl
from zoopress.techniques import (
    MATRICES,
    Claim,
    Config,
    Effects,
    Kind,
    Outcome,
    Technique,
    WeightSelection,
)

if TYPE_CHECKING:
    from zoopress.models.model import Model
    from zoopress.techniques import Context


class Target(Config):
    """Give one."""

    ratio: float | None = Field(
        default=None, gt=1, description="original's bytes ÷ artifact's bytes, all files counted"
    )
    size_bytes: int | None = Field(default=None, gt=0, description="bytes of the artifact's files")
    bits_per_weight: float | None = Field(
        default=None, gt=0, le=16, description="mean bits of the selected weights, steps included"
    )
    cosine: float | None = Field(
        default=None, gt=0, lt=1, description="mean cosine to the original's outputs"
    )
    label_loyalty: float | None = Field(
        default=None, gt=0, lt=1, description="share of samples with the original's label"
    )
    probability_loyalty: float | None = Field(
        default=None, gt=0, lt=1, description="mean 1 − √(Jensen–Shannon divergence)"
    )
    max_metric_drop: float | None = Field(
        default=None, ge=0, description="how much worse the task's metric may get"
    )

    @model_validator(mode="after")
    def _check(self) -> Target:
        given = self.model_dump(exclude_none=True)
        if len(given) != 1:
            raise ValueError(
                f"give exactly one of {', '.join(map(repr, type(self).model_fields))}, "
                f"not {sorted(given) or 'none'}"
            )
        return self

    def chosen(self) -> tuple[str, float]:
        """Return the name of the target and its value."""
        ((name, value),) = self.model_dump(exclude_none=True).items()
        return name, value

    def claim(self, figure: float, context: Context) -> Claim:
        """Return what was asked for and a figure reached, so that more of it is better."""
        name, value = self.chosen()
        # Rounded, since it is written to the manifest, whose bytes count.
        figure = float(f"{figure:.6g}")
        if name == "bits_per_weight":
            return Claim("bits saved of 32 per weight", 32 - value, 32 - figure, 0)
        if name == "max_metric_drop":
            return Claim("gain of the metric on validation data", -value, -figure, 0)
        if name in ("ratio", "size_bytes"):
            ratio = value if name == "ratio" else context.original_bytes / value
            return Claim("compression ratio", ratio, figure, 1e-5)
        return Claim(f"{name} on calibration inputs", value, figure, 0)


class RateDistortionConfig(WeightSelection):
    """What to reach and how; give `target` or `slope`."""

    kinds: tuple[Kind, ...] = Field(
        default=(*MATRICES, "embedding", "vector"),
        min_length=1,
        description="kinds of weights",
    )
    target: Target | None = Field(
        default=None,
        description="what the search stops at: one of `ratio`, `size_bytes`, `bits_per_weight`, "
        "`cosine`, `label_loyalty`, `probability_loyalty`, `max_metric_drop`",
    )
    slope: float | None = Field(
        default=None, gt=0, description="distortion that a bit is worth, instead of a target"
    )
    quantizer: Literal["uniform", "trellis"] = Field(
        default="trellis",
        description="whether any integer may follow any other, or those of a trellis",
    )
    sensitivity: Literal["calibration", "synthetic", "none"] = Field(
        default="calibration",
        description="on which inputs to measure what an error does to the outputs: those of the "
        "card, made-up ones; or `none`, which counts all errors alike",
    )
    error_feedback: bool = Field(
        default=True,
        description="whether columns still to come make up for the errors of those before; needs "
        "a sensitivity",
    )
    steps: Literal["tensor", "row", "column", "both"] = Field(
        default="both", description="what has a step of its own"
    )

    @model_validator(mode="after")
    def _check(self) -> RateDistortionConfig:
        if (self.target is None) == (self.slope is None):
            given = "both" if self.target else "none"
            raise ValueError(
                f"give either 'target', such as {{ratio: 12}}, or 'slope'; {given} is given"
            )
        return self


class RateDistortionQuantization(Technique[RateDistortionConfig]):
    """Quantize weights for the entropy coder, to a target of size or fidelity."""

    name = "rate_distortion_quantization"
    family = "quantization"
    config_type = RateDistortionConfig
    needs = frozenset({"calibration"})

    def __init__(self, config: RateDistortionConfig) -> None:
        super().__init__(config)
        sizes = (None, "ratio", "size_bytes", "bits_per_weight")
        if (config.target.chosen()[0] if config.target else None) not in sizes:
            # Of the stage, not of the class: bytes are counted without the original.
            self.__dict__.update(needs=frozenset({"calibration", "teacher"}))

    def effects(self) -> Effects:
        """Require float weights, and leave none of the kinds it works on."""
        return Effects(requires=self.config.properties(), destroys=self.config.properties())

    def apply(self, model: Model, context: Context) -> Outcome:
        """Find the slope that meets the target, and pack the weights quantized with it."""
        from zoopress.models.fitness import unfit_for_few_bits
        from zoopress_plugins.quantization.rate_distortion.packing import bits_per_weight, pack
        from zoopress_plugins.quantization.rate_distortion.slope_search import find_slope

        found = find_slope(self.config, model, context, lambda figure: self.claim(figure, context))
        weights = self.config.select(model)
        left = {
            weight.name: unfit_for_few_bits(weight) or "it takes fewer bits as it is"
            for weight, packing in zip(weights, found.packings, strict=True)
            if packing is None
        }
        packed = pack(model, weights, found.packings)
        if not packed:
            raise StageError(
                "Every weight takes fewer bits as it is. Leave this stage out, or select larger "
                "weights with 'kinds' and 'include'."
            )
        return Outcome(
            touched=packed,
            claims=[] if found.figure is None else [self.claim(found.figure, context)],
            notes={
                "slope": found.slope,
                "bits_per_weight": bits_per_weight(found.packings),
                "left_in_floating_point": len(left),
                "left": left,
                **found.notes,
            },
        )

    def claim(self, figure: float, context: Context) -> Claim:
        """Return what was asked for and a figure reached, so that more of it is better."""
        assert self.config.target is not None
        return self.config.target.claim(figure, context)

    def gradient_passes(self) -> float:
        """Return how often sensitivities take gradients: once, of a few samples at a time."""
        return 0.0 if self.config.sensitivity == "none" else 2.0

    def work(self, rows: int, columns: int) -> float:
        """Return the multiplications that error feedback takes, beside what each weight does."""
        feedback = columns * (columns + rows) if self.config.error_feedback else 0
        return float(rows * columns + feedback / 100)

    def working_bytes(self, total: int, largest: int) -> int:
        """Return room for sensitivities, codes of two trials, and the solver's copies of a weight.

        Sensitivities of a matrix that is as wide as it is high take as much as the matrix.
        """
        return 2 * total + 10 * largest


@hookimpl
def zoopress_techniques() -> list[type[RateDistortionQuantization]]:
    """Register the technique."""
    return [RateDistortionQuantization]


@hookimpl
def zoopress_layers() -> dict[str, str]:
    """Register what artifacts call a weight of integers times steps."""
    return {"grid": "zoopress_plugins.quantization.forms.grid:GridWeight"}
