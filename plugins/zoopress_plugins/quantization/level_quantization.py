"""Level quantization: weights take the nearest of levels that a number format fixes.

Sources: Dettmers et al. 2023, arXiv:2305.14314 (NF4); Micikevicius et al. 2022, arXiv:2209.05433
(8-bit floats); Rouhani et al. 2023, arXiv:2310.10537 (4-bit floats in groups under scales that are
powers of two); Miyashita et al. 2016, arXiv:1603.01025 (powers of two); Gong et al. 2021,
arXiv:2005.08501 (scales by direction, then length); Fang et al. 2020, arXiv:2002.00104 (two grids).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, model_validator

from zoopress.plugins import hookimpl
from zoopress.techniques import MATRICES, Effects, Kind, Outcome, Technique, WeightSelection
from zoopress_plugins.quantization.packing_weights import Form, pack_weights

if TYPE_CHECKING:
    from torch import Tensor

    from zoopress.models.model import Model
    from zoopress.models.weights import Weight
    from zoopress.techniques import Context

Grid = Literal["nf4", "fp4", "fp8_e4m3", "fp8_e5m2", "power_of_two", "piecewise_linear"]
_CHOICE = {"power_of_two": (2, 5), "piecewise_linear": (3, 8)}
_BITS: dict[str, int] = {"nf4": 4, "fp4": 4, "fp8_e4m3": 8, "fp8_e5m2": 8}


class LevelQuantizationConfig(WeightSelection):
    """Which levels, and how to scale them."""

    kinds: tuple[Kind, ...] = Field(
        default=(*MATRICES, "embedding"),
        min_length=1,
        description="kinds of weights",
    )
    grid: Grid = Field(
        description="the levels: `nf4` (quantiles of normal weights), `fp4` (e2m1), `fp8_e4m3`, "
        "`fp8_e5m2`, `power_of_two` (and zero), `piecewise_linear` (two uniform grids, for the "
        "centre and the tails)"
    )
    bits: int | None = Field(
        default=None,
        ge=2,
        le=8,
        description="bits of a code: 2 to 5 of `power_of_two`, 3 to 8 of `piecewise_linear`, 4 by "
        "default; the others have theirs",
    )
    group_size: int | None = Field(
        default=None,
        ge=8,
        description="weights that share a scale; a whole row without it",
    )
    scales: Literal["bfloat16", "power_of_two"] = Field(
        default="bfloat16",
        description="what scales may be; with `grid: fp4`, `group_size: 32` and powers of two the "
        "values are those of MXFP4, and `grid: power_of_two` leaves nothing but shifts",
    )
    clipping: Literal["none", "mse"] = Field(
        default="mse",
        description="whether the levels span all weights, or are scaled to the least squared error",
    )
    weighting: Literal["none", "inputs", "curvature"] = Field(
        default="none",
        description="what an error costs: its square, or that times the mean square of what the "
        "weight is multiplied with, or times how much outputs change with the weight, measured on "
        "calibration inputs",
    )

    @model_validator(mode="after")
    def _check(self) -> LevelQuantizationConfig:
        if self.bits is not None and self.grid in _BITS:
            raise ValueError(f"{self.grid!r} has {_BITS[self.grid]} bits; leave 'bits' out")
        low, high = _CHOICE.get(self.grid, (4, 8))
        if not low <= self.code_bits <= high:
            raise ValueError(f"'bits' of {self.grid!r} must be {low} to {high}, not {self.bits}")
        if self.grid == "piecewise_linear" and (self.clipping, self.scales) != ("mse", "bfloat16"):
            raise ValueError(
                "'grid: piecewise_linear' looks for its steps: leave 'clipping' and 'scales' out"
            )
        if self.weighting != "none" and self.clipping == "none":
            raise ValueError("'weighting' has no meaning with 'clipping: none'; take 'mse'")
        return self

    @property
    def code_bits(self) -> int:
        """Bits of a code."""
        return _BITS.get(self.grid) or self.bits or 4


def levels_form(
    matrix: Tensor,
    grid: str,
    bits: int,
    group_size: int | None,
    importance: Tensor | None = None,
    search: bool = True,
    power_of_two: bool = False,
) -> Form:
    """Return a matrix on a grid, packed.

    Args:
        matrix: [rows, columns], float.
        grid: its name.
        bits: of a code.
        group_size: columns that share a scale; a whole row if None, all of the matrix if 0.
        importance: as `grids.fit.fit` takes it.
        search: as there.
        power_of_two: as there.
    """
    from zoopress_plugins.quantization.grids.fit import fit
    from zoopress_plugins.quantization.grids.named import named_grid

    columns = matrix.shape[1]
    size = columns if group_size is None else min(group_size, columns)
    found = fit(matrix, named_grid(grid, bits), size, importance, search, power_of_two)
    return packed_levels(found.codes, found.scale, grid, bits, size)


def piecewise_form(
    matrix: Tensor, bits: int, group_size: int | None, importance: Tensor | None = None
) -> Form:
    """Return a matrix on two uniform grids, packed; see `grids.piecewise.fit_piecewise`."""
    from zoopress.coding.bits import pack_codes
    from zoopress_plugins.quantization.grids.piecewise import fit_piecewise

    size = min(group_size or matrix.shape[1], matrix.shape[1])
    codes, inner, outer = fit_piecewise(matrix, bits, size, importance)
    unsigned = (codes.short() & ((1 << bits) - 1)).byte()
    tensors = {"codes": pack_codes(unsigned, bits), "inner": inner, "outer": outer}
    return Form("piecewise", {"bits": bits, "group_size": size}, tensors, bits)


def packed_levels(
    codes: Tensor,
    scale: Tensor,
    grid: str,
    bits: int,
    group_size: int,
    negative_scale: Tensor | None = None,
) -> Form:
    """Return codes and scales as the packed form `levels` has them."""
    from zoopress.coding.bits import pack_codes
    from zoopress_plugins.quantization.forms.digits import DIGITS, pack_digits
    from zoopress_plugins.quantization.grids.named import named_grid

    in_digits = named_grid(grid, bits).count == 3
    tensors = {
        "codes": pack_digits(codes) if in_digits else pack_codes(codes, bits),
        "scale": scale,
    }
    if negative_scale is not None:
        tensors["negative_scale"] = negative_scale
    arguments: dict[str, bool | int | float | str] = {
        "grid": grid,
        "bits": bits,
        "group_size": group_size,
        "two_scales": negative_scale is not None,
    }
    return Form("levels", arguments, tensors, 8 / DIGITS if in_digits else bits)


class LevelQuantization(Technique[LevelQuantizationConfig]):
    """Round weights to levels of a number format; activations stay floating point."""

    name = "level_quantization"
    family = "quantization"
    config_type = LevelQuantizationConfig
    needs = frozenset({"calibration"})

    def effects(self) -> Effects:
        """Require float weights, and leave none of the kinds it works on."""
        return Effects(requires=self.config.properties(), destroys=self.config.properties())

    def apply(self, model: Model, context: Context) -> Outcome:
        """Pack the selected weights."""
        from zoopress_plugins.quantization.weighting import importances

        config = self.config
        weights, left = config.fitting(model)
        notes: dict[str, Any] = {}
        importance = importances(config.weighting, model, weights, context, notes)

        def form(weight: Weight) -> Form:
            if config.grid == "piecewise_linear":
                matrix, costs = weight.matrix(), importance(weight)
                return piecewise_form(matrix, config.code_bits, config.group_size, costs)
            return levels_form(
                weight.matrix(),
                config.grid,
                config.code_bits,
                config.group_size,
                importance(weight),
                config.clipping == "mse",
                config.scales == "power_of_two",
            )

        remedy = "Use a larger 'group_size', fewer bits, or leave this stage out."
        return pack_weights(model, weights, context, form, left, remedy, notes)

    def working_bytes(self, total: int, largest: int) -> int:
        """Return room for a weight's codes and importances, and for measured ones of all."""
        return 3 * largest + (total if self.config.weighting != "none" else 0)


@hookimpl
def zoopress_techniques() -> list[type[LevelQuantization]]:
    """Register the technique."""
    return [LevelQuantization]


@hookimpl
def zoopress_layers() -> dict[str, str]:
    """Register what artifacts call a weight of levels, and one on two uniform grids."""
    return {
        "levels": "zoopress_plugins.quantization.forms.levels:LevelsWeight",
        "piecewise": "zoopress_plugins.quantization.forms.piecewise:PiecewiseWeight",
    }
