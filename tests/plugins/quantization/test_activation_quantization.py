"""What enters layers is rounded within ranges that observers choose, and nothing breaks unsaid."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import Tensor, nn

from zoopress.errors import PlanError, StageError
from zoopress.models.input_grid import InputGrid, input_grids
from zoopress.models.model import Model
from zoopress.plugins import load_plugins
from zoopress.techniques import Context, Outcome
from zoopress.testing import run_chain, tiny_card
from zoopress.testing.tiny import built, context_for, reload_artifact
from zoopress_plugins.pruning.neuron_pruning import NeuronPruning, NeuronPruningConfig
from zoopress_plugins.quantization.activation_quantization import (
    ActivationQuantization,
    ActivationQuantizationConfig,
    grid_tensors,
)
from zoopress_plugins.quantization.activations.synthetic import calibration_inputs
from zoopress_plugins.quantization.ranges import OBSERVERS, observer_of
from zoopress_plugins.quantization.ranges.aciq import laplace_clip, normal_clip
from zoopress_plugins.quantization.ranges.seen import Seen
from zoopress_plugins.quantization.weight_quantization import (
    WeightQuantization,
    WeightQuantizationConfig,
)

pytestmark = pytest.mark.usefixtures("brief_latency")

PLUGINS = load_plugins()


def technique(**config: Any) -> ActivationQuantization:
    return ActivationQuantization(ActivationQuantizationConfig(**config))


def seen_of(*calls: Tensor, bins: int = 1024) -> Seen:
    seen = Seen(len(calls[0]), bins)
    for values in calls:
        seen.add(values)
    return seen


def squared_error(values: Tensor, low: Tensor, high: Tensor, bits: int, symmetric: bool) -> float:
    grid = InputGrid(bits, symmetric, "tensor", False)
    for name, tensor in grid_tensors(grid, low, high).items():
        grid._buffers[name] = tensor
    return float((grid(values) - values).double().square().mean())


# Observers.

NUMBERS = st.sampled_from([0.0, 1e-30, 1e-3, 0.5, 1.0, -1.0, 3.0, 77.0, -1e4, 1e30])


@pytest.mark.parametrize("name", OBSERVERS)
@settings(max_examples=25)
@given(
    calls=st.lists(st.lists(NUMBERS, min_size=3, max_size=3), min_size=1, max_size=4),
    bits=st.sampled_from([2, 4, 8]),
    symmetric=st.booleans(),
)
def test_ranges_hold_zero_and_lie_within_what_was_seen(
    name: Any, calls: list[list[float]], bits: int, symmetric: bool
) -> None:
    seen = seen_of(*(torch.tensor([each]) for each in calls), bins=64)
    low, high = observer_of(name, 99.99).range(seen, bits, symmetric)
    assert bool((low <= 0).all())
    assert bool((high >= 0).all())
    assert bool((low >= seen.low.clamp(max=0)).all())
    assert bool((high <= seen.high.clamp(min=0)).all())
    grid = InputGrid(bits, symmetric, "tensor", False)
    for tensor_name, tensor in grid_tensors(grid, low, high).items():
        grid._buffers[tensor_name] = tensor
    grid.check()
    if not seen.is_empty:
        assert float((high - low).max()) > 0


@settings(max_examples=40)
@given(
    sizes=st.lists(st.sampled_from([0.0, 0.3, 1.0, 900.0]), min_size=1, max_size=4),
    rows=st.sampled_from([1, 3]),
)
def test_histograms_are_exact_whatever_order_sizes_come_in(sizes: list[float], rows: int) -> None:
    generator = torch.Generator().manual_seed(len(sizes))
    calls = [torch.randn(rows, 50, generator=generator) * size for size in sizes]
    seen = seen_of(*calls, bins=64)
    values = torch.cat(calls, 1)
    for row in range(rows):
        edges = (np.arange(65) - 32) * float(seen.width()[row])
        wanted, _ = np.histogram(values[row].double().numpy(), edges)
        assert seen.counts[row].tolist() == wanted.tolist()
    assert int(seen.counts.sum()) == values.numel() == seen.numbers
    assert torch.equal(seen.low, values.amin(1))


def test_clipping_is_what_the_paper_found() -> None:
    wanted = {2: (2.83, 1.71), 3: (3.89, 2.15), 4: (5.03, 2.55), 8: (9.89, 3.92)}
    for bits, (laplace, normal) in wanted.items():
        assert laplace_clip(bits) == pytest.approx(laplace, abs=0.02)
        assert normal_clip(bits) == pytest.approx(normal, abs=0.02)


def test_each_observer_does_what_it_is_for() -> None:
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(1, 40_000, generator=generator)
    outliers = values.clone()
    outliers[0, 0] = 60.0
    seen = seen_of(*outliers.split(10_000, 1), bins=8192)

    def of(name: Any, percent: float = 99.99) -> tuple[Tensor, Tensor]:
        return observer_of(name, percent).range(seen, 4, False)

    errors = {name: squared_error(outliers, *of(name), 4, False) for name in OBSERVERS}
    assert min(errors, key=lambda name: errors[name]) == "mse"
    assert all(error < errors["min_max"] / 3 for n, error in errors.items() if n[0] in "aep")
    assert of("min_max")[1] == 60
    assert of("moving_average")[1] == pytest.approx(
        0.9**3 * 60 + (1 - 0.9**3) * float(values.amax()), rel=0.1
    )
    low, high = of("percentile", 99.0)
    assert low == pytest.approx(float(outliers.quantile(0.005)), abs=0.05)
    assert high == pytest.approx(float(outliers.quantile(0.995)), abs=0.05)
    assert of("aciq")[1] == pytest.approx(2.55 * float(outliers.std()), rel=0.3)
    # Of half a distribution, as a ReLU leaves it, zeros are exact and count for nothing.
    half = seen_of(values.relu(), bins=8192)
    best = observer_of("mse", 99).range(half, 4, False)
    whole = observer_of("min_max", 99).range(half, 4, False)
    assert squared_error(values.relu(), *best, 4, False) < squared_error(
        values.relu(), *whole, 4, False
    )


def test_fixed_point_scales_hold_the_range() -> None:
    grid = InputGrid(8, False, "tensor", False)
    tensors = grid_tensors(grid, torch.tensor([-1.0]), torch.tensor([5.0]), power_of_two=True)
    assert tensors["scale"] == 2**-5  # 6 ÷ 255 is 0.0235
    assert tensors["zero_point"] == 32


# The technique.


@pytest.mark.parametrize("name", ["cnn", "lstm"])
def test_with_weights_it_makes_eight_bits_of_both(name: str, tmp_path: Path) -> None:
    card = tiny_card(name, tmp_path)
    weights = WeightQuantization(WeightQuantizationConfig())
    outputs = []
    for position, chain in enumerate(([technique(), weights], [weights, technique()])):
        result = run_chain(chain, card, tmp_path / str(position))
        assert result.report.stages[-1].fidelity.cosine > 0.999
        model = reload_artifact(tmp_path / str(position) / "artifact", card)
        assert input_grids(model.module)
        batch = context_for(card, tmp_path / "context").batches()[0]
        with torch.inference_mode():
            outputs.append(model.module(batch if isinstance(batch, Tensor) else batch["0"]))
    torch.testing.assert_close(*outputs, rtol=0.05, atol=0.05)


def test_ranges_would_be_outdated_by_what_removes_neurons(tmp_path: Path) -> None:
    neurons = NeuronPruning(NeuronPruningConfig(sparsity=0.2))
    with pytest.raises(PlanError, match="ranges"):
        run_chain([technique(), neurons], tiny_card("cnn", tmp_path), tmp_path)


class Breaking(nn.Module):
    """Its second layer gets one number so large that a grid over all has no place for the rest."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Linear(8, 16), nn.Linear(16, 16), nn.Linear(16, 4)
        with torch.no_grad():
            self.first.bias[3] = 30_000.0
            self.second.weight[:, 3] = 0

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.last(self.second(self.first(x)).relu())
        return result


def setting(module: nn.Module, batches: list[Any], folder: Path) -> tuple[Model, Context]:
    context = context_for(tiny_card("cnn", folder), folder / "context", PLUGINS)
    return Model(module.eval(), PLUGINS.layers), replace(
        context, batches=lambda: batches, call=lambda m, batch: m(batch).detach()
    )


def applied(
    module: nn.Module, batches: list[Any], folder: Path, **config: Any
) -> tuple[Model, Outcome]:
    model, context = setting(module, batches, folder)
    return model, technique(**config).apply(model, context)


@pytest.fixture
def breaking() -> tuple[nn.Module, list[Tensor]]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Breaking(), [torch.randn(8, 8) for _ in range(3)]


@pytest.mark.parametrize("mode", ["static", "dynamic"])
def test_what_breaks_is_kept_and_named(
    mode: str, breaking: tuple[nn.Module, list[Tensor]], tmp_path: Path
) -> None:
    module, batches = breaking
    before = module(batches[0]).detach()
    options = {"mode": mode, "per": "tensor", "observer": "min_max"}
    model, outcome = applied(module, batches, tmp_path, **options)
    assert sorted(input_grids(model.module)) == sorted(outcome.touched) == ["first", "last"]
    kept = outcome.notes["kept_because_they_break"]
    assert list(kept) == ["second"]
    assert kept["second"] > 0.01
    assert "second" in outcome.notes["left"]
    after = model.module(batches[0]).detach()
    assert float(nn.functional.cosine_similarity(before, after).mean()) > 0.998


def test_it_fails_where_that_is_asked_for(
    breaking: tuple[nn.Module, list[Tensor]], tmp_path: Path
) -> None:
    module, batches = breaking
    with pytest.raises(StageError, match=r"'second' \(0\.\d+\)"):
        applied(module, batches, tmp_path, observer="min_max", on_break="fail")
    assert not input_grids(module)
    with pytest.raises(StageError, match="rounded alone, breaks"):
        applied(module, batches, tmp_path, observer="min_max", include=["second"])


class Odd(nn.Module):
    """Layers whose inputs are odd in one way each."""

    def __init__(self) -> None:
        super().__init__()
        for name in ("plain", "zero", "nan", "infinite", "constant", "unused", "read"):
            self.add_module(name, nn.Linear(4, 4))
        self.conv = nn.Conv1d(3, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        holes = torch.full_like(x, torch.nan).where(x > 99, x)
        self.nan(torch.where(x > 0.5, torch.nan, x))
        self.infinite(torch.where(x > 0.5, torch.inf, x))
        dead = torch.stack([x, torch.zeros_like(x), x * 5], 1)
        parts = (
            *(self.plain(x), self.zero(x * 0), self.constant(torch.ones_like(x) * 3)),
            *(nn.functional.linear(x, self.read.weight), self.conv(dead).sum(1)),
        )
        return torch.stack(parts).sum(0) + holes * 0


@pytest.mark.parametrize("per", ["tensor", "channel"])
def test_odd_inputs_are_left_and_named(per: str, tmp_path: Path) -> None:
    batches = [torch.randn(8, 4, generator=torch.Generator().manual_seed(0))]
    model, outcome = applied(Odd(), batches, tmp_path, per=per)
    grids = input_grids(model.module)
    assert sorted(grids) == ["constant", "conv", "plain"]
    left = outcome.notes["left"]
    assert "NaN or infinite" in left["nan"]
    assert "NaN or infinite" in left["infinite"]
    assert "0 in all" in left["zero"]
    assert "no calibration input reaches" in left["unused"]
    assert "read without it" in left["read"]
    threes = torch.full((2, 4), 3.0)
    torch.testing.assert_close(grids["constant"](threes), threes, rtol=1e-4, atol=0)
    if per == "channel":  # what is dead in calibration may live later: as wide as the others
        scale = grids["conv"].scale
        assert scale is not None
        assert scale[1] == scale.max()


def test_one_sample_is_enough_and_none_is_refused(tmp_path: Path) -> None:
    x = torch.randn(1, 4, generator=torch.Generator().manual_seed(1))
    model, outcome = applied(nn.Sequential(nn.Linear(4, 3)), [x], tmp_path)
    assert outcome.notes["calibration_samples"] == 1
    assert list(input_grids(model.module)) == ["0"]
    with pytest.raises(StageError, match="no calibration inputs"):
        applied(nn.Sequential(nn.Linear(4, 3)), [], tmp_path)
    with pytest.raises(StageError, match="No layer matches"):
        applied(nn.Sequential(nn.ReLU()), [x], tmp_path)
    with pytest.raises(StageError, match="NaN or infinite"):
        applied(nn.Sequential(nn.Linear(4, 3)), [x * torch.nan], tmp_path)


def test_without_data_inputs_match_batch_normalization(tmp_path: Path) -> None:
    card = tiny_card("cnn", tmp_path)
    context = context_for(card, tmp_path / "context", PLUGINS)
    model = Model(built(card, PLUGINS), PLUGINS.layers)
    norms = [m for m in model.module.modules() if isinstance(m, nn.BatchNorm2d)]
    batches = calibration_inputs(context, model, "synthetic")
    real = context.batches()
    assert not any(torch.equal(one["0"], two["0"]) for one, two in zip(batches, real, strict=True))

    def distance(batch: Any) -> float:
        told: list[Tensor] = []

        def compare(norm: Any, arguments: tuple[Tensor, ...]) -> None:
            spread = norm.running_var.sqrt()
            away = (arguments[0].mean((0, 2, 3)) - norm.running_mean) / spread
            ratio = arguments[0].std((0, 2, 3)) / spread
            told.append(away.square().mean() + (ratio - 1).square().mean())

        handles = [norm.register_forward_pre_hook(compare) for norm in norms]
        context.call(model.module, batch)
        for handle in handles:
            handle.remove()
        return float(torch.stack(told).sum())

    assert distance(batches[0]) < distance(real[0]) * 0.7
    outcome = technique(data="synthetic").apply(model, context)
    assert len(outcome.touched) == 6
    assert all(parameter.requires_grad for parameter in model.module.parameters())
