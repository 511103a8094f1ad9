"""What training does to running statistics."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from hypothesis import given, strategies as st
from torch import nn

from synthetic_task import Classification, perceptron, run
from zoopress.training import walk
from zoopress.training.batch_norm import recalibrate


def passed(module: nn.Module, batches: list[torch.Tensor]) -> None:
    for batch in batches:
        module(batch)


@given(sizes=st.lists(st.integers(2, 9), min_size=1, max_size=6), seed=st.integers(0, 99))
def test_recalibration_measures_the_moments_of_all_values_however_they_are_divided(
    sizes: list[int], seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    batches = [seed + torch.randn(n, 3, 4, 4, generator=generator) for n in sizes]
    layer = nn.BatchNorm2d(3).eval()
    momentum = layer.momentum
    recalibrate(layer, lambda: passed(layer, batches))
    values = torch.cat(batches).double().transpose(0, 1).flatten(1)
    torch.testing.assert_close(layer.running_mean, values.mean(1).float())
    torch.testing.assert_close(layer.running_var, values.var(1).float())
    assert layer.momentum == momentum
    assert not layer.training


def test_each_layer_is_measured_behind_layers_that_normalize_by_the_batch() -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4, 4), nn.BatchNorm1d(4)).eval()
    batch = 3 + 5 * torch.randn(200, 4)
    recalibrate(module, lambda: passed(module, [batch]))
    with torch.no_grad():
        inner = module[1](nn.functional.batch_norm(batch, None, None, training=True))
    torch.testing.assert_close(module[2].running_mean, inner.mean(0), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(module[2].running_var, inner.var(0), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("mode", ["train", "freeze"])
def test_statistics_are_learned_or_kept(tmp_path: Path, mode: str) -> None:
    module = perceptron()
    before = copy.deepcopy(module)
    result = run(module, tmp_path, batch_norm=mode, evaluations=0)
    assert torch.equal(module[1].running_mean, before[1].running_mean) == (mode == "freeze")
    assert "1.weight" in result.trained


def test_recalibration_follows_the_weights_that_are_kept(tmp_path: Path) -> None:
    module, task = perceptron(), Classification()
    result = run(module, tmp_path, task, batch_norm="recalibrate", epochs=3, evaluations=3)
    inputs = task.samples("training").batch(range(96)).inputs["x"]
    with torch.no_grad():
        values = module[0](inputs)
    torch.testing.assert_close(module[1].running_mean, values.mean(0), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(module[1].running_var, values.var(0), rtol=1e-5, atol=1e-6)
    assert [e.step for e in result.evaluations] == [0, 6, 12, 18, result.best_step]


def test_recalibration_looks_at_no_more_samples_than_it_needs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(walk, "RECALIBRATION_SAMPLES", 40)
    module = perceptron()
    passes: list[int] = []
    run(module, tmp_path / "trained", evaluations=0)
    module.register_forward_pre_hook(lambda _, inputs: passes.append(len(inputs[0])))
    run(module, tmp_path, evaluations=0, batch_norm="recalibrate", epochs=None, steps=1)
    assert passes == [16] * 4  # a step, and three passes to measure


def test_damaged_statistics_are_repaired(tmp_path: Path) -> None:
    module = perceptron()
    good = max(e.metrics["accuracy"] for e in run(module, tmp_path / "a", epochs=20).evaluations)
    with torch.no_grad():
        module[1].running_var.mul_(1e4)
    result = run(
        module, tmp_path / "b", batch_norm="recalibrate", learning_rate=1e-9, evaluations=1
    )
    assert result.evaluations[0].metrics["accuracy"] < good - 0.2
    assert result.evaluations[-1].metrics["accuracy"] > good - 0.1
