"""Three levels by a threshold: what is larger becomes ±α, the rest zero.

Sources: Li et al. 2016, arXiv:1605.04711, section 2.2 (0.7 of the mean magnitude); He & Fan 2019,
arXiv:1810.01018 (truncated normal weights); Zhu et al. 2017, arXiv:1612.01064 (a scale for each
sign).
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from zoopress_plugins.quantization.grids.groups import in_groups, ungrouped
from zoopress_plugins.quantization.grids.scales import TINY, best_ternary_scale

Threshold = Literal["optimal", "mean", "gaussian"]

MEAN_SHARE = 0.7
GAUSSIAN_SHARE = 0.6120
"""Of the standard deviation: the t at which half the mean of |w| beyond t, φ(t) ÷ 2Q(t), is t, so
that levels and thresholds both are the best ones for normal weights."""


def fit_ternary(
    matrix: Tensor,
    group_size: int,
    threshold: Threshold,
    two_scales: bool,
    importance: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Find which weights are zero, and the scales of the others.

    Args:
        matrix: [rows, columns], float.
        group_size: columns of a row that share scales; 0 if all of the matrix does.
        threshold: `optimal`: the least squared error there is; `mean`: 0.7 of the mean magnitude;
            `gaussian`: 0.612 of the deviation, and the scale that follows for normal weights.
        two_scales: whether negative weights have a scale of their own.
        importance: broadcasts to the matrix.

    Returns:
        codes [rows, columns], uint8, 0 to 2; scales [rows, groups], bfloat16, [1, 1] for a size of
        0; those of negative weights, or None.

    Raises:
        ValueError: if the matrix holds NaN or infinity.
    """
    codes, every = [], []
    for groups, costs in in_groups(matrix, group_size, importance):
        known = costs > 0
        sides = (groups > 0, groups < 0) if two_scales else (groups != 0,)
        found = torch.ones(groups.shape, dtype=torch.uint8, device=groups.device)
        scales = []
        for side in sides:
            mine = groups.abs() * side
            if threshold == "optimal":
                scale = best_ternary_scale(mine, costs)
                scale = scale.bfloat16().to(groups.dtype)
                kept = mine > scale[..., None] / 2
            else:
                limit = _limit(groups, known, threshold)[..., None]
                kept = mine > limit
                if threshold == "gaussian" and not two_scales:
                    scale = 2 * limit.squeeze(-1)
                else:
                    mass = costs * kept
                    scale = (mass * mine).sum(-1) / mass.sum(-1)
                scale = scale.nan_to_num(0.0).clamp_min(TINY)
            found = torch.where(kept, torch.where(groups > 0, 2, 0).to(torch.uint8), found)
            scales.append(scale)
        codes.append(found.flatten())
        every.append(torch.stack(scales))
    scale = torch.cat(every, 1).bfloat16()
    packed = ungrouped(torch.cat(codes), *matrix.shape)
    return packed, scale[0], scale[1] if two_scales else None


def _limit(groups: Tensor, known: Tensor, threshold: Threshold) -> Tensor:
    """Return the threshold [...] of each group."""
    count = known.sum(-1)
    if threshold == "mean":
        return MEAN_SHARE * groups.abs().sum(-1) / count
    return GAUSSIAN_SHARE * (groups.square().sum(-1) / count).sqrt()
