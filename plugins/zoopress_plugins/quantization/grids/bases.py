"""Several signs for each weight: W ≈ α₁B₁ + … + αₘBₘ, by turns.

Sources: Lin, Zhao & Pan 2017, arXiv:1711.11294, section 3.1 (ABC-Net); Guo et al. 2017,
arXiv:1706.02021, section 3 (greedy, then refined); Xu et al. 2018, arXiv:1802.00150, section 3
(by turns).
"""

from __future__ import annotations

import torch
from torch import Tensor

from zoopress_plugins.quantization.grids.groups import in_groups, ungrouped
from zoopress_plugins.quantization.grids.scales import TINY

TURNS = 12


def patterns(bases: int) -> Tensor:
    """Return the signs of each code: [2^bases, bases], −1 or 1; bit i of a code is sign i."""
    codes = torch.arange(1 << bases)
    return ((codes[:, None] >> torch.arange(bases)) & 1) * 2.0 - 1.0


def nearest_codes(groups: Tensor, scales: Tensor) -> Tensor:
    """Return the code of the sum of ±α that is nearest to each weight.

    Args:
        groups: [..., size], float32.
        scales: [..., bases].

    Returns:
        [..., size], int64.
    """
    levels, order = (scales @ patterns(scales.shape[-1]).T.to(scales)).sort(-1)
    middles = ((levels[..., 1:] + levels[..., :-1]) / 2).contiguous()
    return order.gather(-1, torch.searchsorted(middles, groups.contiguous()))


def values_of(codes: Tensor, scales: Tensor) -> Tensor:
    """Return the sum of ±α of each code [..., size], given scales [..., bases]."""
    levels = scales @ patterns(scales.shape[-1]).T.to(scales)
    return levels.gather(-1, codes)


def least_squares_scales(groups: Tensor, codes: Tensor, importance: Tensor, bases: int) -> Tensor:
    """Return the α that err least for given signs.

    Args:
        groups: [..., size].
        codes: [..., size], which signs.
        importance: [..., size].
        bases: how many.

    Returns:
        [..., bases], of the least norm where several err as little.
    """
    signs = patterns(bases).to(groups.device).double()[codes]
    costly = signs * importance.double()[..., None]
    gram = costly.transpose(-1, -2) @ signs
    right = (costly * groups.double()[..., None]).sum(-2)
    solved = torch.linalg.pinv(gram, hermitian=True) @ right[..., None]
    found: Tensor = solved.squeeze(-1).to(groups.dtype)
    return found


def greedy_scales(groups: Tensor, importance: Tensor, bases: int) -> Tensor:
    """Return α of one sign after the other: each is the mean magnitude of what is left.

    Args:
        groups: [..., size].
        importance: [..., size]; their sum is above 0.
        bases: how many.
    """
    left, found = groups, []
    for _ in range(bases):
        scale = (importance * left.abs()).sum(-1) / importance.sum(-1)
        left = left - torch.where(left < 0, -1.0, 1.0) * scale[..., None]
        found.append(scale)
    return torch.stack(found, -1)


def shifted_scales(groups: Tensor, importance: Tensor, bases: int) -> Tensor:
    """Return α for Bᵢ = sign(W − mean + uᵢ · deviation) with uᵢ evenly from −1 to 1 (ABC-Net)."""
    centred = groups - groups.mean(-1, keepdim=True)
    deviation = centred.square().mean(-1, keepdim=True).sqrt()
    codes = torch.zeros(groups.shape, dtype=torch.int64, device=groups.device)
    for place, shift in enumerate(torch.linspace(-1, 1, bases).tolist()):
        codes |= (centred + shift * deviation >= 0).long() << place
    return least_squares_scales(groups, codes, importance, bases)


def fit_bases(
    matrix: Tensor, bases: int, group_size: int, importance: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Find signs and α of the least squared error that turns from two starts lead to.

    Neither the best α for given signs nor the nearest sums for given α raise the error.

    Args:
        matrix: [rows, columns], float.
        bases: how many signs a weight has.
        group_size: columns of a row that share α.
        importance: broadcasts to the matrix.

    Returns:
        codes [rows, columns], uint8; α [rows, groups · bases], bfloat16.

    Raises:
        ValueError: if the matrix holds NaN or infinity.
    """
    every_code, every_scale = [], []
    for groups, costs in in_groups(matrix, group_size, importance):
        best = least = None
        for start in (greedy_scales, shifted_scales) if bases > 1 else (greedy_scales,):
            scales = start(groups, costs, bases)
            error = _error(groups, scales, costs)
            for _ in range(TURNS):
                turned = least_squares_scales(groups, nearest_codes(groups, scales), costs, bases)
                now = _error(groups, turned, costs)
                better = now < error
                scales = torch.where(better[..., None], turned, scales)
                error = torch.where(better, now, error)
                if not bool(better.any()):
                    break
            scales = scales.bfloat16().float()
            error = _error(groups, scales, costs)
            if best is None or least is None:
                best, least = scales, error
            else:
                better = error < least
                best = torch.where(better[..., None], scales, best)
                least = torch.where(better, error, least)
        assert best is not None
        if bases == 1:
            best = best.clamp_min(TINY)
        every_code.append(nearest_codes(groups, best).to(torch.uint8).flatten())
        every_scale.append(best.flatten(1))
    codes = ungrouped(torch.cat(every_code), *matrix.shape)
    return codes, torch.cat(every_scale).bfloat16()


def _error(groups: Tensor, scales: Tensor, importance: Tensor) -> Tensor:
    found = values_of(nearest_codes(groups, scales), scales)
    return (importance * (found - groups).square()).sum(-1)
