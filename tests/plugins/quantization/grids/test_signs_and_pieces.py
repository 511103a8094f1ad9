"""Several signs, three levels and two grids err as little as their definitions allow."""

import itertools

import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import Tensor, nn

from zoopress.models.model import Model
from zoopress.models.packing import packed_weights
from zoopress.plugins import load_plugins
from zoopress.testing.packed import wrong_codes, wrong_products
from zoopress_plugins.quantization.binarization import bases_form
from zoopress_plugins.quantization.grids.bases import (
    fit_bases,
    greedy_scales,
    least_squares_scales,
    nearest_codes,
    patterns,
    shifted_scales,
    values_of,
)
from zoopress_plugins.quantization.grids.piecewise import (
    fit_piecewise,
    project,
    values_of as piece_values,
)
from zoopress_plugins.quantization.grids.ternary import GAUSSIAN_SHARE, fit_ternary
from zoopress_plugins.quantization.level_quantization import piecewise_form
from zoopress_plugins.quantization.packing_weights import Form

PLUGINS = load_plugins()


@st.composite
def rows(draw: st.DrawFn) -> Tensor:
    """A few rows: normal, zeros, of one value, with an outlier."""
    columns = draw(st.integers(1, 24))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 999)))
    matrix = torch.randn(4, columns, generator=generator) * 10.0 ** draw(st.integers(-10, 10))
    matrix[1] = 0
    matrix[2] = matrix[2, 0]
    matrix[3, 0] *= 500
    return matrix


def packed(form: Form, matrix: Tensor) -> Model:
    layer = nn.Linear(matrix.shape[1], len(matrix))
    layer.weight.data = matrix.clone()
    model = Model(nn.Sequential(layer).eval(), PLUGINS.layers)
    (weight,) = model.weights()
    model.pack(weight, form.packing, form.arguments, form.tensors)
    return model


@settings(max_examples=25, deadline=None)
@given(matrix=rows(), bases=st.integers(2, 4), seed=st.integers(0, 99))
def test_no_sum_of_signs_is_nearer_and_turns_never_raise_the_error(
    matrix: Tensor, bases: int, seed: int
) -> None:
    cost = torch.rand(matrix.shape, generator=torch.Generator().manual_seed(seed)) + 0.1
    for start in (greedy_scales, shifted_scales):
        scales = start(matrix, cost, bases)
        found = values_of(nearest_codes(matrix, scales), scales)
        every = scales @ patterns(bases).T
        least = (every[:, None, :] - matrix[..., None]).abs().amin(-1)
        slack = 1e-5 * matrix.abs().amax()
        assert bool(((found - matrix).abs() <= least + slack).all())
        error = (cost * (found - matrix).square()).sum(-1)
        better = least_squares_scales(matrix, nearest_codes(matrix, scales), cost, bases)
        for codes in (nearest_codes(matrix, scales), nearest_codes(matrix, better)):
            now = (cost * (values_of(codes, better) - matrix).square()).sum(-1)
            assert bool((now <= error * (1 + 1e-3) + 1e-6 * matrix.square().sum(-1)).all())
            error = now


@settings(max_examples=15, deadline=None)
@given(matrix=rows(), group=st.integers(1, 24))
def test_more_signs_err_less_and_the_form_is_what_was_fitted(matrix: Tensor, group: int) -> None:
    size = min(group, matrix.shape[1])
    errors = []
    for bases in (1, 2, 3, 4):
        dense = packed_weights(packed(bases_form(matrix, bases, size), matrix).module)
        errors.append((dense["0.weight"].dense() - matrix).double().square().sum())
        if bases > 1:
            codes, scale = fit_bases(matrix, bases, size)
            mine = scale.float().view(4, -1, bases).repeat_interleave(size, 1)
            mine = mine[:, : matrix.shape[1]]
            expected = (patterns(bases)[codes.long()] * mine).sum(-1)
            torch.testing.assert_close(dense["0.weight"].dense(), expected)
    assert errors[1] <= errors[0] * 1.02
    assert errors[3] <= errors[0] * 1.02


def test_two_signs_are_nearly_the_best_there_are() -> None:
    generator = torch.Generator().manual_seed(0)
    row = torch.randn(1, 6, generator=generator)
    best = float("inf")
    for signs in itertools.product([-1.0, 1.0], repeat=12):
        b = torch.tensor(signs).view(6, 2)
        alpha = torch.linalg.lstsq(b, row[0, :, None], driver="gelsd").solution
        best = min(best, float((b @ alpha - row[0, :, None]).square().sum()))
    codes, scale = fit_bases(row, 2, 6)
    error = (values_of(codes.long(), scale.float()) - row).square().sum()
    assert float(error) <= 1.35 * best + 1e-3


@pytest.mark.parametrize("bases", [1, 2, 4])
def test_signs_keep_what_a_packed_weight_promises(bases: int) -> None:
    matrix = torch.randn(24, 40, generator=torch.Generator().manual_seed(0))
    model = packed(bases_form(matrix, bases, 16), matrix)
    assert wrong_codes(model) is None
    assert wrong_products(model) is None


@settings(max_examples=25, deadline=None)
@given(matrix=rows(), bits=st.integers(3, 6), group=st.integers(1, 24))
def test_two_grids_take_the_nearest_and_never_err_more_than_one(
    matrix: Tensor, bits: int, group: int
) -> None:
    size = min(group, matrix.shape[1])
    codes, inner, outer = fit_piecewise(matrix, bits, size)
    steps = [s.float().repeat_interleave(size, 1)[:, : matrix.shape[1]] for s in (inner, outer)]
    found = piece_values(codes, *steps, bits)
    most = (1 << (bits - 1)) - 1
    every = torch.arange(-most, most + 1, dtype=torch.int8)[:, None, None]
    levels = piece_values(every.expand(-1, *matrix.shape), *steps, bits)
    least = (levels - matrix).abs().amin(0)
    assert bool(((found - matrix).abs() <= least + 1e-5 * matrix.abs()).all())
    assert bool((found[matrix == 0] == 0).all())
    padded = torch.nn.functional.pad(matrix, (0, -matrix.shape[1] % size)).view(4, -1, size)
    step = (padded.abs().amax(-1) / most).bfloat16().float().clamp_min(2.0**-120)[..., None]
    uniform = ((padded / step).round().clamp(-most, most) * step - padded).square().sum()
    assert float((found - matrix).square().sum()) <= float(uniform) * 1.02 + 1e-30
    dense = packed_weights(packed(piecewise_form(matrix, bits, size), matrix).module)["0.weight"]
    assert torch.equal(dense.dense(), found)


def test_two_grids_serve_long_tails() -> None:
    generator = torch.Generator().manual_seed(0)
    matrix = torch.randn(8, 256, generator=generator)
    matrix[:, :4] *= 6
    codes, inner, outer = fit_piecewise(matrix, 4, 256)
    error = (piece_values(codes, inner.float(), outer.float(), 4) - matrix).square().sum()
    step = matrix.abs().amax(1, keepdim=True) / 7
    uniform = ((matrix / step).round() * step - matrix).square().sum()
    assert float(error) < 0.5 * float(uniform)
    assert bool((outer > inner).all())
    assert project(torch.tensor([0.0]), inner[0].float(), outer[0].float(), 4).tolist() == [0]


@pytest.mark.parametrize("bits", [3, 5, 8])
def test_pieces_keep_what_a_packed_weight_promises(bits: int) -> None:
    matrix = torch.randn(24, 40, generator=torch.Generator().manual_seed(0))
    model = packed(piecewise_form(matrix, bits, 16), matrix)
    assert wrong_codes(model) is None
    assert wrong_products(model) is None


def test_thresholds_are_those_of_their_papers() -> None:
    row = torch.tensor([[0.1, -0.2, 0.9, -1.2, 0.4]])
    codes, scale, _ = fit_ternary(row, 5, "mean", two_scales=False)
    # 0.7 of the mean magnitude 0.56 is 0.392.
    assert codes.tolist() == [[1, 1, 2, 0, 2]]
    assert float(scale) == pytest.approx((0.9 + 1.2 + 0.4) / 3, rel=4e-3)
    codes, scale, negative = fit_ternary(row, 0, "mean", two_scales=True)
    assert negative is not None
    assert float(scale) == pytest.approx(0.65, rel=4e-3)
    assert float(negative) == pytest.approx(1.2, rel=4e-3)
    normal = torch.distributions.Normal(0.0, 1.0)
    t = torch.tensor(GAUSSIAN_SHARE)
    tail = normal.log_prob(t).exp() / (1 - normal.cdf(t))
    assert float(tail / 2) == pytest.approx(GAUSSIAN_SHARE, abs=2e-4)


@settings(max_examples=25, deadline=None)
@given(matrix=rows(), group=st.integers(0, 24), two=st.booleans())
def test_no_threshold_errs_less_than_the_optimal_one(matrix: Tensor, group: int, two: bool) -> None:
    size = min(group, matrix.shape[1])
    errors = {}
    for threshold in ("optimal", "mean", "gaussian"):
        codes, scale, negative = fit_ternary(matrix, size, threshold, two)  # type: ignore[arg-type]
        wide = [
            s.float() if not size else s.float().repeat_interleave(size, 1)[:, : matrix.shape[1]]
            for s in (scale, scale if negative is None else negative)
        ]
        signs = codes.float() - 1
        values = signs.clamp(min=0) * wide[0] + signs.clamp(max=0) * wide[1]
        assert bool((values[matrix == 0] == 0).all())
        errors[threshold] = float((values - matrix).double().square().sum())
    # The scale is rounded to bfloat16, which costs up to 2⁻⁹ of it.
    room = 1e-4 * float(matrix.double().square().sum())
    assert errors["optimal"] <= min(errors.values()) + room
