"""Quantization-aware training: what is stored is what was trained with, whatever rounds it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

import zoopress
from synthetic_task import Classification, perceptron, same
from zoopress.errors import StageError
from zoopress.models.input_grid import input_grids
from zoopress.models.model import Model
from zoopress.models.packing import differentiable, packed_weights
from zoopress.plugins import load_plugins
from zoopress.techniques import Context, Outcome
from zoopress.testing import reload_artifact, run_chain, tiny_card
from zoopress.testing.models import cnn
from zoopress.training import checkpoint
from zoopress.training.config import TrainingConfig
from zoopress_plugins.coding.entropy_coding import EntropyCoding, EntropyCodingConfig
from zoopress_plugins.pruning.magnitude_pruning import MagnitudePruning, MagnitudePruningConfig
from zoopress_plugins.quantization.quantization_aware_training import (
    QuantizationAwareTraining,
    QuantizationAwareTrainingConfig,
)
from zoopress_plugins.quantization.trained import (
    INPUT_SCHEMES,
    WEIGHT_BITS,
    WEIGHT_SCHEMES,
    InputScheme,
    WeightScheme,
    has_zero,
    input_scheme,
    weight_scheme,
)
from zoopress_plugins.quantization.trained.held import held
from zoopress_plugins.quantization.trained.inputs.half_wave_gaussian import half_wave_step
from zoopress_plugins.quantization.trained.inputs.pact import Pact
from zoopress_plugins.quantization.trained.quantizer import SeenInput
from zoopress_plugins.quantization.trained.terms import PulledToSteps, drawn_bits
from zoopress_plugins.quantization.trained.weights.learned_step import LearnedStep, stepped
from zoopress_plugins.quantization.trained.weights.stochastic_rounding import (
    stochastically_rounded,
)

TRAINING = {"steps": 12, "batch_size": 16, "learning_rate": 0.01, "response": "logits"}
SCHEMES = [
    (scheme, bits)
    for scheme in WEIGHT_SCHEMES
    for bits in sorted({WEIGHT_BITS[scheme][0], WEIGHT_BITS[scheme][-1]})
]


def config(**given: Any) -> QuantizationAwareTrainingConfig:
    options = {"kinds": ["linear"], "training": TRAINING, **given}
    return QuantizationAwareTrainingConfig.model_validate(options)


def context(folder: Path, told: Callable[..., None] = lambda *_: None) -> Context:
    task = Classification()
    return Context(
        seed=0,
        device=torch.device("cpu"),
        batches=lambda: [task.samples("training").batch(range(32)).inputs],
        call=lambda module, batch: task.forward(module, batch).detach(),
        progress=told,
        checkpoint=folder,
        task=task,
        teacher=lambda card: perceptron(),
    )


def quantize(
    folder: Path, model: Model, told: Callable[..., None] = lambda *_: None, **given: Any
) -> Outcome:
    return QuantizationAwareTraining(config(**given)).apply(model, context(folder, told))


def model(dropout: float = 0.0) -> Model:
    return Model(perceptron(dropout=dropout), layers=load_plugins().layers)


class Layers(nn.Module):
    """A layer of each kind, two of which share a weight."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(17, 12)
        self.conv = nn.Conv1d(12, 12, 3, padding=1)
        self.transposed = nn.ConvTranspose1d(12, 12, 3, padding=1)
        self.rnn = nn.LSTM(12, 12, batch_first=True)
        self.attention = nn.MultiheadAttention(12, 2, batch_first=True)
        self.head = nn.Linear(12, 17)
        self.head.weight = self.embedding.weight

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens)
        x = self.transposed(self.conv(x.transpose(1, 2)).relu()).transpose(1, 2)
        x = x + self.rnn(x)[0]
        result: Tensor = self.head(self.attention(x, x, x)[0])
        return result


@pytest.mark.parametrize(("scheme", "bits"), SCHEMES)
def test_what_is_stored_is_bit_by_bit_what_training_computed_with(
    scheme: WeightScheme, bits: int
) -> None:
    torch.manual_seed(0)
    subject = Model(Layers().eval(), layers=load_plugins().layers)
    tokens = torch.randint(0, 17, (3, 5))
    weights = list(subject.weights())
    masked = [weight for weight in weights if weight.kind == "conv"]
    for weight in masked if has_zero(scheme) else []:
        subject.mask(weight, torch.rand(weight.parameter.shape) < 0.5)
    pairs = [(weight, weight_scheme(scheme)(weight, bits)) for weight in weights]
    state = {name: tensor.shape for name, tensor in subject.tensors().items()}
    with held(subject, pairs, {}), differentiable(subject.module):
        optimizer = torch.optim.SGD(subject.module.parameters(), lr=0.05)
        subject.module.train()
        for _ in range(3):
            optimizer.zero_grad()
            subject.module(tokens).square().mean().backward()
            optimizer.step()
            for weight, quantizer in pairs:
                quantizer.after_step()
                assert quantizer.shadow.grad is not None, weight.name
                assert bool(quantizer.shadow.grad.abs().sum() > 0), weight.name
                mask = subject.masks.get(weight.name)
                if mask is not None:  # the loop's own constraint
                    with torch.no_grad():
                        quantizer.shadow.masked_fill_(~mask, 0.0)
        subject.module.eval()
        with torch.no_grad():
            seen = subject.module(tokens)
            values = {weight.name: quantizer().clone() for weight, quantizer in pairs}
    assert {name: tensor.shape for name, tensor in subject.tensors().items()} == state
    assert subject.module.head.weight is subject.module.embedding.weight
    for weight, quantizer in pairs:
        assert torch.equal(weight.matrix(), values[weight.name])
        form = quantizer.form()
        subject.pack(weight, form.packing, form.arguments, form.tensors)
    for weight, _ in pairs:
        dense = packed_weights(subject.module)[weight.name].dense()
        assert torch.equal(dense, weight.from_matrix(values[weight.name])), weight.name
    with torch.no_grad():
        assert torch.allclose(subject.module(tokens), seen, atol=1e-6)


@pytest.mark.parametrize("inputs", INPUT_SCHEMES)
@pytest.mark.parametrize("low", [-2.0, 0.0])
def test_an_input_grid_gives_bit_by_bit_what_its_quantizer_gave(
    inputs: InputScheme, low: float
) -> None:
    torch.manual_seed(0)
    seen = SeenInput(low, 3.0, 0.7, 0.8)
    if input_scheme(inputs).refusal(seen):
        assert (low < 0) == (inputs == "half_wave_gaussian")
        return
    for bits in (1,) if inputs == "sign" else (2, 5, 8):
        quantizer = input_scheme(inputs)(seen, bits)
        for parameter in quantizer.parameters():
            with torch.no_grad():
                parameter.mul_(0.913)
        x = (2 * torch.randn(500)).requires_grad_()
        rounded = quantizer(x)
        subject = Model(nn.Sequential(nn.Linear(500, 2)))
        subject.quantize_input("0", *quantizer.grid())
        with torch.no_grad():
            assert torch.equal(input_grids(subject.module)["0"](x), rounded)
        rounded.sum().backward()
        assert x.grad is not None
        if inputs == "sign":
            assert len(rounded.unique()) == 2
            assert torch.equal(x.grad, (x.abs() <= 0.8**0.5).float())
            return
        low_end, high_end = (end * float(quantizer.scale().detach()) for end in quantizer.limits)
        inside = (x > low_end) & (x < high_end)
        assert torch.allclose(x.grad, inside.float())
        assert len(rounded.unique()) <= 2**bits


def test_a_learned_step_has_the_derivative_of_the_paper() -> None:
    """Esser et al. 2020, eq. 3: the error of rounding inside, the outermost level outside."""
    matrix = torch.tensor([[0.3, -0.44, 5.0, -5.0]], requires_grad=True)
    step = torch.tensor([[0.2]], requires_grad=True)
    gradient = torch.tensor([[1.0, 10.0, 100.0, 1000.0]])
    stepped(matrix, step, 3).backward(gradient)
    assert matrix.grad is not None
    assert step.grad is not None
    assert matrix.grad.tolist() == [[1.0, 10.0, 0.0, 0.0]]
    expected = (2 - 1.5) + 10 * (-2 + 2.2) + 100 * 3 + 1000 * -4
    assert math.isclose(float(step.grad), expected, rel_tol=1e-5)


def test_the_clip_of_pact_learns_from_what_it_clips() -> None:
    pact = Pact(SeenInput(0.0, 2.0, 1.0, 1.0), 4)
    pact(torch.tensor([0.5, 1.9, 2.5, 7.0, -1.0])).backward(
        torch.tensor([1.0, 2.0, 4.0, 8.0, 16.0])
    )
    assert pact.alpha.factor.grad is not None
    assert math.isclose(float(pact.alpha.factor.grad), 2.0 * (4 + 8), rel_tol=1e-6)


def test_half_wave_steps_are_those_of_the_best_even_quantizer_of_normal_numbers() -> None:
    """Max 1960, table II: 0.6508 for seven levels, three of which are above zero."""
    assert abs(half_wave_step(2) - 0.6508) < 0.002
    assert half_wave_step(2) > half_wave_step(3) > half_wave_step(4)


def test_networks_of_signs_train_and_name_what_has_none(tmp_path: Path) -> None:
    subject = model()
    outcome = quantize(tmp_path, subject, weights="scaled_sign", inputs="sign")
    grids = input_grids(subject.module)
    assert set(grids) == {"0"}  # the others come behind a ReLU
    assert set(outcome.notes["inputs_left"]) == {"4", "6"}
    x = torch.tensor([[0.3, -0.2, 0.0, -9.0, float("nan"), 5.0]])
    with torch.no_grad():
        signs = grids["0"](x) / grids["0"].scale
    assert signs.nan_to_num(7.0).tolist() == [[1.0, -1.0, 1.0, -1.0, 7.0, 1.0]]
    codes, _, _ = grids["0"].codes(x[:, :4])
    assert codes.tolist() == [[1, -1, 1, -1]]


def test_stochastic_rounding_is_right_in_the_mean() -> None:
    torch.manual_seed(0)
    drawn = stochastically_rounded(torch.full((20_000,), 2.3))
    assert drawn.unique().tolist() == [2.0, 3.0]
    assert abs(float(drawn.mean()) - 2.3) < 0.02
    assert torch.equal(stochastically_rounded(torch.zeros(9)), torch.zeros(9))


@pytest.mark.parametrize(
    ("weights", "inputs"),
    [("learned_step", "learned_step"), ("ternary", "pact"), ("scaled_sign", "dorefa")],
)
def test_the_packed_model_is_the_one_that_was_evaluated_best(
    tmp_path: Path, weights: str, inputs: str
) -> None:
    subject, task = model(), Classification()
    training = {**TRAINING, "alpha": 1.0}
    outcome = quantize(tmp_path, subject, weights=weights, inputs=inputs, training=training)
    assert set(outcome.touched) >= {"0.weight", "4.weight", "6.weight", "0", "4", "6", "0.bias"}
    assert len(input_grids(subject.module)) == 3
    (batch,) = [task.samples("validation").batch(range(40))]
    with torch.no_grad():
        loss = float(task.loss(task.forward(subject.module, batch.inputs), batch.targets))
    (best,) = [e for e in outcome.notes["evaluations"] if e["step"] == outcome.notes["best_step"]]
    assert math.isclose(loss, best["loss"], rel_tol=1e-5)


def test_training_rounded_beats_rounding_after_training(tmp_path: Path) -> None:
    """With signs alone the network has to learn what it knew anew."""
    subject = model()
    training = {**TRAINING, "steps": 150, "learning_rate": 0.02}
    outcome = quantize(tmp_path, subject, weights="scaled_sign", training=training)
    losses = [evaluation["loss"] for evaluation in outcome.notes["evaluations"]]
    assert min(losses) < losses[0] / 2


@pytest.mark.parametrize("scheme", [s for s in WEIGHT_SCHEMES if has_zero(s)])
def test_masked_weights_stay_zero(tmp_path: Path, scheme: str) -> None:
    subject = model()
    masks = {}
    for weight in subject.weights(["linear"]):
        masks[weight.name] = torch.rand(weight.parameter.shape) < 0.5
        subject.mask(weight, masks[weight.name])
    quantize(tmp_path, subject, weights=scheme)
    for name, packed in packed_weights(subject.module).items():
        assert bool((packed.dense()[~masks[name]] == 0).all())
    assert set(subject.masks) == {f"{name}.codes" for name in masks}


def test_signs_of_pruned_weights_are_refused(tmp_path: Path) -> None:
    subject = model()
    for weight in subject.weights(["linear"]):
        subject.mask(weight, weight.parameter > 0)
    with pytest.raises(StageError, match="has no zero"):
        quantize(tmp_path, subject, weights="binary_connect")


class KilledError(Exception):
    pass


@pytest.mark.parametrize("weights", ["ternary_connect", "differentiable_dynamic"])
def test_a_killed_run_goes_on_to_the_same_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, weights: str
) -> None:
    def kill(item: str, fraction: float | None = None) -> None:
        if item.startswith("step 7 "):
            raise KilledError

    told: list[str] = []
    options = {"weights": weights, "inputs": "learned_step"}
    whole, parts, killed = model(0.3), model(0.3), model(0.3)
    quantize(tmp_path / "whole", whole, **options)
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "SECONDS", 0.0)
        patch.setattr(checkpoint, "SHARE", 1e9)
        patch.setattr("zoopress.training.walk._SECONDS_BETWEEN_NEWS", -1.0)
        with pytest.raises(KilledError):
            quantize(tmp_path / "parts", killed, told=kill, **options)
    assert not packed_weights(killed.module)
    assert {name for name, _ in killed.module.named_parameters()} == {
        name for name, _ in perceptron().named_parameters()
    }
    quantize(
        tmp_path / "parts", parts, told=lambda item, fraction=None: told.append(item), **options
    )
    assert not any(item.startswith("step 1 ") for item in told)
    assert same(whole.module, parts.module)
    again = model(0.3)  # what was finished is found, its scales too
    quantize(tmp_path / "parts", again, **options)
    assert same(whole.module, again.module)


def test_the_model_learns_from_itself_with_inputs_of_more_bits(tmp_path: Path) -> None:
    free, taught = model(), model()
    options = {"inputs": "learned_step", "input_bits": 2, "training": {**TRAINING, "alpha": 1.0}}
    quantize(tmp_path / "free", free, **options)
    outcome = quantize(tmp_path / "taught", taught, stochastic_precision=1.0, **options)
    assert outcome.notes["evaluations"][0]["loss"] > 0
    assert not same(free.module, taught.module)
    (norm,) = [m for m in taught.module.modules() if isinstance(m, nn.BatchNorm1d)]
    assert int(norm.num_batches_tracked or 0) <= TRAINING["steps"]  # type: ignore[operator]
    assert all(grid.bits == 2 for grid in input_grids(taught.module).values())


def test_drawn_bits_cover_the_same_range_more_finely() -> None:
    torch.manual_seed(0)
    quantizer = Pact(SeenInput(0.0, 3.0, 1.0, 1.0), 2)
    x = torch.linspace(-1, 5, 4001)
    with torch.no_grad():
        coarse = quantizer(x)
        for _ in range(8):
            with drawn_bits([quantizer], 8):
                assert quantizer.finer is not None
                fine = quantizer(x)
                assert len(fine.unique()) == 2**quantizer.finer
            assert float(fine.max()) == pytest.approx(3.0)
        assert torch.equal(quantizer(x), coarse)


def test_the_periodic_penalty_pulls_shadows_to_their_levels(tmp_path: Path) -> None:
    def distance(weight: float) -> float:
        subject, gaps = model(), []
        pairs = [(w, LearnedStep(w, 3)) for w in subject.weights(["linear"])]
        term = PulledToSteps(weight, [quantizer for _, quantizer in pairs])
        with held(subject, pairs, {}):
            within = replace(context(tmp_path / str(weight)), terms=[term])
            within.train(
                subject, TrainingConfig(steps=60, learning_rate=0.003, weight_decay=0), [], 1.0
            )
        for _, quantizer in pairs:
            levels = (quantizer.matrix() / quantizer.step()[:, None]).detach().flatten()
            gaps.append((levels - levels.round()).abs())
        return float(torch.cat(gaps).mean())

    assert distance(3.0) < 0.6 * distance(0.0)


def test_self_study_comes_before_the_teacher(tmp_path: Path) -> None:
    """Kim et al. 2019, QKD: two trainings of the same shadows."""
    subject = model()
    outcome = quantize(tmp_path, subject, self_study={"steps": 20, "learning_rate": 0.01})
    study = outcome.notes["self_study"]
    assert study["steps"] == 20
    assert outcome.notes["steps"] == TRAINING["steps"]
    assert len(packed_weights(subject.module)) == 3


def test_it_composes_with_pruning_before_and_coding_after(tmp_path: Path) -> None:
    training = {"steps": 4, "batch_size": 16, "learning_rate": 0.003, "alpha": 0.5}
    aware = config(
        kinds=["linear", "conv"], bits=4, inputs="learned_step", input_bits=4, training=training
    )
    card = tiny_card("cnn", tmp_path / "card", labelled=True)
    result = run_chain(
        [
            MagnitudePruning(MagnitudePruningConfig(sparsity=0.5)),
            QuantizationAwareTraining(aware),
            EntropyCoding(EntropyCodingConfig()),
        ],
        card,
        tmp_path / "run",
    )
    loaded = reload_artifact(result.artifact, card)
    assert len(input_grids(loaded.module)) == 6
    for packed in packed_weights(loaded.module).values():
        dense = packed.dense()
        assert bool((dense == 0).float().mean() >= 0.4)
        assert all(len(row.unique()) <= 16 for row in dense)


def test_what_makes_no_sense_is_refused() -> None:
    with pytest.raises(ValidationError, match="may be 1, not 3"):
        config(weights="scaled_sign", bits=3)
    with pytest.raises(ValidationError, match="'lora' leaves weights"):
        config(training={**TRAINING, "lora": {}})
    with pytest.raises(ValidationError, match="'periodic' pulls to learned steps"):
        config(weights="ternary", periodic=0.1)
    with pytest.raises(ValidationError, match="'input_bits' below 8"):
        config(inputs="pact", stochastic_precision=0.1)


@pytest.mark.slow
def test_signs_run_elsewhere_as_they_were_evaluated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("onnxruntime")
    monkeypatch.setenv("ZOOPRESS_CACHE", str(tmp_path / "cache"))
    training = {"steps": 3, "batch_size": 16}
    signs = config(kinds=["conv"], weights="scaled_sign", inputs="sign", training=training)
    card = tiny_card("cnn", tmp_path / "card")
    made = run_chain([QuantizationAwareTraining(signs)], card, tmp_path / "run")
    x = torch.randn(5, 3, 16, 16)
    own = zoopress.load(made.artifact, factory=cnn)
    other = zoopress.load(made.artifact, factory=cnn, runtime="onnxruntime")
    with torch.no_grad():
        assert torch.allclose(own(x), other(x), atol=1e-5)
