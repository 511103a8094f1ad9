"""Binarization: each weight is the sign of what it was, times a scale; or a sum of several such.

Sources: Rastegari et al. 2016, arXiv:1603.05279, section 3.1 (binary-weight networks of XNOR-Net);
Lin, Zhao & Pan 2017, arXiv:1711.11294 (ABC-Net, several signs); Hou, Yao & Kwok 2017,
arXiv:1611.01600, proposition 3.1 (the scale that a diagonal Hessian asks for).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from zoopress.plugins import hookimpl
from zoopress.techniques import MASKS, MATRICES, Effects, Kind, Outcome, Technique, WeightSelection
from zoopress_plugins.quantization.level_quantization import levels_form
from zoopress_plugins.quantization.packing_weights import Form, pack_weights

if TYPE_CHECKING:
    from torch import Tensor

    from zoopress.models.model import Model
    from zoopress.models.weights import Weight
    from zoopress.techniques import Context


class BinarizationConfig(WeightSelection):
    """How many signs, and what shares their scales."""

    kinds: tuple[Kind, ...] = Field(default=MATRICES, min_length=1, description="kinds of weights")
    bases: int = Field(
        default=1,
        ge=1,
        le=4,
        description="signs of each weight, with a scale each; 1: scaled signs as in XNOR-Net, "
        "more: as in ABC-Net",
    )
    group_size: int | None = Field(
        default=None, ge=8, description="weights that share scales; a whole row without it"
    )
    weighting: Literal["none", "inputs", "curvature"] = Field(
        default="none",
        description="what an error's square is multiplied by; with `curvature` scales are those of "
        "loss-aware binarization",
    )


def bases_form(
    matrix: Tensor, bases: int, group_size: int | None, importance: Tensor | None = None
) -> Form:
    """Return a matrix as sums of scaled signs, packed.

    Args:
        matrix: [rows, columns], float.
        bases: signs of each weight.
        group_size: columns that share scales; a whole row if None.
        importance: broadcasts to the matrix.
    """
    from zoopress.coding.bits import pack_codes
    from zoopress_plugins.quantization.grids.bases import fit_bases

    if bases == 1:
        return levels_form(matrix, "binary", 1, group_size, importance)
    size = min(group_size or matrix.shape[1], matrix.shape[1])
    codes, scale = fit_bases(matrix, bases, size, importance)
    tensors = {"codes": pack_codes(codes, bases), "scale": scale}
    return Form("bases", {"bases": bases, "group_size": size}, tensors, bases)


class Binarization(Technique[BinarizationConfig]):
    """Keep signs of weights and a scale for each row; activations stay floating point."""

    name = "binarization"
    family = "quantization"
    config_type = BinarizationConfig
    needs = frozenset({"calibration"})

    def effects(self) -> Effects:
        """Require float weights, and leave none; signs have no zero, so masks go."""
        properties = self.config.properties()
        return Effects(requires=properties, destroys=properties | {MASKS})

    def apply(self, model: Model, context: Context) -> Outcome:
        """Pack the selected weights."""
        from zoopress_plugins.quantization.weighting import importances

        config, notes = self.config, dict[str, Any]()
        weights, left = config.fitting(model)
        importance = importances(config.weighting, model, weights, context, notes)

        def form(weight: Weight) -> Form:
            return bases_form(weight.matrix(), config.bases, config.group_size, importance(weight))

        remedy = "Use a larger 'group_size', fewer 'bases', or leave this stage out."
        return pack_weights(model, weights, context, form, left, remedy, notes)

    def working_bytes(self, total: int, largest: int) -> int:
        """Return room for a weight's codes and importances, and for measured ones of all."""
        return 4 * largest + (total if self.config.weighting != "none" else 0)


@hookimpl
def zoopress_techniques() -> list[type[Binarization]]:
    """Register the technique."""
    return [Binarization]


@hookimpl
def zoopress_layers() -> dict[str, str]:
    """Register what artifacts call a weight of several signs."""
    return {"bases": "zoopress_plugins.quantization.forms.bases:BasesWeight"}
