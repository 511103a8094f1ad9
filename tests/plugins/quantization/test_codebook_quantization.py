"""Weights share few values: those of least error and bits; zero stays zero."""

from __future__ import annotations

import copy
import itertools
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, strategies as st
from torch import Tensor, nn

from zoopress.errors import StageError
from zoopress.models.model import Model
from zoopress.models.packing import packed_weights
from zoopress.plugins import load_plugins
from zoopress.techniques import Context, Outcome, Technique
from zoopress.testing import reload_artifact, run_chain, seeded, tiny_card
from zoopress.testing.models import cnn
from zoopress_plugins.quantization.codebook_quantization import (
    Codebook,
    CodebookQuantization,
    CodebookQuantizationConfig,
    entropy_bits,
    fit_codebook,
    initial_values,
    nearest,
    packed_values,
)
from zoopress_plugins.quantization.forms.codebook import CodebookWeight
from zoopress_plugins.quantization.rate_distortion.sensitivity import Sensitivity

pytestmark = pytest.mark.usefixtures("brief_latency")

PLUGINS = load_plugins()
ONE = torch.ones(1)


def apply(model: Model, **config: Any) -> Outcome:
    context = Context(0, torch.device("cpu"), list, lambda m, b: m(b), lambda *_: None, Path())
    return CodebookQuantization(CodebookQuantizationConfig(**config)).apply(model, context)


def book(values: list[float], bits: list[float] | None = None) -> Codebook:
    lengths = torch.tensor(bits or [math.log2(len(values))] * len(values))
    return Codebook(torch.tensor(values), lengths)


def test_linear_initialization_by_hand() -> None:
    weights = torch.tensor([-4.0, -2.0, 1.0, 2.0])
    # Five values but zero over the ranges 4 and 2: three negative ones, two positive.
    assert initial_values(weights, 6).tolist() == [-4.0, -3.0, -2.0, 0.0, 1.0, 2.0]
    assert initial_values(-weights, 6).tolist() == [-2.0, -1.0, 0.0, 2.0, 3.0, 4.0]
    assert initial_values(weights.abs(), 4).tolist() == pytest.approx([0.0, 1.0, 2.5, 4.0])
    assert initial_values(torch.tensor([-9.0, 0.1]), 3).tolist() == pytest.approx([-9.0, 0.0, 0.1])
    assert initial_values(torch.tensor([]), 8).tolist() == [0.0]


def test_k_means_by_hand() -> None:
    weights = torch.tensor([-1.0, -1.5, 2.0, 3.0, 7.0, 9.0])
    found = fit_codebook(weights, ONE, 4, 0.0, 0.0)
    assert found.values.tolist() == [-1.25, 0.0, 2.5, 8.0]


def test_importance_pulls_a_value_to_the_weights_that_matter() -> None:
    weights = torch.tensor([2.0, 4.0])
    found = fit_codebook(weights, torch.tensor([3.0, 1.0]), 2, 0.0, 0.0)
    assert found.values.tolist() == [0.0, 2.5]


def test_bits_move_a_weight_to_the_cheaper_value() -> None:
    weights, plain = torch.tensor([0.4, 0.6]), book([0.0, 1.0])
    assert nearest(weights, ONE, plain, 0.1).tolist() == [0, 1]
    dear = book([0.0, 1.0], [0.5, 4.0])
    # 0.6² + 0.1 · 0.5 = 0.41 < 0.4² + 0.1 · 4 = 0.56
    assert nearest(weights, ONE, dear, 0.1).tolist() == [0, 0]
    # Twice as important: 0.72 + 0.05 > 0.32 + 0.4
    assert nearest(weights, torch.full((2,), 2.0), dear, 0.1).tolist() == [0, 1]


@given(
    seed=st.integers(0, 999),
    count=st.integers(2, 40),
    entropy_weight=st.sampled_from([0.0, 0.003, 0.1]),
    weighted=st.booleans(),
    bell=st.booleans(),
)
def test_every_weight_takes_the_value_of_least_cost(
    seed: int, count: int, entropy_weight: float, weighted: bool, bell: bool
) -> None:
    generator = torch.Generator().manual_seed(seed)
    draw = torch.randn if bell else torch.rand
    weights = draw(300, generator=generator)
    importance = torch.rand(300, generator=generator) + 0.01 if weighted else ONE
    found = fit_codebook(weights, importance, count, entropy_weight, 0.2)
    assert len(found.values) <= count
    assert bool((found.values.diff() >= 0).all())
    assert torch.equal(found.values, found.values.bfloat16().float())
    assert int((found.values == 0).sum()) == 1
    codes = nearest(weights, importance, found, entropy_weight)
    costs = importance.expand(300)[:, None] * (weights[:, None] - found.values).square()
    costs = costs + entropy_weight * found.bits
    chosen = costs.gather(1, codes[:, None]).squeeze(1)
    torch.testing.assert_close(chosen, costs.amin(1), rtol=1e-5, atol=1e-6)


@given(seed=st.integers(0, 999), bits=st.integers(2, 6))
def test_k_means_errs_no_more_than_the_evenly_spread_values_it_starts_from(
    seed: int, bits: int
) -> None:
    weights = torch.randn(2000, generator=torch.Generator().manual_seed(seed))
    start = initial_values(weights, 2**bits)
    errors = [
        (weights - values.float()[nearest(weights, ONE, Codebook(values.float(), ONE), 0.0)])
        .square()
        .mean()
        for values in (start, fit_codebook(weights, ONE, 2**bits, 0.0, 0.0).values)
    ]
    assert errors[1] <= errors[0] * 1.001  # values are rounded to bfloat16


def test_an_entropy_weight_buys_bits_at_less_error_than_fewer_values_would() -> None:
    weights = torch.randn(20_000, generator=torch.Generator().manual_seed(0))

    def figures(count: int, entropy_weight: float) -> tuple[float, float]:
        found = fit_codebook(weights, ONE, count, entropy_weight, 0.0)
        codes = nearest(weights, ONE, found, entropy_weight)
        error = float((weights - found.values[codes]).square().mean())
        return entropy_bits(codes) / len(weights), error

    def excess(bits: float, error: float) -> float:
        """Return the bits above the rate–distortion function of normal weights."""
        return bits + 0.5 * math.log2(error)

    assert excess(*figures(32, 0.05)) < excess(*figures(16, 0.0)) - 0.08
    # The least that a scalar quantizer can have is 0.255 bits at high rates (Gish & Pierce 1968).
    assert all(0.2 < excess(*figures(64, weight)) < 0.28 for weight in (0.005, 0.05, 0.2))
    assert figures(32, 0.2)[0] < figures(32, 0.05)[0] < figures(32, 0.01)[0]


def test_values_that_no_weight_takes_are_left_out() -> None:
    weights = torch.tensor([-1.0] * 50 + [1.0] * 50)
    assert fit_codebook(weights, ONE, 16, 0.0, 0.0).values.tolist() == [-1.0, 0.0, 1.0]
    assert fit_codebook(torch.tensor([]), ONE, 16, 0.1, 1.0).values.tolist() == [0.0]


@pytest.mark.parametrize(
    ("values", "bits", "codes", "by_code"),
    [
        ([-2.0, -1.0, 0.0, 1.0], 2, [2, 3, 0, 1], [1.0, -2.0, -1.0]),
        ([0.0, 1.0, 2.0], 2, [0, 1, 2], [1.0, 2.0, 0.0]),
        ([-1.0, 0.0], 1, [1, 0], [-1.0]),
        ([0.0], 1, [0], [0.0]),
    ],
)
def test_codes_are_twos_complement_around_zero(
    values: list[float], bits: int, codes: list[int], by_code: list[float]
) -> None:
    found = packed_values(book(values))
    assert (found[0], found[1].tolist(), found[2].tolist()) == (bits, codes, by_code)


@pytest.mark.parametrize(
    "layer",
    [nn.Conv2d(4, 6, 3), nn.ConvTranspose1d(4, 6, 3), nn.Embedding(9, 13), nn.GRU(6, 8)],
    ids=lambda layer: type(layer).__name__,
)
@pytest.mark.parametrize("bits", [1, 3, 8])
def test_any_layer_holds_its_shared_values_in_its_own_shape(layer: nn.Module, bits: int) -> None:
    model = Model(nn.Sequential(copy.deepcopy(layer)).eval(), PLUGINS.layers)
    before = {weight.name: weight.parameter.detach().clone() for weight in model.weights()}
    outcome = apply(model, bits=bits)
    packed = packed_weights(model.module)
    assert set(outcome.touched) == set(before) == set(packed)
    for name, weight in packed.items():
        assert isinstance(weight, CodebookWeight)
        dense, values = weight.dense(), [0.0, *weight.codebook.float().tolist()]
        assert dense.shape == before[name].shape
        assert len(dense.unique()) <= 2**bits
        for place in itertools.islice(itertools.product(*map(range, dense.shape)), 40):
            near = min(abs(float(before[name][place]) - value) for value in values)
            error = abs(float(before[name][place]) - float(dense[place]))
            assert error == pytest.approx(near, abs=1e-6)


def test_an_embedding_looks_rows_up() -> None:
    model = Model(nn.Sequential(nn.Embedding(30, 7)), PLUGINS.layers)
    apply(model, bits=3)
    (weight,) = packed_weights(model.module).values()
    ids = torch.tensor([[3, 29], [3, 0]])
    assert torch.equal(model.module(ids), weight.dense()[ids])


def test_kinds_may_have_bits_of_their_own() -> None:
    model = Model(seeded(cnn), PLUGINS.layers)
    apply(model, bits=3, kind_bits={"conv": 5})
    for weight in packed_weights(model.module).values():
        assert isinstance(weight, CodebookWeight)
        assert weight.bits == (5 if len(weight.shape) == 4 else 3)


def test_one_codebook_for_all_is_one_tensor(tmp_path: Path) -> None:
    card = tiny_card("cnn", tmp_path)
    technique = CodebookQuantization(CodebookQuantizationConfig(bits=4, scope="global"))
    result = run_chain([technique], card, tmp_path / "out", PLUGINS)
    for model in (reload_artifact(result.artifact, card, PLUGINS),):
        books = [w.get_buffer("codebook") for w in packed_weights(model.module).values()]
        assert len(books) > 3
        assert all(each is books[0] for each in books)


def test_fisher_weighting_errs_less_where_outputs_are_sensitive(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    torch.manual_seed(0)
    model = Model(nn.Sequential(nn.Linear(40, 60, bias=False)), PLUGINS.layers)
    plain = Model(nn.Sequential(nn.Linear(40, 60, bias=False)), PLUGINS.layers)
    plain.module.load_state_dict(model.module.state_dict())
    before = next(model.weights()).matrix().clone()
    columns = torch.cat([torch.full((20,), 1.0), torch.full((20,), 0.02)])
    monkeypatch.setattr(
        "zoopress_plugins.quantization.rate_distortion.sensitivity.measure_sensitivities",
        lambda module, weights, context, data: {"0.weight": Sensitivity(columns, torch.ones(60))},
    )
    config = {"bits": 5, "entropy_weight": 0.02}
    apply(model, weighting="fisher", **config)
    apply(plain, **config)
    importance = columns / (columns * before.square()).mean()
    costs, errors = [], []
    for each in (model, plain):
        (weight,) = packed_weights(each.module).values()
        dense = weight.dense()
        errors.append((dense - before).square().mean(0))
        bits = entropy_bits(dense.flatten()) / dense.numel()
        costs.append(float((importance * errors[-1]).mean()) + 0.02 * bits)
    assert costs[0] < 0.97 * costs[1]
    assert errors[0][:20].mean() < 0.4 * errors[0][20:].mean()
    assert 0.8 < errors[1][:20].mean() / errors[1][20:].mean() < 1.25


def test_pruned_weights_stay_zero_and_cost_no_mask(tmp_path: Path) -> None:
    card = tiny_card("cnn", tmp_path)
    prune = PLUGINS.technique("magnitude_pruning")
    chain: list[Technique[Any]] = [prune(prune.config_type(sparsity=0.8))]
    chain.append(CodebookQuantization(CodebookQuantizationConfig(bits=4)))
    result = run_chain(chain, card, tmp_path / "out", PLUGINS)
    model = reload_artifact(result.artifact, card, PLUGINS)
    packed = packed_weights(model.module)
    assert set(model.masks) == {f"{name}.codes" for name in packed}
    for name, weight in packed.items():
        mask = model.masks[f"{name}.codes"].view(weight.shape)
        assert 0.75 < float((~mask).float().mean()) < 0.9
        assert torch.equal(weight.dense() != 0, mask)
    assert result.report.last.reload_difference == 0


def test_a_model_of_zeros_is_packed_and_a_subnormal_one_is_told_to_be_left() -> None:
    linear = nn.Linear(16, 8)
    nn.init.zeros_(linear.weight)
    model = Model(nn.Sequential(linear), PLUGINS.layers)
    apply(model, bits=4, entropy_weight=0.1)
    (weight,) = packed_weights(model.module).values()
    assert not bool(weight.dense().any())
    linear = nn.Linear(16, 8)
    nn.init.constant_(linear.weight, 1e-41)
    with pytest.raises(StageError, match=r"'0.weight'.*beyond float32"):
        apply(Model(nn.Sequential(linear), PLUGINS.layers), bits=4)


def test_entropy_is_counted_by_hand() -> None:
    assert entropy_bits(torch.tensor([0, 0, 1, 2])) == pytest.approx(2 * 1 + 2 * 2)
    assert entropy_bits(torch.tensor([3, 3])) == 0


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"scope": "global", "kind_bits": {"conv": 8}}, "'kind_bits' has no meaning for the one"),
        ({"kind_bits": {"conv": 9}}, "bits must be 1 to 8, not 9"),
        ({"kinds": ["linear"], "kind_bits": {"conv": 8}}, "'conv' is none of the 'kinds'"),
    ],
)
def test_settings_that_do_not_fit_are_refused(config: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CodebookQuantizationConfig(**config)


def test_a_hostile_artifact_cannot_point_outside_the_codebook() -> None:
    weight = CodebookWeight(torch.Size([4, 10]), torch.float32, 0, 3)
    weight.codes.fill_(255)
    weight.codebook.copy_(torch.arange(7))
    assert torch.equal(weight.dense(), torch.full((4, 10), 6.0))
    for bits in (0, 9, 3.0, True):
        with pytest.raises(ValueError, match="bits must be 1 to 8"):
            CodebookWeight(torch.Size([4, 10]), torch.float32, 0, bits)  # type: ignore[arg-type]


def reference(weight: CodebookWeight) -> Tensor:
    """Compute values one by one from the bytes, as docs/artifact.md says."""
    rows = []
    for row in weight.codes:
        stream = sum(int(byte) << (8 * i) for i, byte in enumerate(row))
        codes = [stream >> (weight.bits * j) & (2**weight.bits - 1) for j in range(weight.columns)]
        rows.append([0.0 if code == 0 else float(weight.codebook[code - 1]) for code in codes])
    return torch.tensor(rows)


@pytest.mark.parametrize("bits", range(1, 9))
def test_values_follow_from_the_bytes_as_documented(bits: int) -> None:
    torch.manual_seed(bits)
    weight = CodebookWeight(torch.Size([5, 11]), torch.float32, 0, bits)
    weight.codes.copy_(torch.randint(0, 256, weight.codes.shape))
    weight.codebook.copy_(torch.randn(2**bits - 1))
    assert torch.equal(weight.dense(), reference(weight))
