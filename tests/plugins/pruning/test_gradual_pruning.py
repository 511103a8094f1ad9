"""Gradual pruning reaches its sparsity step by step, in a training that works around what went."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import Tensor, nn

from synthetic_task import Classification, perceptron, same
from zoopress.errors import StageError
from zoopress.models.model import Model
from zoopress.models.weights import Weight
from zoopress.plugins import load_plugins
from zoopress.techniques import Context, Outcome
from zoopress.training import checkpoint
from zoopress_plugins.pruning.gradual_pruning import (
    GradualPruning,
    GradualPruningConfig,
    RisingSparsity,
    place_bits,
)

PLUGINS = load_plugins()
TRAINING = {"steps": 12, "batch_size": 16, "learning_rate": 0.01, "response": "logits"}


def config(**given: Any) -> GradualPruningConfig:
    options = {"sparsity": 0.8, "interval": 2, "end": 0.5, "training": TRAINING, **given}
    return GradualPruningConfig.model_validate(options)


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


def prune(folder: Path, model: Model, **given: Any) -> Outcome:
    return GradualPruning(config(**given)).apply(model, context(folder))


def rising_sparsity(weights: list[Weight], steps: int, **given: Any) -> RisingSparsity:
    chosen = config(**given)
    return RisingSparsity(weights, steps, chosen, chosen.criterion.make(PLUGINS))


def sparsities(model: Model) -> list[float]:
    return [float((weight.parameter == 0).float().mean()) for weight in model.weights()]


def test_a_place_costs_by_the_density_of_its_row_and_column() -> None:
    keep = torch.tensor([[True, True, False, False], [True, False, False, False]])
    bits = place_bits(keep)
    # Rows 1/2 and 1/4, columns 1, 1/2, 0, 0, all 3/8: likelihoods of row · column ÷ all.
    assert bits[0].tolist()[:2] == pytest.approx([3.0, 3 + 0.5849625], abs=1e-5)
    assert bits[1].tolist()[:2] == pytest.approx([3 + 0.5849625, 3 + 1.5849625], abs=1e-5)
    assert bool((bits[:, 2:] > 16).all())  # nobody expects one in an empty column
    vector = place_bits(torch.tensor([[True], [False], [False], [False]]))
    assert vector.flatten().tolist() == pytest.approx([5.0] * 4)


@settings(max_examples=25, deadline=None)
@given(
    sparsity=st.floats(0.05, 0.95),
    steps=st.integers(1, 30),
    interval=st.integers(1, 9),
    end=st.floats(0.1, 1.0),
    criterion=st.sampled_from(["fisher", "magnitude", "random"]),
    per_bit=st.booleans(),
    scope=st.sampled_from(["layer", "global"]),
    seed=st.integers(0, 99),
)
def test_what_goes_stays_gone_and_the_sparsity_is_reached_in_time(
    steps: int, seed: int, **given: Any
) -> None:
    torch.manual_seed(seed)
    module = nn.Sequential(nn.Linear(7, 9), nn.Conv1d(3, 4, 3))
    weights = list(Model(module).weights())
    rising = rising_sparsity(weights, steps, **given)
    total = sum(weight.parameter.numel() for weight in weights)
    before = [torch.zeros_like(weight.parameter, dtype=torch.bool) for weight in weights]
    for step in range(1, steps + 1):
        for weight in weights:
            weight.parameter.grad = torch.randn(weight.parameter.shape)
        rising.before_step()
        for weight, gone in zip(weights, before, strict=True):
            assert weight.parameter.grad is not None
            assert not weight.parameter.grad[gone].any()
            with torch.no_grad():
                weight.parameter.add_(torch.randn(weight.parameter.shape))
        rising.after_step()
        now = [weight.parameter.detach() == 0 for weight in weights]
        for gone, zero in zip(before, now, strict=True):
            assert bool(zero[gone].all())
        assert rising.reached() == (step >= max(1, round(given["end"] * steps)))
        before = now
    if given["scope"] == "global":
        assert sum(int(zero.sum()) for zero in before) == round(given["sparsity"] * total)
    else:
        counts = [int(zero.sum()) for zero in before]
        assert counts == [round(given["sparsity"] * zero.numel()) for zero in before]


def test_a_weight_without_gradients_goes_before_a_smaller_one_that_the_loss_needs() -> None:
    layer = nn.Linear(2, 1, bias=False)
    (weight,) = Model(layer).weights()
    with torch.no_grad():
        weight.parameter.copy_(torch.tensor([[5.0, 1.0]]))
    for criterion, left in (("fisher", [0.0, 1.0]), ("magnitude", [5.0, 0.0])):
        with torch.no_grad():
            weight.parameter.copy_(torch.tensor([[5.0, 1.0]]))
        rising = rising_sparsity([weight], 1, sparsity=0.5, criterion=criterion)
        weight.parameter.grad = torch.tensor([[0.01, 1.0]])
        rising.before_step()
        rising.after_step()
        assert weight.parameter.detach().flatten().tolist() == left


def test_masks_are_of_the_weights_that_are_zero(tmp_path: Path) -> None:
    model = Model(perceptron())
    outcome = prune(tmp_path, model)
    for weight in model.weights():
        assert torch.equal(model.masks[weight.name], weight.parameter.detach() != 0)
    counts = [weight.parameter.numel() for weight in model.weights()]
    overall = sum(s * n for s, n in zip(sparsities(model), counts, strict=True)) / sum(counts)
    assert outcome.claims[0].reached == pytest.approx(overall)
    assert overall == pytest.approx(0.8, abs=0.5 / sum(counts))


def test_no_evaluation_counts_before_the_sparsity_is_reached(tmp_path: Path) -> None:
    """The dense model is the better one, and would be kept."""
    outcome = prune(tmp_path, Model(perceptron()), training={**TRAINING, "evaluations": 12})
    assert outcome.notes["best_step"] >= 6


def test_weights_pruned_before_stay_so(tmp_path: Path) -> None:
    model = Model(perceptron())
    first = next(model.weights())
    keep = torch.arange(first.parameter.numel()).view(first.parameter.shape) % 10 == 0
    model.mask(first, keep)
    prune(tmp_path, model, scope="layer", sparsity=0.5)
    assert not bool(first.parameter.detach()[~keep].any())
    assert sparsities(model)[0] == pytest.approx(0.9, abs=0.02)
    assert sparsities(model)[1] == pytest.approx(0.5, abs=0.02)


@pytest.mark.parametrize("frozen", [{"learning_rates": {"0.*": 0}}, {"lora": {"rank": 2}}])
def test_weights_that_are_not_trained_are_refused(tmp_path: Path, frozen: dict[str, Any]) -> None:
    if "lora" in frozen:
        pytest.importorskip("peft")
    with pytest.raises(StageError, match=r"0\.weight is to be pruned in training.*'exclude'"):
        prune(tmp_path, Model(perceptron()), training={**TRAINING, **frozen})


class KilledError(Exception):
    pass


def test_a_killed_run_goes_on_to_the_same_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, parts = Model(perceptron(dropout=0.3)), Model(perceptron(dropout=0.3))
    prune(tmp_path / "whole", whole, per_bit=True)

    def kill(item: str, fraction: float | None = None) -> None:
        if item.startswith("step 5 "):
            raise KilledError

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "SECONDS", 0.0)
        patch.setattr(checkpoint, "SHARE", 1e9)
        patch.setattr("zoopress.training.walk._SECONDS_BETWEEN_NEWS", -1.0)
        with pytest.raises(KilledError):
            GradualPruning(config(per_bit=True)).apply(
                Model(perceptron(dropout=0.3)), context(tmp_path / "parts", kill)
            )
    told: list[str] = []
    GradualPruning(config(per_bit=True)).apply(
        parts, context(tmp_path / "parts", lambda item, fraction=None: told.append(item))
    )
    assert any(item.startswith("step 12 ") for item in told)
    assert not any(item.startswith("step 1 ") for item in told)
    assert same(whole.module, parts.module)
    assert_same_masks(whole.masks, parts.masks)


def assert_same_masks(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    for name, mask in one.items():
        assert torch.equal(mask, other[name])
