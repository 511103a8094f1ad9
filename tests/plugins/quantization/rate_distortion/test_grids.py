"""Quantization for coding: steps, error feedback, choice by rate and distortion, the trellis."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import Tensor

from zoopress.coding.coder import encode_plane
from zoopress.coding.trellis import NEXT, ODD, STATES
from zoopress_plugins.quantization.rate_distortion import rate, trellis_search
from zoopress_plugins.quantization.rate_distortion.sensitivity import Sensitivity
from zoopress_plugins.quantization.rate_distortion.solver import Grid, Settings, quantize_matrix
from zoopress_plugins.quantization.rate_distortion.steps import choose_steps
from zoopress_plugins.quantization.rounding.error_feedback import conditioned, decompose

UNIFORM = Settings("uniform", feedback=False)
QUANTIZERS = st.sampled_from(["uniform", "trellis"])


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def correlated(columns: int, seed: int = 0) -> Tensor:
    """Second moments of inputs that follow from a few hidden ones."""
    hidden = normal(200, columns // 4, seed=seed) @ normal(columns // 4, columns, seed=seed + 1)
    inputs = hidden + normal(200, columns, seed=seed + 2)
    return inputs.T @ inputs / 200


def lagrangian(grid: Grid, slope: float) -> float:
    return grid.distortion + slope * grid.bits


def is_path(lines: Tensor) -> bool:
    """Walk lines of codes through the trellis as its tables say."""
    for line in lines.tolist():
        state = 0
        for code in line:
            if ODD[state] and code:
                if code % 2 == 0:
                    return False
                index = (code + (1 if code > 0 else -1)) // 2
            elif code % 2:
                return False
            else:
                index = code // 2
            state = NEXT[state][index % 2]
    return True


def test_every_state_of_the_trellis_is_reached_from_two_of_one_quantizer() -> None:
    """Else paths that meet differ by half the distance, which costs a quarter decibel."""
    before: dict[int, list[tuple[int, int]]] = {state: [] for state in range(STATES)}
    for state in range(STATES):
        for parity in (0, 1):
            before[NEXT[state][parity]].append((ODD[state], parity))
    assert all(sorted(found) in ([(0, 0), (0, 1)], [(1, 0), (1, 1)]) for found in before.values())


def test_the_trellis_gains_a_decibel_at_high_rate() -> None:
    """Published for 8 states: 1.1 dB of the 1.53 dB that there are (Marcellin & Fischer 1990)."""
    targets = (
        torch.rand(1, 20_000, generator=torch.Generator().manual_seed(0)) * 200 - 100
    ).numpy()
    ones, codes = np.ones(20_000, np.float32), np.empty((1, 20_000), np.int16)
    trellis_search.search_trellis(
        targets.copy(),
        errors := targets.copy(),
        np.zeros((1, 1), np.float32),
        ones[:1] * 1e6,  # bits are nothing beside distortion
        ones,
        np.zeros((1, 20_000), np.uint8),
        np.zeros((1, 2, 65), np.float32),
        np.ones((1, 20_000), np.bool_),
        32767,
        codes,
        trellis_search.ODD_STATES,
        trellis_search.SOURCES,
    )
    assert np.array_equal(errors, targets - codes)
    uniform = 2.0**2 / 12  # of each of the two quantizers alone
    assert 10 * math.log10(uniform / float(np.square(errors).mean())) == pytest.approx(1.1, abs=0.1)


@given(seed=st.integers(0, 1000), length=st.integers(1, 7))
@settings(max_examples=25, deadline=None)
def test_the_search_finds_the_best_path_of_all(seed: int, length: int) -> None:
    targets = normal(1, length, seed=seed).numpy() * 3
    bits = np.abs(normal(1, 2, 65, seed=seed + 1).numpy()).cumsum(2)  # more for larger ones
    codes = np.empty((1, length), np.int16)
    trellis_search.search_trellis(
        targets.copy(),
        targets.copy(),
        np.zeros((1, 1), np.float32),
        np.ones(1, np.float32),
        np.ones(length, np.float32),
        np.zeros((1, length), np.uint8),
        bits,
        np.ones((1, length), np.bool_),
        32767,
        codes,
        trellis_search.ODD_STATES,
        trellis_search.SOURCES,
    )

    def best(state: int, place: int) -> float:
        if place == length:
            return 0.0
        costs = []
        # The two nearest of each subset are searched, toward zero; further ones cost more bits.
        for index in range(-8, 9):
            value = 2 * index - (index > 0) + (index < 0) if ODD[state] else 2 * index
            cost = (targets[0, place] - value) ** 2 + bits[0, ODD[state], abs(index)]
            costs.append(cost + best_of[NEXT[state][index % 2], place + 1])
        return float(min(costs))

    best_of: dict[tuple[int, int], float] = {}
    for place in range(length, -1, -1):
        for state in range(STATES):
            best_of[state, place] = best(state, place)
    assert is_path(torch.from_numpy(codes))
    found = state = 0
    for place, code in enumerate(codes[0].tolist()):
        index = (abs(code) + 1) // 2
        found += (targets[0, place] - code) ** 2 + bits[0, ODD[state], index]
        state = NEXT[state][index % 2]
    # Exact but where three steps toward zero would have been right.
    assert found <= best_of[0, 0] * 1.05 + 1e-4


def test_bits_follow_what_occurred() -> None:
    seen = np.array([0] * 6000 + [1] * 3000 + [2] * 1000)
    table = rate.table_of(np.full(10_000, 12, np.uint8), seen)
    expected = [-math.log2(0.6), 1 - math.log2(0.3), 1 - math.log2(0.1)]
    assert table[12, :3] == pytest.approx(expected, abs=0.02)


def test_larger_neighbours_make_larger_classes() -> None:
    lines = np.ones((4, 100), np.float32)
    lines[1] = 4
    lines[:, 50:] *= 2
    classes = rate.classes_of(lines)
    assert classes[1, 0] - classes[0, 0] == 4  # twice √2 to the fourth is 4
    assert classes[0, 99] - classes[0, 0] == 2
    assert len(np.unique(rate.classes_of(np.zeros((2, 3), np.float32)))) == 1


@given(seed=st.integers(0, 1000), columns=st.integers(4, 40))
@settings(max_examples=20, deadline=None)
def test_the_decomposition_counts_the_same_errors(seed: int, columns: int) -> None:
    moments = conditioned(correlated(columns, seed))
    mixing, alone = decompose(moments)
    assert torch.equal(mixing, mixing.triu())
    assert torch.allclose(mixing.diagonal(), torch.ones(columns, dtype=torch.float64))
    error = normal(3, columns, seed=seed).double()
    direct = ((error @ moments) * error).sum(1)
    assert torch.allclose(((error @ mixing).square() * alone).sum(1), direct)


def test_a_decomposition_by_hand() -> None:
    """[[2, 1], [1, 1]]: given the second, the first costs 2 − 1·1/1 = 1."""
    mixing, alone = decompose(torch.tensor([[2.0, 1.0], [1.0, 1.0]], dtype=torch.float64))
    assert mixing.tolist() == [[1.0, 1.0], [0.0, 1.0]]
    assert alone.tolist() == [1.0, 1.0]


def test_moments_without_rank_decompose() -> None:
    vector = torch.ones(5, 1, dtype=torch.float64)
    _, alone = decompose(vector @ vector.T)
    assert bool((alone > 0).all())


def test_feedback_by_hand() -> None:
    """Of two inputs that are always equal, the second makes up for the error of the first."""
    moments = torch.tensor([[1.0, 1.0], [1.0, 1.0]])
    matrix = torch.tensor([[0.3, 0.3]]).repeat(4, 1)
    fed = quantize_matrix(matrix, Sensitivity(moments), Settings("uniform", True, "tensor"), 0.02)
    alone = quantize_matrix(matrix, Sensitivity(moments), replace(UNIFORM, steps="tensor"), 0.02)
    assert fed.distortion < alone.distortion


def test_feedback_pays_where_inputs_are_correlated() -> None:
    gains = []
    for seed in range(4):
        matrix, moments = normal(96, 64, seed=seed), correlated(64, seed)
        found = [
            lagrangian(
                quantize_matrix(matrix, Sensitivity(moments), Settings("uniform", fed), 0.1), 0.1
            )
            for fed in (True, False)
        ]
        gains.append(found[1] / found[0])
    assert min(gains) > 1
    assert sum(gains) / 4 > 1.1


@given(
    seed=st.integers(0, 1000),
    shape=st.tuples(st.integers(1, 30), st.integers(1, 30)),
    slope=st.floats(1e-4, 1.0),
    quantizer=QUANTIZERS,
    feedback=st.booleans(),
    steps=st.sampled_from(["tensor", "row", "column", "both"]),
    sparse=st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_grids_are_what_they_say(
    seed: int,
    shape: tuple[int, int],
    slope: float,
    quantizer: str,
    feedback: bool,
    steps: str,
    sparse: bool,
) -> None:
    matrix, keep = normal(*shape, seed=seed), normal(*shape, seed=seed + 1) > 0.5
    inputs = normal(50, shape[1], seed=seed)
    rows = normal(shape[0], seed=seed).square()
    sensitivity = Sensitivity(inputs.T @ inputs / 50, rows)
    how = Settings(quantizer, feedback, steps)  # type: ignore[arg-type]
    if sparse:
        matrix = matrix * keep
    grid = quantize_matrix(matrix, sensitivity, how, slope, keep if sparse else None)
    assert grid.codes.dtype == torch.int16
    assert grid.codes.shape == shape
    if sparse:
        assert not bool(grid.codes[~keep].any())
    if grid.trellis:
        assert is_path(grid.codes.T if grid.scan == "columns" else grid.codes)
    for step, own in ((grid.row_step, ("row", "both")), (grid.column_step, ("column", "both"))):
        if step is not None:
            assert step.dtype == torch.bfloat16
            quarters = torch.log2(step.double()) * 4
            assert torch.allclose(quarters, quarters.round(), atol=0.05)
            assert steps in own or len(step.unique()) == 1
    assert grid.row_step is not None or grid.column_step is not None
    error = (matrix - grid.values()).double()
    assert grid.distortion == pytest.approx(
        float((((error @ (inputs.T @ inputs / 50).double()) * error).sum(1) * rows).sum()),
        rel=1e-3,
        abs=1e-6,
    )


@pytest.mark.parametrize("slope", [0.003, 0.03, 0.3])
def test_choice_by_rate_is_no_worse_than_rounding(slope: float) -> None:
    matrix = normal(400, 60) * torch.logspace(-1, 0.5, 60)
    chosen = quantize_matrix(matrix, None, UNIFORM, slope)
    assert chosen.column_step is None or chosen.row_step is None
    step = (chosen.row_step if chosen.row_step is not None else chosen.column_step).float()  # type: ignore[union-attr]
    codes = (matrix / step[0]).round().to(torch.int16)
    assert len(step.unique()) == 1
    bits = [8.0 * len(encode_plane(c.T.contiguous().numpy())) for c in (chosen.codes, codes)]
    distortion = float((matrix - codes * step[0]).square().sum())
    assert chosen.distortion + slope * bits[0] <= distortion + slope * bits[1]


@pytest.mark.parametrize(("slope", "saved"), [(0.003, 0.13), (0.1, 0.08), (1.0, -0.001)])
def test_the_trellis_saves_bits_at_equal_slope(slope: float, saved: float) -> None:
    matrix = normal(1000, 100)
    trellis = quantize_matrix(matrix, None, Settings(), slope)
    uniform = quantize_matrix(matrix, None, UNIFORM, slope)
    difference = lagrangian(uniform, slope) - lagrangian(trellis, slope)
    assert difference / slope / matrix.numel() >= saved


def test_bits_are_those_of_the_coder() -> None:
    grid = quantize_matrix(normal(500, 200), None, Settings(), 0.02)
    stream = encode_plane(grid.codes.T.contiguous().numpy(), trellis=grid.trellis)
    assert grid.bits == pytest.approx(8 * len(stream), rel=0.02)


def test_a_larger_slope_takes_fewer_bits_and_distorts_more() -> None:
    matrix, moments = normal(80, 40), correlated(40)
    grids = [quantize_matrix(matrix, Sensitivity(moments), Settings(), s) for s in (0.01, 0.1, 1.0)]
    assert sorted(grids, key=lambda grid: -grid.bits) == grids
    assert sorted(grids, key=lambda grid: grid.distortion) == grids


def test_steps_of_their_own_only_where_they_pay() -> None:
    even, uneven = torch.ones(50).double(), torch.logspace(-2, 2, 50).double()
    row, column = choose_steps(normal(50, 50), even, uneven, 0.01, "both", False)
    assert row is None
    assert column is not None
    # An error that costs 10,000 times as much has a step a hundredth as wide.
    assert float(column[0] / column[-1]) == pytest.approx(100, rel=0.2)
    row, column = choose_steps(normal(50, 1), uneven, even[:1], 0.01, "both", False)
    assert row is not None
    assert len(row.unique()) == 1  # 3 bits each would be more than they save
    assert column is None


def test_the_step_of_a_slope_by_hand() -> None:
    """step² = 6 / ln 2 · slope ÷ cost = 8.656 · 0.01 ÷ 4, rounded to a fourth root of 2."""
    cost = torch.full((64,), 4.0).double()
    row, column = choose_steps(normal(64, 64), cost, torch.ones(64).double(), 0.01, "both", False)
    assert column is None
    assert row is not None
    exact = math.sqrt(6 / math.log(2) * 0.01 / 4)
    assert float(row[0]) == pytest.approx(2 ** (round(4 * math.log2(exact)) / 4), rel=2**-8)


@pytest.mark.parametrize(
    "matrix",
    [
        torch.zeros(3, 4),
        torch.zeros(1, 1),
        torch.full((1, 1), 3.0),
        torch.full((6, 5), -0.25),
        normal(1, 40) * 1e20,
        normal(40, 1) * 1e-20,
        torch.full((4, 4), 1e15),
    ],
    ids=["zeros", "no number", "one number", "constant", "large", "small", "large square"],
)
@pytest.mark.parametrize("quantizer", ["uniform", "trellis"])
def test_extreme_matrices_have_grids(matrix: Tensor, quantizer: str) -> None:
    grid = quantize_matrix(matrix, None, Settings(quantizer), 1e-6)  # type: ignore[arg-type]
    values = grid.values()
    assert bool(values.isfinite().all())
    scale = float(matrix.abs().max())
    if scale > 1e-3:
        assert float((values - matrix).abs().max()) < 0.2 * scale
    else:
        assert float(values.abs().max()) <= 2 * scale


def test_vectors_keep_five_bits_at_any_slope() -> None:
    vector = normal(300, 1)
    grid = quantize_matrix(vector, None, Settings(), 100.0)
    assert float((grid.values() - vector).square().mean().sqrt()) < 0.1


def test_what_nothing_depends_on_takes_nearly_no_bits() -> None:
    moments = correlated(32)
    moments[5] = moments[:, 5] = 0  # an input that is always 0
    grid = quantize_matrix(normal(200, 32), Sensitivity(moments), Settings(), 1.0)
    assert not bool(grid.codes[:, 5].any())
    dead = Sensitivity(torch.zeros(32, 32), torch.zeros(200))
    assert not bool(quantize_matrix(normal(200, 32), dead, Settings(), 1.0).codes.any())


@pytest.mark.parametrize("slope", [0.0, -1.0, math.inf, math.nan])
def test_a_slope_that_is_none_is_refused(slope: float) -> None:
    with pytest.raises(ValueError, match="slope must be positive"):
        quantize_matrix(normal(2, 2), None, Settings(), slope)


@pytest.mark.parametrize("matrix", [torch.tensor([[1.0, math.nan]]), torch.zeros(0, 3)])
def test_a_matrix_that_is_none_is_refused(matrix: Tensor) -> None:
    with pytest.raises(ValueError, match="matrix"):
        quantize_matrix(matrix, None, Settings(), 1.0)
