"""Weights go to the nearest lattice point under a dither that everyone can draw again."""

from __future__ import annotations

import copy
import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st
from torch import nn

from zoopress.coding.coder import estimate_bits
from zoopress.errors import StageError
from zoopress.models.model import Model
from zoopress.models.packing import packed_weights
from zoopress.plugins import load_plugins
from zoopress.techniques import Context, Outcome, Technique
from zoopress.testing import reload_artifact, run_chain, tiny_card
from zoopress_plugins.quantization.forms.dither import (
    Floats,
    Lattice,
    codes_of,
    dither,
    nearest_point,
    points_of,
    splitmix64,
)
from zoopress_plugins.quantization.forms.lattice import LatticeWeight
from zoopress_plugins.quantization.lattice_quantization import (
    GAUSSIAN_BITS,
    Form,
    LatticeQuantization,
    LatticeQuantizationConfig,
    find_step,
    quantize,
)

pytestmark = pytest.mark.usefixtures("brief_latency")

PLUGINS = load_plugins()
MASK = (1 << 64) - 1


def apply(model: Model, seed: int = 0, **config: Any) -> Outcome:
    context = Context(seed, torch.device("cpu"), list, lambda m, b: m(b), lambda *_: None, Path())
    return LatticeQuantization(LatticeQuantizationConfig(**config)).apply(model, context)


# The dither.


def test_the_generator_is_splitmix64() -> None:
    # The outputs of Vigna's splitmix64.c for the state 1234567.
    expected = [6457827717110365317, 3203168211198807973, 9817491932198370423]
    assert splitmix64(1234567, np.arange(3, dtype=np.uint64)).tolist() == expected


@given(seed=st.integers(0, MASK), counter=st.integers(0, MASK))
def test_the_generator_counts_modulo_two_to_the_64(seed: int, counter: int) -> None:
    z = (seed + (counter + 1) * 0x9E3779B97F4A7C15) & MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
    found = splitmix64(seed, np.array([counter], dtype=np.uint64))
    assert int(found[0]) == z ^ (z >> 31)


@pytest.mark.parametrize("lattice", ["Z", "E8"])
def test_a_row_has_the_same_dither_however_it_is_drawn(lattice: Lattice) -> None:
    whole = dither(7, np.arange(50), 19, lattice)
    some = np.array([49, 3, 3])
    assert np.array_equal(dither(7, some, 19, lattice), whole[some])
    assert not np.array_equal(dither(8, some, 19, lattice), whole[some])
    assert np.array_equal(whole * 2**16, np.round(whole * 2**16))


@pytest.mark.parametrize(("lattice", "moment"), [("Z", 1 / 12), ("E8", 929 / 12960)])
def test_dither_is_uniform_over_the_cell_of_the_origin(lattice: Lattice, moment: float) -> None:
    found = dither(0, np.arange(20_000), 16, lattice)
    # The normalized second moments of the cells: Conway & Sloane 1982, table I.
    assert np.square(found).mean() == pytest.approx(moment, rel=0.01)
    assert abs(found.mean()) < 0.003
    inside = np.abs(found).max() < 0.5 + 2**-17 if lattice == "Z" else True
    assert inside
    # Not nearer to any other point: no shortest vector of the lattice shortens it.
    blocks = found.reshape(-1, 8)
    for vector in ([1, 1, 0, 0, 0, 0, 0, 0], [0.5] * 8, [0.5] * 6 + [-0.5] * 2):
        if lattice == "E8":
            for sign in (1, -1):
                moved = np.square(blocks - sign * np.array(vector)).sum(1)
                assert bool((moved >= np.square(blocks).sum(1)).all())


# The lattice.


def shortest_and_origin() -> Floats:
    """Return the 240 shortest vectors of E8, the 2160 next ones, and the origin."""
    small = [v for v in itertools.product((-1, 0, 1), repeat=8) if sum(map(abs, v)) in (0, 2, 4)]
    twos = [tuple(s * 2 if i == j else 0 for i in range(8)) for j in range(8) for s in (1, -1)]
    halves = [v for v in itertools.product((-0.5, 0.5), repeat=8) if sum(v) % 2 == 0]
    long = [
        tuple(1.5 * np.sign(x) if i == j else x for i, x in enumerate(v))
        for v in itertools.product((-0.5, 0.5), repeat=8)
        for j in range(8)
    ]
    return np.array([*small, *twos, *halves, *(v for v in long if sum(v) % 2 == 0)])


def test_the_nearest_point_of_e8_is_the_nearest_of_all() -> None:
    known = shortest_and_origin()
    assert len(known) == 1 + 240 + 2160
    generator = np.random.default_rng(0)
    points = generator.uniform(-0.6, 0.6, (400, 8))
    found = nearest_point(points, "E8")
    distances = np.square(points[:, None] - known).sum(2)
    best = distances.min(1)
    assert np.allclose(np.square(points - found).sum(1), best)
    offset = known[generator.integers(len(known), size=400)]
    assert np.array_equal(nearest_point(points + offset, "E8"), found + offset)


def test_points_by_hand() -> None:
    # Rounded, the sum is 1, so the last, which errs most, goes the other way; halves are farther.
    point = np.array([[0.9, 0.1, 0, 0, 0, 0, 0, 0.4]])
    assert nearest_point(point, "E8").tolist() == [[1, 0, 0, 0, 0, 0, 0, 1]]
    halves = np.full((1, 8), 0.45)
    assert nearest_point(halves, "E8").tolist() == [[0.5] * 8]
    assert nearest_point(np.array([[0.5, 1.5, -0.7]]), "E8").tolist() == [
        [0, 2, -1]
    ]  # fewer than 8


@given(seed=st.integers(0, 9999), columns=st.integers(1, 30), size=st.sampled_from([0.3, 3, 3000]))
def test_codes_name_every_point_once(seed: int, columns: int, size: float) -> None:
    points = nearest_point(np.random.default_rng(seed).normal(size=(6, columns)) * size, "E8")
    codes = codes_of(points, "E8")
    assert np.array_equal(codes, np.round(codes))
    assert np.array_equal(points_of(codes.astype(np.int16), "E8"), points)


@given(seed=st.integers(0, 9999), columns=st.integers(1, 20))
def test_all_integers_are_codes_of_points(seed: int, columns: int) -> None:
    codes = np.random.default_rng(seed).integers(-128, 128, (5, columns)).astype(np.int8)
    points = points_of(codes, "E8")
    assert np.array_equal(nearest_point(points, "E8"), points)
    assert np.array_equal(codes_of(points, "E8"), codes)


def test_eight_codes_take_no_bit_for_what_is_known() -> None:
    points = np.random.default_rng(0).normal(size=(4000, 8)) * 4
    codes = codes_of(nearest_point(points, "E8"), "E8")
    spread = codes.std(0)
    assert np.allclose(spread, 4, rtol=0.05)
    assert bool((codes[:, -1] % 2).mean() - 0.5 < 0.05)


# The error.


@pytest.mark.parametrize(("lattice", "moment"), [("Z", 1 / 12), ("E8", 929 / 12960)])
def test_the_error_has_the_size_of_the_cell_and_is_independent_of_the_weights(
    lattice: Lattice, moment: float
) -> None:
    rows = np.arange(4000)
    generator = np.random.default_rng(1)
    # Far fewer than a step, and two-valued: without dither the error would be the weight.
    for weights in (np.full((4000, 8), 0.2), generator.choice([-0.3, 0.4], (4000, 8))):
        form = Form(lattice, "all", 3)
        codes = quantize(weights, np.ones((1, 1)), form, rows)
        values = points_of(codes, lattice) - dither(3, rows, 8, lattice)
        error = values - weights
        assert np.square(error).mean() == pytest.approx(moment, rel=0.02)
        assert abs(error.mean()) < 0.01
        if weights.std():
            assert abs(np.corrcoef(error.ravel(), weights.ravel())[0, 1]) < 0.02


@given(seed=st.integers(0, 999))
def test_pruned_weights_are_code_zero_and_others_take_what_is_nearer(seed: int) -> None:
    generator = np.random.default_rng(seed)
    weights = generator.normal(size=(10, 12)) * (generator.random((10, 12)) > 0.5)
    form = Form("Z", "nonzero", seed)
    codes = quantize(weights, np.full((1, 1), 0.8), form, np.arange(10))
    offset = dither(seed, np.arange(10), 12, "Z")
    values = np.where(codes == 0, 0.0, 0.8 * (codes - offset))
    assert bool((codes[weights == 0] == 0).all())
    best = np.abs(weights)
    for code in range(-8, 9):
        if code:
            best = np.minimum(best, np.abs(weights - 0.8 * (code - offset)))
    assert np.allclose(np.abs(values - weights), best)


# The packed weight.


def module(layer: nn.Module) -> nn.Module:
    return nn.Sequential(copy.deepcopy(layer)).eval()


LAYERS = [
    nn.Linear(20, 6),
    nn.Conv2d(4, 6, 3),
    nn.ConvTranspose1d(4, 6, 3),
    nn.Embedding(9, 13),
    nn.GRU(6, 8),
]


@pytest.mark.parametrize("layer", LAYERS, ids=lambda layer: type(layer).__name__)
@pytest.mark.parametrize("lattice", ["Z", "E8"])
@pytest.mark.parametrize("steps", ["tensor", "row"])
def test_any_layer_holds_its_lattice_points_in_its_own_shape(
    layer: nn.Module, lattice: str, steps: str
) -> None:
    model = Model(module(layer), PLUGINS.layers)
    before = {weight.name: weight.parameter.detach().clone() for weight in model.weights()}
    outcome = apply(model, lattice=lattice, steps=steps, step=0.1, seed=5)
    packed = packed_weights(model.module)
    assert set(outcome.touched) == set(before) == set(packed)
    for name, weight in packed.items():
        assert isinstance(weight, LatticeWeight)
        assert weight.dense().shape == before[name].shape
        largest = weight.step.float().max() * (0.5 if lattice == "Z" else 1.0)
        assert (weight.dense() - before[name]).abs().max() <= largest * 1.001


def test_an_embedding_looks_rows_up() -> None:
    model = Model(nn.Sequential(nn.Embedding(30, 19)), PLUGINS.layers)
    apply(model, step=0.3, steps="row")
    (weight,) = packed_weights(model.module).values()
    ids = torch.tensor([[3, 29], [3, 0]])
    assert torch.equal(model.module(ids), weight.dense()[ids])


def test_values_follow_from_the_codes_as_documented() -> None:
    weight = LatticeWeight(torch.Size([3, 11]), torch.float32, 0, 16, "E8", "all", 99, "row")
    weight.codes.copy_(torch.randint(-300, 300, (3, 11)))
    weight.step.copy_(torch.tensor([0.5, 0.013, 2.0]))
    dense = weight.dense()
    for row in range(3):
        codes = weight.codes[row].tolist()
        half = codes[7] % 2
        known = [*codes[:7], codes[7] - half + sum(codes[:7]) % 2, *codes[8:]]
        points = [code + half / 2 for code in known[:8]] + known[8:]
        random = [
            int(splitmix64(99, np.array([row * 11 + column], dtype=np.uint64))[0]) >> 48
            for column in range(11)
        ]
        uniform = np.array([[r / 2**15 for r in random[:8]] + [r / 2**16 for r in random[8:]]])
        offset = uniform - nearest_point(uniform, "E8")
        for column in range(11):
            difference = np.float32(points[column] - offset[0, column])
            value = difference * np.float32(float(weight.step[row]))
            assert float(dense[row, column]) == float(value)


@pytest.mark.parametrize("change", [{"bits": 4}, {"lattice": "D4"}, {"seed": -1}, {"steps": "x"}])
def test_arguments_that_do_not_fit_are_refused(change: dict[str, Any]) -> None:
    arguments = {"bits": 8, "lattice": "Z", "dithered": "all", "seed": 0, "steps": "row"}
    with pytest.raises(ValueError, match=next(iter(change))):
        LatticeWeight(torch.Size([3, 4]), torch.float32, 0, **{**arguments, **change})


# The technique.


@pytest.mark.parametrize("target", [1.5, 4.0, 7.0])
@pytest.mark.parametrize("lattice", ["Z", "E8"])
def test_the_bits_that_are_asked_for_are_met(target: float, lattice: str) -> None:
    torch.manual_seed(0)
    linear = nn.Linear(300, 200)
    nn.init.normal_(linear.weight)
    model = Model(nn.Sequential(linear), PLUGINS.layers)
    outcome = apply(model, bits_per_weight=target, lattice=lattice)
    (weight,) = packed_weights(model.module).values()
    coded = estimate_bits(weight.get_buffer("codes").numpy()) + 16
    assert 0.99 * target * 60_000 <= coded <= target * 60_000
    assert outcome.notes["coded_bits_per_weight"] == pytest.approx(coded / 60_000)
    (claim,) = outcome.claims
    assert claim.requested == 32 - target <= claim.reached


def test_e8_errs_less_than_z_at_equal_bits() -> None:
    torch.manual_seed(0)
    linear = nn.Linear(512, 256, bias=False)
    nn.init.normal_(linear.weight)
    errors = []
    for lattice in ("Z", "E8"):
        model = Model(module(linear), PLUGINS.layers)
        apply(model, bits_per_weight=4, lattice=lattice)
        (weight,) = packed_weights(model.module).values()
        errors.append(float((weight.dense() - linear.weight.detach()).square().mean()))
    assert errors[1] / errors[0] == pytest.approx(929 / 1080, rel=0.02)


def test_a_search_that_cannot_end_says_so() -> None:
    with pytest.raises(StageError, match=r"'bits_per_weight: 0\.5' cannot be reached"):
        find_step(lambda step: 1.0, 0.5)


@given(target=st.floats(0.05, 8), slope=st.floats(0.8, 1.2), offset=st.floats(-1, 1))
def test_the_search_finds_a_step_of_any_falling_curve(
    target: float, slope: float, offset: float
) -> None:
    def bits(step: float) -> float:
        return float(np.logaddexp2(0, slope * (GAUSSIAN_BITS + offset - np.log2(step))))

    found = bits(find_step(bits, target))
    assert 0.99 * target <= found <= target


def test_a_step_that_needs_too_large_codes_is_refused() -> None:
    model = Model(nn.Sequential(nn.Linear(4, 4)), PLUGINS.layers)
    with pytest.raises(StageError, match=r"above 32000\. Take a larger step"):
        apply(model, step=1e-5)


def test_give_a_step_or_bits() -> None:
    for config in ({}, {"step": 1.0, "bits_per_weight": 4}):
        with pytest.raises(ValueError, match="give either 'step'"):
            LatticeQuantizationConfig.model_validate(config)


@pytest.mark.parametrize("use_dither", [True, False])
def test_pruned_weights_stay_zero_and_cost_no_mask(tmp_path: Path, use_dither: bool) -> None:
    card = tiny_card("cnn", tmp_path)
    prune = PLUGINS.technique("magnitude_pruning")
    config = LatticeQuantizationConfig(step=0.4, dither=use_dither)
    chain: list[Technique[Any]] = [prune(prune.config_type(sparsity=0.8))]
    result = run_chain(
        [*chain, LatticeQuantization(config)], card, tmp_path / "out", PLUGINS, seed=3
    )
    model = reload_artifact(result.artifact, card, PLUGINS)
    packed = packed_weights(model.module)
    assert set(model.masks) == {f"{name}.codes" for name in packed}
    for name, weight in packed.items():
        assert isinstance(weight, LatticeWeight)
        assert (weight.lattice, weight.seed) == ("Z", 3)
        mask = model.masks[f"{name}.codes"].view(weight.shape)
        assert 0.75 < float((~mask).float().mean()) < 0.9
        assert torch.equal(weight.dense() != 0, mask)
    assert result.report.last.reload_difference == 0
