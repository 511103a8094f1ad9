"""Rounders err less than the nearest points where they say so, on inputs that they never saw."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from zoopress.errors import StageError
from zoopress.models.model import Model
from zoopress.models.packing import packed_weights
from zoopress.plugins import load_plugins
from zoopress.techniques import Matrix, Outcome, RounderChoice
from zoopress.testing import (
    check_rounder,
    context_for,
    models as testing_models,
    run_chain,
    seeded,
    tiny_card,
)
from zoopress_plugins.quantization.rounding.output_error import output_error
from zoopress_plugins.quantization.rounding.uniform_grid import dequantized, nearest
from zoopress_plugins.quantization.weight_quantization import (
    WeightQuantization,
    WeightQuantizationConfig,
)

pytestmark = pytest.mark.usefixtures("brief_latency")

PLUGINS = load_plugins()
ROUNDERS = sorted(PLUGINS.references["rounders"])
WITH_INPUTS = [n for n in ROUNDERS if PLUGINS.resolve("rounders", n).needs_inputs]


SHORT: dict[str, dict[str, Any]] = {
    "adaround": {"iterations": 120},
    "adaquant": {"iterations": 80},
}
"""Enough for matrices as small as these."""


def rounder(name: str, **options: Any) -> Any:
    options = {**SHORT.get(name, {}), **options}
    return RounderChoice(name=name, **options).make(PLUGINS)


def short(name: str) -> dict[str, Any]:
    return {"name": name, **SHORT.get(name, {})}


def technique(**config: Any) -> WeightQuantization:
    return WeightQuantization(WeightQuantizationConfig(**config))


def correlated(samples: int, width: int, seed: int) -> Tensor:
    """Inputs as layers see them: few directions carry most of the power, some channels are loud."""
    generator = torch.Generator().manual_seed(0)
    mixing = torch.randn(width, width, generator=generator) * torch.logspace(0, -1.5, width)
    loud = 1 + 4 * (torch.rand(width, generator=generator) > 0.9)
    drawn = torch.randn(samples, width, generator=torch.Generator().manual_seed(seed))
    return (drawn @ mixing.T + 0.3) * loud


def problem(bits: int = 3, symmetric: bool = False, seed: int = 1) -> Matrix:
    values = torch.randn(24, 64, generator=torch.Generator().manual_seed(seed))
    seen = correlated(512, 64, 1)
    return Matrix("weight", values, bits, 32, symmetric, True, inputs=seen.T @ seen / len(seen))


@pytest.mark.parametrize("name", ROUNDERS)
def test_it_conforms(name: str) -> None:
    check_rounder(rounder(name), PLUGINS)


@pytest.mark.parametrize("name", WITH_INPUTS)
@pytest.mark.parametrize(("bits", "symmetric"), [(2, False), (3, True), (4, False), (8, True)])
def test_outputs_err_less_than_with_the_nearest_points_on_inputs_never_seen(
    name: str, bits: int, symmetric: bool
) -> None:
    matrix = problem(bits, symmetric)
    held_out = correlated(512, 64, 2)
    found = rounder(name).round(matrix)
    errors = [
        float((held_out @ (matrix.values - dequantized(one, matrix)).T).square().mean())
        for one in (nearest(matrix), found)
    ]
    # Of 8 bits little is lost, and less of that is a matter of up or down.
    assert errors[1] < (0.8 if bits < 8 else 0.95) * errors[0]


def test_gptq_without_correlations_is_the_nearest_rounding() -> None:
    matrix = replace(problem(), inputs=torch.eye(64))
    found = rounder("gptq", sweeps=0).round(matrix)
    assert torch.equal(dequantized(found, matrix), dequantized(nearest(matrix), matrix))


def test_gptq_is_the_papers_recursion() -> None:
    """Against Frantar et al., algorithm 1, written out: one column, then the update of the rest."""
    matrix = problem(bits=3)
    found = rounder("gptq", sweeps=0, damping=0.01).round(matrix)
    assert matrix.inputs is not None
    hessian = matrix.inputs.double() + 0.01 * matrix.inputs.diagonal().mean() * torch.eye(64)
    order = hessian.diagonal().argsort(descending=True)
    inverse = torch.linalg.inv(hessian[order][:, order])
    weights = matrix.values.double()[:, order].clone()
    scale = found.scale.double().repeat_interleave(32, 1)[:, order]
    assert found.zero_point is not None
    zero = found.zero_point.double().repeat_interleave(32, 1)[:, order]
    levels = torch.zeros(24, 64)
    for column in range(64):
        step = ((weights[:, column] / scale[:, column]).round() + zero[:, column]).clamp(0, 7)
        levels[:, column] = step
        value = (step - zero[:, column]) * scale[:, column]
        error = (weights[:, column] - value) / inverse[0, 0]
        weights[:, column:] -= error[:, None] * inverse[0]
        inverse = inverse[1:, 1:] - inverse[1:, :1] @ inverse[:1, 1:] / inverse[0, 0]
    expected = torch.empty(24, 64)
    expected[:, order] = levels
    assert (found.levels == expected).float().mean() > 0.99  # float32 here, float64 there


def test_sweeps_never_make_outputs_worse() -> None:
    matrix = problem(bits=2)
    assert matrix.inputs is not None
    costs = []
    for sweeps in (0, 1, 2, 4):
        found = rounder("gptq", sweeps=sweeps).round(matrix)
        costs.append(output_error(matrix.values - dequantized(found, matrix), matrix.inputs).sum())
    assert costs == sorted(costs, reverse=True)
    assert costs[-1] < 0.9 * costs[0]


@pytest.mark.parametrize("symmetric", [True, False])
def test_hqq_has_a_smaller_p_norm_where_a_few_weights_are_large(symmetric: bool) -> None:
    values = torch.distributions.StudentT(2.0)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        drawn = values.sample((32, 64))
    matrix = Matrix("weight", drawn, 4, 64, symmetric, clipping=False)
    norms = [
        (drawn - dequantized(one, matrix)).abs().pow(0.7).sum()
        for one in (nearest(matrix), rounder("hqq").round(matrix))
    ]
    assert norms[1] < 0.97 * norms[0]


def model_and_context(name: str, folder: Path) -> tuple[Model, Any]:
    card = tiny_card(name, folder)
    module = seeded(getattr(testing_models, name))
    return Model(module, PLUGINS.layers), context_for(card, folder / "context", PLUGINS)


def distance(module: nn.Module, context: Any, wanted: list[Tensor]) -> float:
    with torch.no_grad():
        found = [context.call(module, batch) for batch in context.batches()]
    pairs = zip(found, wanted, strict=True)
    return float(sum((one - other).square().sum() for one, other in pairs))


@pytest.mark.parametrize(
    ("name", "kind"),
    [("gptq", "cnn"), ("gptq", "lstm"), ("adaround", "transformer"), ("adaquant", "lstm")],
)
def test_whole_models_come_closer_to_what_they_were(name: str, kind: str, tmp_path: Path) -> None:
    errors = []
    for each in ("nearest", name):
        model, context = model_and_context(kind, tmp_path / each)
        with torch.no_grad():
            wanted = [context.call(model.module, batch) for batch in context.batches()]
        outcome: Outcome = technique(
            bits=3, rounding=short(each), kinds=["linear", "conv", "recurrent"]
        )
        outcome = outcome.apply(model, context)  # type: ignore[attr-defined]
        assert "left" not in outcome.notes
        errors.append(distance(model.module, context, wanted))
    assert errors[1] < errors[0]


@pytest.mark.parametrize("name", ["hqq", *WITH_INPUTS])
def test_it_survives_save_and_reload_after_pruning(name: str, tmp_path: Path) -> None:
    pruning = PLUGINS.technique("magnitude_pruning")
    stages = [
        pruning(pruning.config_type.model_validate({"sparsity": 0.5})),
        technique(bits=4, group_size=16, symmetric=False, rounding=short(name)),
        PLUGINS.technique("entropy_coding")(PLUGINS.technique("entropy_coding").config_type()),
    ]
    result = run_chain(stages, tiny_card("cnn", tmp_path), tmp_path / "out", PLUGINS)
    last = result.report.last
    assert last.pruned > 0.45 * last.parameters


def test_a_convolution_in_groups_and_a_transposed_one_err_less(tmp_path: Path) -> None:
    """Rows of a group multiply other inputs than those of the next."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mix = nn.Conv2d(3, 8, 3)
            self.grouped = nn.Conv2d(8, 8, 3, groups=2)
            self.up = nn.ConvTranspose2d(8, 6, 3, groups=2)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.up(torch.relu(self.grouped(torch.relu(self.mix(x)))))
            return out

    errors = {}
    for name in ("nearest", "gptq"):
        for layer in ("grouped", "up"):
            _, context = model_and_context("cnn", tmp_path / name / layer)
            model = Model(seeded(Net), PLUGINS.layers)
            wanted = [context.call(model.module, batch) for batch in context.batches()]
            technique(bits=3, rounding=name, include=[f"{layer}.*"]).apply(model, context)
            errors[name, layer] = distance(model.module, context, wanted)
    assert errors["gptq", "grouped"] < 0.9 * errors["nearest", "grouped"]
    assert errors["gptq", "up"] < 0.9 * errors["nearest", "up"]


class Rarely(nn.Module):
    """A layer that no sample reaches, one of constant inputs, one with dead channels."""

    def __init__(self) -> None:
        super().__init__()
        self.never = nn.Linear(48, 48)
        self.constant = nn.Linear(48, 48)
        self.dead = nn.Linear(48, 48)

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(1)[:, :48]
        if x.sum() > 1e9:
            x = self.never(x)
        half = torch.cat([x[:, :24], torch.zeros_like(x[:, 24:])], 1)
        out: Tensor = self.constant(torch.ones_like(x)) + self.dead(half)
        return out


@pytest.mark.parametrize("name", WITH_INPUTS)
def test_what_calibration_never_reached_is_nearest_and_named(name: str, tmp_path: Path) -> None:
    _, context = model_and_context("cnn", tmp_path)
    context.batches = lambda: [{"0": torch.randn(1, 3, 16, 16, generator=context.generator())}]
    module = seeded(Rarely)
    weights = {n: p.detach().clone() for n, p in module.named_parameters() if p.ndim > 1}
    model = Model(module, PLUGINS.layers)
    outcome = technique(bits=4, rounding=short(name)).apply(model, context)
    (unreached,) = (v for k, v in outcome.notes.items() if "did_not_reach" in k)
    assert unreached == {"never.weight": 1.0}
    packed = packed_weights(model.module)
    matrix = Matrix("", weights["never.weight"], 4, 48, True, True)
    near = dequantized(nearest(matrix), matrix)
    assert torch.equal(packed["never.weight"].dense(), near)
    for weight in weights:
        assert packed[weight].dense().isfinite().all()


@pytest.mark.parametrize("name", WITH_INPUTS)
def test_inputs_of_nan_are_refused_in_words(name: str, tmp_path: Path) -> None:
    model, context = model_and_context("cnn", tmp_path)
    context.batches = lambda: [{"0": torch.full((1, 3, 16, 16), torch.nan)}]
    with pytest.raises(StageError, match="NaN or infinity on calibration data"):
        technique(rounding=name).apply(model, context)


def test_zeros_that_no_stage_pruned_stay_unless_they_need_not(tmp_path: Path) -> None:
    left = {}
    for keep in (True, False):
        model, context = model_and_context("cnn", tmp_path / str(keep))
        for weight in model.weights():
            with torch.no_grad():
                weight.parameter[..., ::2] = 0.0
        zeros = {w.name: w.parameter == 0 for w in model.weights()}
        technique(bits=4, rounding="gptq", keep_zeros=keep).apply(model, context)
        packed = packed_weights(model.module)
        left[keep] = sum(int(packed[n].dense()[z].count_nonzero()) for n, z in zeros.items())
    assert left[True] == 0
    assert left[False] > 0


def test_only_what_looks_at_inputs_needs_calibration() -> None:
    assert technique().needs == technique(rounding="hqq").needs == frozenset()
    assert technique(rounding="gptq").needs == {"calibration"}
