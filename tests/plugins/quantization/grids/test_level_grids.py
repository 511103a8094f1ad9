"""Levels are those of their formats, the nearest is the nearest, and scales err least."""

import itertools

import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import Tensor

from zoopress_plugins.quantization.grids.fit import fit
from zoopress_plugins.quantization.grids.level_grid import LevelGrid
from zoopress_plugins.quantization.grids.named import BITS, named_grid
from zoopress_plugins.quantization.grids.scales import (
    best_ternary_scale,
    by_turns,
    spanning_scale,
    squared_error,
)

GRIDS = [(name, bits) for name, several in BITS.items() for bits in several]


@st.composite
def matrices(draw: st.DrawFn) -> Tensor:
    """Rows of normal weights, of zeros, of one value, and with an outlier, of any size."""
    rows, columns = draw(st.integers(1, 5)), draw(st.integers(1, 33))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 999)))
    matrix = torch.randn(rows, columns, generator=generator) * 10.0 ** draw(st.integers(-12, 12))
    for row in matrix:
        kind = draw(st.sampled_from(["normal", "zeros", "constant", "outlier", "sparse"]))
        if kind == "zeros":
            row.zero_()
        elif kind == "constant":
            row.fill_(float(row[0]))
        elif kind == "outlier":
            row[0] *= 1000
        elif kind == "sparse":
            row[::2] = 0
    return matrix


def test_nf4_has_the_published_levels() -> None:
    published = [-1.0, -0.6961928, -0.5250731, -0.3949175, -0.2844414, -0.1847734, -0.0910500, 0.0]
    published += [0.0795803, 0.1609302, 0.2461123, 0.3379152, 0.4407098, 0.5626170, 0.7229568, 1.0]
    levels = named_grid("nf4", 4).levels
    torch.testing.assert_close(levels, torch.tensor(published), rtol=0, atol=2e-7)


def test_fp4_is_e2m1_and_powers_of_two_are_in_order_of_their_codes() -> None:
    levels = named_grid("fp4", 4).levels
    assert levels[:8].tolist() == [0, 0.5, 1, 1.5, 2, 3, 4, 6]
    assert levels[9:].tolist() == [-0.5, -1, -1.5, -2, -3, -4, -6]
    assert levels[8].isnan()
    powers = named_grid("power_of_two", 3).levels
    assert powers[:4].tolist() == [0, 0.25, 0.5, 1]
    assert powers[5:].tolist() == [-1, -0.5, -0.25]


@pytest.mark.parametrize(
    ("name", "dtype"),
    [("fp8_e4m3", torch.float8_e4m3fn), ("fp8_e5m2", torch.float8_e5m2)],
)
def test_a_code_of_eight_bits_is_the_number_that_torch_casts_to(
    name: str, dtype: torch.dtype
) -> None:
    grid = named_grid(name, 8)
    values = torch.randn(4000, generator=torch.Generator().manual_seed(0)) * 20
    found = grid.values(grid.project(values, torch.ones(())))
    assert torch.equal(found, values.to(dtype).float())
    assert torch.equal(grid.project(values, torch.ones(())).view(dtype).float(), found)
    assert float(grid.values(grid.project(torch.tensor([1e9]), torch.ones(())))) == grid.largest


@pytest.mark.parametrize(("name", "bits"), GRIDS)
@settings(max_examples=30, deadline=None)
@given(matrix=matrices(), factor=st.floats(0.01, 4))
def test_no_level_is_nearer_than_the_one_that_is_taken(
    name: str, bits: int, matrix: Tensor, factor: float
) -> None:
    grid = named_grid(name, bits)
    scale = (spanning_scale(matrix, grid) * factor)[:, None]
    taken = (grid.values(grid.project(matrix, scale)) * scale - matrix).abs()
    levels = grid.levels[grid.levels.isfinite()].double()
    least = (levels * scale[..., None].double() - matrix[..., None].double()).abs().amin(-1)
    assert bool((taken <= least * (1 + 1e-5) + 1e-6 * matrix.abs()).all())
    if grid.zero is not None:
        assert bool((grid.project(torch.zeros(3), torch.ones(3)) == grid.zero).all())


@pytest.mark.parametrize(("name", "bits"), GRIDS)
def test_nan_has_no_level(name: str, bits: int) -> None:
    grid = named_grid(name, bits)
    matrix = torch.tensor([[1.0, float("nan")]])
    with pytest.raises(ValueError, match="NaN"):
        grid.project(matrix, torch.ones(1))
    for size in (0, 2):
        with pytest.raises(ValueError, match="floating point"):
            fit(matrix, grid, size)


@pytest.mark.parametrize(("name", "bits"), GRIDS)
@settings(max_examples=30, deadline=None)
@given(matrix=matrices(), factor=st.floats(0.05, 1))
def test_scale_and_levels_by_turns_never_raise_the_error(
    name: str, bits: int, matrix: Tensor, factor: float
) -> None:
    grid = named_grid(name, bits)
    weights = torch.rand(matrix.shape, generator=torch.Generator().manual_seed(1)) + 0.1
    scale = spanning_scale(matrix, grid) * factor
    error = squared_error(matrix, grid, scale, weights)
    for _ in range(4):
        scale = by_turns(matrix, grid, scale, weights, turns=1)
        now = squared_error(matrix, grid, scale, weights)
        assert bool((now <= error * (1 + 1e-4) + 1e-9 * matrix.square().sum(-1)).all())
        error = now


@pytest.mark.parametrize(("name", "bits"), GRIDS)
@settings(max_examples=30, deadline=None)
@given(matrix=matrices(), group=st.integers(0, 33))
def test_a_search_never_errs_more_than_a_grid_that_spans_all(
    name: str, bits: int, matrix: Tensor, group: int
) -> None:
    grid = named_grid(name, bits)
    size = min(group, matrix.shape[1])
    errors = []
    for search in (False, True):
        found = fit(matrix, grid, size, search=search)
        assert bool(((found.scale > 0) & found.scale.isfinite()).all())
        values = grid.values(found.codes)
        scale = found.scale.float()
        wide = scale if not size else scale.repeat_interleave(size, 1)[:, : matrix.shape[1]]
        errors.append((values * wide - matrix).double().square().sum())
        if grid.zero is not None:
            assert bool((values[matrix == 0] == 0).all())
    assert errors[1] <= errors[0] * (1 + 1e-5)


def test_the_ternary_scale_is_the_best_of_all_supports() -> None:
    grid = named_grid("ternary", 2)
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        row, cost = torch.randn(7, generator=generator), torch.rand(7, generator=generator) + 0.1
        best = float("inf")
        for signs in itertools.product([-1.0, 0.0, 1.0], repeat=7):
            levels = torch.tensor(signs)
            scale = (cost * levels * row).sum() / (cost * levels * levels).sum().clamp_min(1e-9)
            best = min(best, float((cost * (levels * scale - row).square()).sum()))
        scale = best_ternary_scale(row, cost)
        assert float(squared_error(row, grid, scale, cost)) == pytest.approx(best, rel=1e-5)


def test_the_scale_of_signs_is_the_mean_magnitude_weighted() -> None:
    row, cost = torch.tensor([[1.0, -3.0, 4.0]]), torch.tensor([[1.0, 2.0, 1.0]])
    found = fit(row, named_grid("binary", 1), 3, cost)
    assert found.codes.tolist() == [[1, 0, 1]]
    assert found.scale.tolist() == [[(1 + 6 + 4) / 4]]


def test_a_search_helps_where_an_outlier_stretches_the_grid() -> None:
    matrix = torch.cat([torch.linspace(-1, 1, 63), torch.tensor([4.0])])[None]
    grid = named_grid("power_of_two", 2)
    span, best = (
        float(
            squared_error(
                matrix, grid, fit(matrix, grid, 64, None, s).scale.float()[:, 0], torch.ones(())
            )
        )
        for s in (False, True)
    )
    assert best < 0.9 * span


@pytest.mark.parametrize(("name", "bits"), GRIDS)
def test_scales_may_be_powers_of_two(name: str, bits: int) -> None:
    matrix = torch.randn(4, 40, generator=torch.Generator().manual_seed(0))
    found = fit(matrix, named_grid(name, bits), 16, power_of_two=True).scale.float()
    assert torch.equal(found.log2(), found.log2().round())


def test_gradients_pass_through_rounding_and_stop_at_the_ends() -> None:
    grid = named_grid("power_of_two", 3)
    values = torch.tensor([0.3, -0.8, 9.0, 0.0], requires_grad=True)
    scale = torch.tensor(2.0, requires_grad=True)
    rounded = grid.rounded(values, scale)
    assert rounded.tolist() == [0.5, -1.0, 2.0, 0.0]
    rounded.sum().backward()
    assert values.grad is not None
    assert values.grad.tolist() == [1, 1, 0, 1]
    # The error of rounding in units of the scale: (0.25 − 0.15) + (−0.5 + 0.4) + 1 + 0.
    assert scale.grad is not None
    assert float(scale.grad) == pytest.approx(0.1 - 0.1 + 1)


def test_equal_levels_are_refused() -> None:
    with pytest.raises(ValueError, match="different numbers"):
        LevelGrid("wrong", torch.tensor([0.0, 1.0, 1.0]))
    with pytest.raises(ValueError, match="grid must be one of"):
        named_grid("nf5", 5)
    with pytest.raises(ValueError, match="bits of the grid"):
        named_grid("nf4", 3)
