"""Incremental quantization: weights take shared values a few at a time, in a training."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings, strategies as st
from pydantic import ValidationError
from torch import Tensor, nn

from synthetic_task import Classification, perceptron, same
from zoopress.errors import StageError
from zoopress.models.model import Model
from zoopress.models.packing import packed_weights
from zoopress.plugins import load_plugins
from zoopress.techniques import Context, Outcome
from zoopress.training import checkpoint
from zoopress_plugins.quantization.codebook_quantization import (
    Codebook,
    CodebookQuantization,
    CodebookQuantizationConfig,
)
from zoopress_plugins.quantization.forms.levels import LevelsWeight
from zoopress_plugins.quantization.incremental_quantization import (
    IncrementalQuantization,
    IncrementalQuantizationConfig,
    RisingShare,
    power_codebook,
    share_means,
)

TRAINING = {"steps": 40, "batch_size": 16, "learning_rate": 0.01, "response": "logits"}
VALUES = torch.tensor([-1.0, -0.25, 0.0, 0.5, 1.0])


def config(**given: Any) -> IncrementalQuantizationConfig:
    options = {"bits": 3, "interval": 2, "training": TRAINING, **given}
    return IncrementalQuantizationConfig.model_validate(options)


def context(folder: Path, told: Callable[..., None] = lambda *_: None) -> Context:
    task = Classification()
    return Context(
        seed=0,
        device=torch.device("cpu"),
        batches=lambda: [task.samples("training").batch(range(8)).inputs],
        call=lambda module, batch: task.forward(module, batch).detach(),
        progress=told,
        checkpoint=folder,
        task=task,
        teacher=lambda card: perceptron(),
    )


def quantize(
    folder: Path, model: Model, told: Callable[..., None] = lambda *_: None, **given: Any
) -> Outcome:
    return IncrementalQuantization(config(**given)).apply(model, context(folder, told))


def model(dropout: float = 0.0) -> Model:
    return Model(perceptron(dropout=dropout), layers=load_plugins().layers)


def decoded(model: Model) -> dict[str, Tensor]:
    return {name: weight.dense() for name, weight in packed_weights(model.module).items()}


def test_entries_of_one_code_get_their_mean_and_those_of_code_zero_none() -> None:
    entries = torch.tensor([1.0, 2.0, 4.0, 5.0, 7.0])
    codes = torch.tensor([1, -1, 1, 0, 3])
    means = share_means(entries, codes, torch.tensor([9.0, 9.0, 9.0, 9.0]))
    assert entries.tolist() == [2.5, 2.0, 2.5, 0.0, 7.0]
    assert means.tolist() == [0.0, 2.5, 9.0, 7.0]


@settings(max_examples=25, deadline=None)
@given(
    steps=st.integers(1, 30),
    interval=st.integers(1, 9),
    end=st.floats(0.1, 1.0),
    entropy_weight=st.sampled_from([0.0, 0.1]),
    zeros=st.floats(0, 1),
    seed=st.integers(0, 99),
)
def test_what_has_a_value_keeps_to_it_and_all_have_one_in_time(
    steps: int, zeros: float, seed: int, **given: Any
) -> None:
    torch.manual_seed(seed)
    module = nn.Sequential(nn.Linear(7, 9), nn.Conv1d(3, 4, 3)).to(torch.float32)
    weights = list(Model(module).weights())
    with torch.no_grad():
        for weight in weights:
            weight.parameter.masked_fill_(torch.rand(weight.parameter.shape) < zeros, 0.0)
    masks = [weight.parameter != 0 for weight in weights]
    books = [Codebook(VALUES, torch.full_like(VALUES, 2.0)) for _ in weights]
    importances = [torch.ones(1), torch.rand(weights[1].parameter.numel())]
    rising = RisingShare(weights, books, importances, steps, config(**given))
    held: list[dict[str, Tensor]] = [{}]
    for step in range(1, steps + 1):
        for weight, mask in zip(weights, masks, strict=True):
            weight.parameter.grad = torch.randn(weight.parameter.shape) * mask
        rising.before_step()
        with torch.no_grad():
            for weight, mask in zip(weights, masks, strict=True):
                weight.parameter.add_(torch.randn(weight.parameter.shape) * mask)
        rising.after_step()
        now = {name: tensor.clone() for name, tensor in rising.tensors().items()}
        for i, weight in enumerate(weights):
            codes, flat = now[f"codes/{i}"], weight.matrix().flatten()
            before = held[-1].get(f"codes/{i}", torch.full_like(codes, -1))
            assert torch.equal(codes[before >= 0], before[before >= 0])
            assert torch.equal(flat[codes >= 0], now[f"values/{i}"][codes[codes >= 0].long()])
            assert bool((flat[codes == 0] == 0).all())
            assert bool((weight.parameter[~masks[i]] == 0).all())
        assert rising.reached() == (step >= max(1, round(given["end"] * steps)))
        if rising.reached():
            assert all(bool((now[f"codes/{i}"] >= 0).all()) for i in range(2))
        held.append(now)


def test_weights_that_share_a_value_get_the_mean_of_their_gradients() -> None:
    layer = nn.Linear(4, 1, bias=False)
    (weight,) = Model(layer).weights()
    with torch.no_grad():
        weight.parameter.copy_(torch.tensor([[0.49, 0.51, -1.0, 0.0]]))
    rising = RisingShare([weight], [Codebook(VALUES, VALUES)], [torch.ones(1)], 4, config(end=0.25))
    rising.after_step()
    assert weight.parameter.tolist() == [[0.5, 0.5, -1.0, 0.0]]
    weight.parameter.grad = torch.tensor([[1.0, 3.0, 5.0, 7.0]])
    rising.before_step()
    assert weight.parameter.grad.tolist() == [[2.0, 2.0, 5.0, 0.0]]


def test_weights_near_a_value_take_it_first() -> None:
    layer = nn.Linear(4, 1, bias=False)
    (weight,) = Model(layer).weights()
    with torch.no_grad():
        weight.parameter.copy_(torch.tensor([[0.49, 0.7, -0.99, 0.2]]))
    book = Codebook(VALUES, torch.zeros(5))
    # In the first of two steps, 7/8 of the way by the cubic schedule: one of four is left.
    rising = RisingShare([weight], [book], [torch.ones(1)], 2, config(end=1.0, interval=1))
    rising.after_step()
    taken = [round(float(value), 4) for value in weight.matrix().flatten()]
    assert sum(value in VALUES.tolist() for value in taken) == 4 - round(4 / 8)
    assert taken[0] == 0.5
    assert taken[2] == -1.0


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_each_layer_holds_as_many_values_as_its_bits_allow(tmp_path: Path, bits: int) -> None:
    subject = model()
    outcome = quantize(tmp_path, subject, bits=bits)
    for name, weight in decoded(subject).items():
        assert len(weight.unique()) <= 2**bits, name
        assert name in outcome.touched


def test_powers_of_two_are_taken_by_the_largest_weights_first_and_stay() -> None:
    layer = nn.Linear(4, 1, bias=False)
    (weight,) = Model(layer).weights()
    with torch.no_grad():
        weight.parameter.copy_(torch.tensor([[0.49, -0.7, 0.1, 0.0]]))
    book = power_codebook(weight, 3)
    # 4 · 0.7 ÷ 3 = 0.93, so the largest power is 2⁻¹.
    assert book.values.tolist() == [-0.5, -0.25, -0.125, 0, 0.125, 0.25, 0.5]
    given = config(values="power_of_two", end=1.0, interval=1)
    rising = RisingShare([weight], [book], [torch.ones(1)], 2, given)
    rising.after_step()
    assert weight.parameter.flatten()[:2].tolist() == [0.5, -0.5]
    weight.parameter.grad = torch.ones(1, 4)
    rising.before_step()
    assert weight.parameter.grad[0, :2].tolist() == [0, 0]
    with torch.no_grad():
        weight.parameter.add_(0.3)
    rising.after_step()
    assert set(weight.parameter.flatten().tolist()) <= set(book.values.tolist())
    assert weight.parameter.flatten()[:2].tolist() == [0.5, -0.5]


def test_powers_of_two_are_packed_as_what_was_trained(tmp_path: Path) -> None:
    subject = model()
    outcome = quantize(tmp_path, subject, bits=3, values="power_of_two")
    assert set(outcome.touched) >= set(decoded(subject))
    for name, weight in packed_weights(subject.module).items():
        assert isinstance(weight, LevelsWeight), name
        sizes = weight.dense()[weight.dense() != 0].abs()
        assert torch.equal(sizes.log2(), sizes.log2().round())
        assert len(weight.dense().unique()) <= 7
    with pytest.raises(ValidationError, match="2 to 5 bits"):
        config(values="power_of_two", bits=6)
    with pytest.raises(ValidationError, match="leave them out"):
        config(values="power_of_two", entropy_weight=0.1)


def test_masked_weights_stay_zero(tmp_path: Path) -> None:
    subject = model()
    masks = {}
    for weight in subject.weights():
        if weight.kind == "linear":
            masks[weight.name] = torch.rand(weight.parameter.shape) < 0.5
            subject.mask(weight, masks[weight.name])
    quantize(tmp_path, subject)
    assert masks
    for name, weight in decoded(subject).items():
        assert bool((weight[~masks[name]] == 0).all())


class KilledError(Exception):
    pass


def test_a_killed_run_goes_on_to_the_same_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def kill(item: str, fraction: float | None = None) -> None:
        if item.startswith("step 21 "):
            raise KilledError

    told: list[str] = []
    whole, parts = model(0.3), model(0.3)
    quantize(tmp_path / "whole", whole)
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "SECONDS", 0.0)
        patch.setattr(checkpoint, "SHARE", 1e9)
        patch.setattr("zoopress.training.walk._SECONDS_BETWEEN_NEWS", -1.0)
        with pytest.raises(KilledError):
            quantize(tmp_path / "parts", model(0.3), told=kill)
    quantize(tmp_path / "parts", parts, told=lambda item, fraction=None: told.append(item))
    assert any(item.startswith("step 40 ") for item in told)
    assert not any(item.startswith("step 1 ") for item in told)
    assert same(whole.module, parts.module)


def test_training_while_they_share_costs_less_than_sharing_alone(tmp_path: Path) -> None:
    """One value of each sign a layer: rounding at once is far from the teacher."""
    teacher, alone, trained = perceptron(), model(), model()
    inputs = Classification().samples("training").batch(range(64)).inputs
    options = {"bits": 2, "kinds": ["linear"]}
    CodebookQuantization(CodebookQuantizationConfig.model_validate(options)).apply(
        alone, context(tmp_path)
    )
    quantize(
        tmp_path,
        trained,
        **options,
        training={**TRAINING, "steps": 300, "alpha": 0, "response": "regression"},
    )

    def error(of: Model) -> float:
        task = Classification()
        with torch.no_grad():
            difference = task.forward(of.module, inputs) - task.forward(teacher, inputs)
        return float(difference.square().mean())

    assert error(trained) < error(alone) / 2


def test_a_weight_that_is_not_trained_is_refused(tmp_path: Path) -> None:
    subject = model()
    with pytest.raises(StageError, match="is not trained"):
        quantize(tmp_path, subject, training={**TRAINING, "learning_rates": {"0.*": 0}})


def test_one_codebook_for_all_layers_is_refused() -> None:
    with pytest.raises(ValidationError, match="codebook_quantization"):
        config(scope="global")
