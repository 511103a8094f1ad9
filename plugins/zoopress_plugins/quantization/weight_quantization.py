"""Weight-only quantization: round to a uniform grid, per row or per group of a row.

Which point of the grid a weight is rounded to, the nearest or a better one, is a rounder's to say.

Sources: Jacob et al. 2018, arXiv:1712.05877, section 2.1 (the affine grid); Lin et al. 2023,
arXiv:2306.00978 (scaled channels); those of rounders stand in their files, `rounding/`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from zoopress.errors import PluginError, StageError
from zoopress.plugins import hookimpl
from zoopress.techniques import (
    MATRICES,
    Claim,
    Effects,
    Kind,
    Outcome,
    RounderChoice,
    Technique,
    WeightSelection,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from zoopress.models.model import Model
    from zoopress.models.weights import Weight
    from zoopress.techniques import Context

_MILD_BITS = 7
"""From so many on, ranges of activations stay what they are."""
AT_ONCE = 1 << 22
"""Weights that are rounded together."""
_NEAREST = "nearest"
_ROUNDERS = {
    "adaquant": "AdaQuant",
    "adaround": "AdaRound",
    "gptq": "Gptq",
    "hqq": "Hqq",
    "nearest": "Nearest",
}


class UniformGridConfig(WeightSelection):
    """What weights to round to a uniform grid, and how, whatever its bits."""

    kinds: tuple[Kind, ...] = Field(
        default=(*MATRICES, "embedding"),
        min_length=1,
        description="kinds of weights",
    )
    group_size: int | None = Field(
        default=None, ge=8, description="weights that share a scale; a whole row without it"
    )
    symmetric: bool = Field(
        default=True, description="whether zero lies in the middle of the grid, or where it fits"
    )
    clipping: Literal["none", "mse"] = Field(
        default="mse",
        description="whether the grid spans all weights, or the range with the least squared error",
    )
    rounding: RounderChoice = Field(
        default=RounderChoice(name=_NEAREST),
        description="how weights are rounded: a name, or {name: NAME, …} with options",
    )
    keep_zeros: bool = Field(
        default=True,
        description="whether weights that are zero stay so, though no stage of the recipe pruned "
        "them",
    )


class WeightQuantizationConfig(UniformGridConfig):
    """How to round, and what."""

    bits: int = Field(default=8, ge=2, le=8, description="bits of a weight's code")
    scaling: Literal["none", "awq"] = Field(
        default="none",
        description="whether channels with strong inputs are scaled up before, and down in the "
        "layer that makes them, so that outputs err less (AWQ)",
    )


def quantize(
    matrix: Tensor, bits: int, group_size: int | None, symmetric: bool, clipping: bool
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Round a matrix to the nearest points of a uniform grid for each group of a row.

    Zero is always on the grid, so pruned weights stay zero.

    Args:
        matrix: [out, in], float.
        bits: of a code.
        group_size: columns that share a scale; None for all.
        symmetric: whether the grid has no zero point.
        clipping: whether to try smaller ranges and take the one with the least squared error.

    Returns:
        codes [out, in], uint8: two's complement in `bits` bits if symmetric, else unsigned;
        scale [out, groups], bfloat16; zero_point [out, groups], uint8, None if symmetric.
    """
    from zoopress.techniques.rounder import Matrix
    from zoopress_plugins.quantization.rounding.uniform_grid import nearest, stored
    from zoopress_plugins.quantization.rounding.work import in_parts, joined_codes

    size = min(group_size or matrix.shape[1], matrix.shape[1])
    whole = Matrix("", matrix, bits, size, symmetric, clipping)
    return joined_codes([stored(nearest(some), bits) for some in in_parts(whole, AT_ONCE)])


class WeightQuantization(Technique[WeightQuantizationConfig]):
    """Quantize weights; activations stay floating point."""

    name = "weight_quantization"
    family = "quantization"
    config_type = WeightQuantizationConfig
    weight_by_weight = True

    def __init__(self, config: WeightQuantizationConfig) -> None:
        super().__init__(config)
        if config.scaling != "none" or _needs_inputs(config.rounding):
            # Of the stage, not of the class: to the nearest is rounded without data.
            self.__dict__.update(needs=frozenset({"calibration"}), weight_by_weight=False)

    def effects(self) -> Effects:
        """Require float weights, and leave none of the kinds it works on."""
        mild = self.config.bits >= _MILD_BITS
        return Effects(
            requires=self.config.properties(),
            destroys=self.config.properties(),
            activations="rounded" if mild else "changed",
        )

    def apply(self, model: Model, context: Context) -> Outcome:
        """Pack the selected weights."""
        from zoopress.coding.bits import pack_codes
        from zoopress.models.packing import packed_weights
        from zoopress_plugins.quantization.rounding.work import Grid, Work, measured_inputs

        config = self.config
        weights, left = config.fitting(model)
        weights = self._worth_it(weights, left)
        before = sum(weight.parameter.nbytes for weight in weights)
        count = sum(weight.parameter.numel() for weight in weights)
        rounder = config.rounding.make(context.plugins)
        grid = Grid(config.bits, config.group_size, config.symmetric, config.clipping == "mse")
        work = Work(rounder, grid, config.keep_zeros, context.seed)
        rescaled: list[str] = []
        notes: dict[str, Any] = {}
        if config.scaling == "awq":
            from zoopress_plugins.quantization.channel_scaling import scale_channels

            rescaled, notes = scale_channels(model, weights, context, work)
        needed = rounder.needs_inputs or config.scaling != "none"
        seen = measured_inputs(model, weights, context) if needed else {}
        for weight in context.track(weights):
            mask = model.masks.get(weight.name)
            codes, scale, zero_point = work.codes(weight, mask, seen.get(weight.name), AT_ONCE)
            tensors = {"codes": pack_codes(codes, config.bits), "scale": scale}
            if zero_point is not None:
                tensors["zero_point"] = zero_point
            arguments = {
                "bits": config.bits,
                "group_size": min(config.group_size or codes.shape[1], codes.shape[1]),
                "symmetric": config.symmetric,
            }
            model.pack(weight, "quantized", arguments, tensors)
        packed = packed_weights(model.module)
        after = sum(buffer.nbytes for weight in weights for buffer in packed[weight.name].buffers())
        saved, per_weight = (8 * (before - after) / count, 8 * after / count)
        return Outcome(
            touched=list(dict.fromkeys([*rescaled, *(weight.name for weight in weights)])),
            claims=[
                # A quarter of the saving may go into scales, zero points and rows padded to bytes.
                Claim("bits saved per weight", 8 * before / count - config.bits, saved, 0.25)
            ],
            notes={
                "bits_per_weight": per_weight,
                **({"left": left} if left else {}),
                **work.notes(),
                **notes,
            },
        )

    def _worth_it(self, weights: Sequence[Weight], left: dict[str, str]) -> list[Weight]:
        """Leave weights out, saying so, that take no fewer bytes packed: a column, say.

        Raises:
            StageError: if none takes fewer.
        """
        from zoopress.coding.bits import packed_size

        config = self.config
        smaller = []
        for weight in weights:
            rows, columns = weight.matrix().shape
            groups = -(-columns // min(config.group_size or columns, columns))
            scales = groups * (2 if config.symmetric else 3)
            packed = rows * (packed_size(columns, config.bits) + scales)
            if packed < weight.parameter.nbytes:
                smaller.append(weight)
            else:
                left[weight.name] = f"packed it would take {packed:,} bytes, as many or more"
        if not smaller:
            raise StageError(
                f"None of the {len(weights)} selected weights takes fewer bytes with 'bits: "
                f"{config.bits}': their scales would cost what is saved. Use a larger "
                "'group_size', fewer bits, or leave this stage out."
            )
        return smaller

    def working_bytes(self, total: int, largest: int) -> int:
        """Return room for a weight's codes, and for what is made of the rows rounded together."""
        return largest // 2 + 7 * min(largest, 4 * AT_ONCE)


def _needs_inputs(choice: RounderChoice) -> bool:
    """Tell whether a rounder has to know of inputs; False if it is not known here."""
    if choice.name == _NEAREST:
        return False  # without looking for plugins
    try:
        return bool(choice.kind().needs_inputs)
    except PluginError:
        return False


@hookimpl
def zoopress_techniques() -> list[type[WeightQuantization]]:
    """Register the technique."""
    return [WeightQuantization]


@hookimpl
def zoopress_layers() -> dict[str, str]:
    """Register what artifacts call a quantized weight."""
    return {"quantized": "zoopress_plugins.quantization.forms.quantized:QuantizedWeight"}


@hookimpl
def zoopress_rounders() -> dict[str, str]:
    """Register the rounders, each in the file of its name."""
    package = "zoopress_plugins.quantization.rounding"
    return {name: f"{package}.{name}:{kind}" for name, kind in _ROUNDERS.items()}
