"""Ternarization: weights become −α, 0 or α, and take 1.6 bits each.

Sources: Li et al. 2016, arXiv:1605.04711 (ternary weight networks); He & Fan 2019,
arXiv:1810.01018 (thresholds of truncated normal weights); Zhu et al. 2017, arXiv:1612.01064
(a scale for each sign).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, model_validator

from zoopress.plugins import hookimpl
from zoopress.techniques import MATRICES, Effects, Kind, Outcome, Technique, WeightSelection
from zoopress_plugins.quantization.level_quantization import packed_levels
from zoopress_plugins.quantization.packing_weights import Form, pack_weights

if TYPE_CHECKING:
    from zoopress.models.model import Model
    from zoopress.models.weights import Weight
    from zoopress.techniques import Context


class TernarizationConfig(WeightSelection):
    """Where zero ends, and what shares scales."""

    kinds: tuple[Kind, ...] = Field(default=MATRICES, min_length=1, description="kinds of weights")
    threshold: Literal["optimal", "mean", "gaussian"] = Field(
        default="optimal",
        description="below what magnitude weights become zero: `optimal`, where the squared error "
        "is least; `mean`, 0.7 of the mean magnitude; `gaussian`, what is best for normal weights "
        "of the same deviation",
    )
    two_scales: bool = Field(
        default=False, description="whether negative weights have a scale of their own"
    )
    scale: Literal["row", "tensor"] = Field(
        default="row", description="what has a scale of its own, unless `group_size` is given"
    )
    group_size: int | None = Field(
        default=None, ge=8, description="weights of a row that share a scale"
    )
    weighting: Literal["none", "inputs", "curvature"] = Field(
        default="none", description="what an error's square is multiplied by"
    )

    @model_validator(mode="after")
    def _check(self) -> TernarizationConfig:
        if self.group_size is not None and self.scale == "tensor":
            raise ValueError("'group_size' has no meaning with 'scale: tensor'; give one of them")
        return self


class Ternarization(Technique[TernarizationConfig]):
    """Keep the sign of large weights and nothing of small ones; activations stay floating point."""

    name = "ternarization"
    family = "quantization"
    config_type = TernarizationConfig
    needs = frozenset({"calibration"})

    def effects(self) -> Effects:
        """Require float weights, and leave none of the kinds it works on."""
        return Effects(requires=self.config.properties(), destroys=self.config.properties())

    def apply(self, model: Model, context: Context) -> Outcome:
        """Pack the selected weights."""
        from zoopress_plugins.quantization.grids.ternary import fit_ternary
        from zoopress_plugins.quantization.weighting import importances

        config, notes = self.config, dict[str, Any]()
        weights, left = config.fitting(model)
        importance = importances(config.weighting, model, weights, context, notes)
        zeros: dict[str, float] = {}

        def form(weight: Weight) -> Form:
            matrix = weight.matrix()
            columns = matrix.shape[1]
            size = 0 if config.scale == "tensor" else min(config.group_size or columns, columns)
            codes, scale, negative = fit_ternary(
                matrix, size, config.threshold, config.two_scales, importance(weight)
            )
            zeros[weight.name] = round(float((codes == 1).float().mean()), 4)
            return packed_levels(codes, scale, "ternary", 2, size, negative)

        remedy = "Use a larger 'group_size', or leave this stage out."
        notes["zeros"] = zeros
        return pack_weights(model, weights, context, form, left, remedy, notes)

    def working_bytes(self, total: int, largest: int) -> int:
        """Return room for a weight's order, sums and codes, and for measured importances of all."""
        return 8 * largest + (total if self.config.weighting != "none" else 0)


@hookimpl
def zoopress_techniques() -> list[type[Ternarization]]:
    """Register the technique."""
    return [Ternarization]
