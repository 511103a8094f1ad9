"""Weight-only quantization: round to nearest on a uniform grid, per row or per group of a row.

Sources: Jacob et al. 2018, arXiv:1712.05877, section 2.1 (the affine grid); Banner et al. 2019,
arXiv:1810.05723 (clipping chosen by mean squared error).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from zoopress.errors import StageError
from zoopress.plugins import hookimpl
from zoopress.techniques import MATRICES, Claim, Effects, Kind, Outcome, Technique, WeightSelection

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from zoopress.models.model import Model
    from zoopress.models.weights import Weight
    from zoopress.techniques import Context

_MILD_BITS = 7
"""From so many on, ranges of activations stay what they are."""
_CLIPPINGS = tuple(1 - 0.04 * step for step in range(11))
_AT_ONCE = 1 << 22
"""Weights that are rounded together."""


class WeightQuantizationConfig(WeightSelection):
    """How to round, and what."""

    kinds: tuple[Kind, ...] = Field(
        default=(*MATRICES, "embedding"),
        min_length=1,
        description="kinds of weights",
    )
    bits: int = Field(default=8, ge=2, le=8, description="bits of a weight's code")
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


def quantize(
    matrix: Tensor, bits: int, group_size: int | None, symmetric: bool, clipping: bool
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Round a matrix to a uniform grid for each group of a row.

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
    import torch
    from torch.nn.functional import pad

    rows, columns = matrix.shape
    most = max(1, _AT_ONCE // max(1, columns))
    if rows > most:  # rows know nothing of each other, and what is made of all takes much
        parts = [
            quantize(some, bits, group_size, symmetric, clipping) for some in matrix.split(most)
        ]
        codes, scales, zeros = zip(*parts, strict=True)
        return torch.cat(codes), torch.cat(scales), None if symmetric else torch.cat(zeros)
    size = min(group_size or columns, columns)
    groups = pad(matrix.float(), (0, -columns % size)).view(rows, -1, size)
    highest = groups.amax(-1).clamp(min=0)
    lowest = groups.amin(-1).clamp(max=0)
    best: tuple[Tensor, Tensor, Tensor] | None = None
    for factor in _CLIPPINGS if clipping else (1.0,):
        low, high = lowest * factor, highest * factor
        if symmetric:
            scale = torch.maximum(high, -low) / (2 ** (bits - 1) - 1)
        else:
            scale = (high - low) / (2**bits - 1)
        # Rounded to bfloat16 before any weight is: so storing it there costs nothing. Only then
        # compared with 0, which the scale of subnormal weights becomes.
        scale = scale.bfloat16().float()
        scale = torch.where(scale > 0, scale, 1.0)
        if symmetric:
            zero = torch.zeros_like(scale)
            limits = (-(2 ** (bits - 1)) + 1, 2 ** (bits - 1) - 1)
        else:
            zero = (-low / scale).round().clamp(0, 2**bits - 1)
            limits = (0, 2**bits - 1)
        levels = ((groups / scale[..., None]).round() + zero[..., None]).clamp(*limits)
        error = ((levels - zero[..., None]) * scale[..., None] - groups).square().sum(-1)
        if best is None:
            best, least = (levels, scale, zero), error
        else:
            better = error < least
            least = torch.where(better, error, least)
            best = (
                torch.where(better[..., None], levels, best[0]),
                torch.where(better, scale, best[1]),
                torch.where(better, zero, best[2]),
            )
    assert best is not None
    levels, scale, zero = best
    codes = levels.view(rows, -1)[:, :columns].to(torch.int16) & (2**bits - 1)
    return (
        codes.to(torch.uint8).contiguous(),
        scale.bfloat16(),
        None if symmetric else zero.to(torch.uint8),
    )


class WeightQuantization(Technique[WeightQuantizationConfig]):
    """Quantize weights; activations stay floating point."""

    name = "weight_quantization"
    family = "quantization"
    config_type = WeightQuantizationConfig
    weight_by_weight = True

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

        config = self.config
        weights, left = config.fitting(model)
        weights = self._worth_it(weights, left)
        before = sum(weight.parameter.nbytes for weight in weights)
        count = sum(weight.parameter.numel() for weight in weights)
        for weight in context.track(weights):
            codes, scale, zero_point = quantize(
                weight.matrix(),
                config.bits,
                config.group_size,
                config.symmetric,
                config.clipping == "mse",
            )
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
        saved, stored = (8 * (before - after) / count, 8 * after / count)
        return Outcome(
            touched=[weight.name for weight in weights],
            claims=[
                # A quarter of the saving may go into scales, zero points and rows padded to bytes.
                Claim("bits saved per weight", 8 * before / count - config.bits, saved, 0.25)
            ],
            notes={"bits_per_weight": stored, **({"left": left} if left else {})},
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
        return largest // 2 + 7 * min(largest, 4 * _AT_ONCE)


@hookimpl
def zoopress_techniques() -> list[type[WeightQuantization]]:
    """Register the technique."""
    return [WeightQuantization]


@hookimpl
def zoopress_layers() -> dict[str, str]:
    """Register what artifacts call a quantized weight."""
    return {"quantized": "zoopress_plugins.quantization.forms.quantized:QuantizedWeight"}
