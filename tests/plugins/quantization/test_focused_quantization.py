"""Levels lie around the humps of a pruned layer, where they err less than around zero."""

import pytest
import torch
from torch import Tensor

from zoopress_plugins.quantization.focused_quantization import (
    FocusedQuantization,
    FocusedQuantizationConfig,
    fit_mixture,
    focused_levels,
    shift_levels,
)


def humps(apart: float = 1.0, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    weights = 0.15 * torch.randn(4000, generator=generator)
    weights[:1500] += apart
    weights[1500:] -= 0.8 * apart
    return weights


def error(weights: Tensor, levels: Tensor) -> float:
    return float((weights[:, None] - levels).abs().amin(1).square().mean())


def test_a_mixture_is_found_again() -> None:
    mixture = fit_mixture(humps())
    assert mixture is not None
    assert mixture.means.tolist() == pytest.approx([-0.8, 1.0], abs=0.02)
    assert mixture.deviations.tolist() == pytest.approx([0.15, 0.15], abs=0.01)
    assert mixture.shares.tolist() == pytest.approx([0.625, 0.375], abs=0.01)
    assert fit_mixture(torch.tensor([1.0, 2.0, 3.0])) is None


@pytest.mark.parametrize("bits", [3, 4, 5, 8])
def test_levels_are_shifts_around_each_mean_and_zero(bits: int) -> None:
    mixture = fit_mixture(humps())
    assert mixture is not None
    levels = focused_levels(mixture, bits)
    assert len(levels) <= 2**bits - 1
    assert 0 in levels.tolist()
    assert torch.equal(levels, levels.bfloat16().float())
    for mean, deviation in zip(mixture.means, mixture.deviations, strict=True):
        for level in (mean, mean + 2 * deviation, mean - 2 * deviation):
            assert float((levels - level).abs().min()) < 5e-3


def test_focused_levels_err_less_where_humps_are_apart_and_shifts_are_taken_elsewhere() -> None:
    subject = FocusedQuantization(FocusedQuantizationConfig(bits=4))
    weights = humps()
    levels, apart = subject.levels(weights)
    assert apart > 2
    assert error(weights, levels) < 0.5 * error(weights, shift_levels(weights, 4))
    one = torch.randn(4000, generator=torch.Generator().manual_seed(1))
    levels, apart = subject.levels(one)
    assert torch.equal(levels, shift_levels(one, 4)) == (apart < 2)
    # Without zeros and of one sign there are no two humps.
    same, apart = subject.levels(one.abs() + 1)
    assert apart == 0
    assert torch.equal(same, shift_levels(one.abs() + 1, 4))
    assert FocusedQuantization(FocusedQuantizationConfig(bits=3)).levels(torch.zeros(0))[1] == 0
