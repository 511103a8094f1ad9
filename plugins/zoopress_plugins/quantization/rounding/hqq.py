"""HQQ: scales and zero points that leave a few weights far off, and all others close.

min over s, z of ‖W − Q(W)‖ₚᵖ with p < 1 by half-quadratic splitting: what a weight may be off, e,
becomes a variable of its own, found by shrinkage; then scale and zero point fit W − e by least
squares. No data is needed.

The paper lets zero points be floats. Here they are whole numbers of the grid, as the packed form
has them, so that zero is on it and pruned weights stay zero; the scale, which the paper leaves, is
fitted too, and that makes up for it.

Source: Badri & Shaji 2023, Half-Quadratic Quantization of Large Machine Learning Models,
https://mobiusml.github.io/hqq_blog/.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from zoopress.config import Config
from zoopress.techniques.rounder import Matrix, Rounded, Rounder, level_limits

if TYPE_CHECKING:
    from torch import Tensor


class HqqOptions(Config):
    """How errors count, and how long to look."""

    norm: float = Field(
        default=0.7, gt=0, lt=1, description="p of the norm of errors, less than 1: few are large"
    )
    iterations: int = Field(default=20, ge=1, description="rounds of shrinkage and fitting")
    beta: float = Field(default=1.0, gt=0, description="how tightly e is held at first")
    growth: float = Field(default=1.1, gt=1, description="what that is multiplied by each round")


def shrunk(error: Tensor, beta: float, norm: float) -> Tensor:
    """Return the e with the least |e|ᵖ + β/2 · (e − error)², by one step of shrinkage.

    Args:
        error: any shape; in units of steps.
        beta: what the distance to `error` counts.
        norm: p.
    """
    size = error.abs()
    return error.sign() * (size - size.clamp(min=1e-8).pow(norm - 1) / beta).clamp(min=0)


class Hqq(Rounder[HqqOptions]):
    """Fit scales and zero points to most weights, without data."""

    name = "hqq"
    config_type = HqqOptions

    def round(self, matrix: Matrix) -> Rounded:
        """Return what of all rounds has the least p-norm, group by group."""
        import torch

        from zoopress_plugins.quantization.rounding.uniform_grid import in_groups, nearest, storable

        config, size = self.config, matrix.group_size
        low, high = level_limits(matrix.bits, matrix.symmetric)
        start = nearest(matrix)
        values = matrix.values.float()
        if matrix.keep is not None:
            values = torch.where(matrix.keep, values, 0.0)
        groups = in_groups(values, size)
        scale = start.scale.float()[..., None]
        zero = torch.zeros_like(scale) if start.zero_point is None else start.zero_point[..., None]
        levels = ((groups / scale).round() + zero).clamp(low, high)
        # In units of the first steps, in which only weights beyond the range are off by 1 or more.
        unit = scale

        def norm(levels: Tensor, scale: Tensor, zero: Tensor) -> Tensor:
            off = ((levels - zero) * scale - groups) / unit
            return off.abs().pow(config.norm).sum(-1, keepdim=True)

        best, least = (levels, scale, zero), norm(levels, scale, zero)
        beta = config.beta
        for _ in range(config.iterations):
            error = (groups - (levels - zero) * scale) / unit
            target = groups - unit * shrunk(error, beta, config.norm)
            if not matrix.symmetric:
                fitted = (levels - target / scale).mean(-1, keepdim=True)
                zero = fitted.round().clamp(low, high)
            steps = levels - zero
            power = steps.square().sum(-1, keepdim=True)
            fitted = (steps * target).sum(-1, keepdim=True) / power.clamp(min=1.0)
            scale = torch.where((power > 0) & (fitted > 0), storable(fitted), scale)
            levels = ((groups / scale).round() + zero).clamp(low, high)
            found = norm(levels, scale, zero)
            better = found < least
            least = torch.where(better, found, least)
            best = (
                torch.where(better, levels, best[0]),
                torch.where(better, scale, best[1]),
                torch.where(better, zero, best[2]),
            )
            beta *= config.growth
        levels, scale, zero = best
        return Rounded(
            levels.flatten(-2)[:, : values.shape[1]],
            scale.squeeze(-1).bfloat16(),
            None if matrix.symmetric else zero.squeeze(-1),
        )
