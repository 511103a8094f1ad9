"""Weights are pulled to levels while they train, and are packed as what they end at."""

from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from synthetic_task import Classification, perceptron
from zoopress.models.model import Model
from zoopress.models.packing import packed_weights
from zoopress.plugins import load_plugins
from zoopress.techniques import Context, Outcome
from zoopress_plugins.quantization.admm_quantization import (
    AdmmQuantization,
    AdmmQuantizationConfig,
    PulledToLevels,
    project,
)
from zoopress_plugins.quantization.forms.levels import LevelsWeight
from zoopress_plugins.quantization.grids.named import named_grid

TRAINING = {"steps": 40, "batch_size": 16, "learning_rate": 0.01, "response": "logits"}


def config(**given: Any) -> AdmmQuantizationConfig:
    return AdmmQuantizationConfig.model_validate({"interval": 4, "training": TRAINING, **given})


def quantize(folder: Path, model: Model, **given: Any) -> Outcome:
    task = Classification()
    context = Context(
        seed=0,
        device=torch.device("cpu"),
        batches=lambda: [task.samples("training").batch(range(8)).inputs],
        call=lambda module, batch: task.forward(module, batch).detach(),
        progress=lambda *_: None,
        checkpoint=folder,
        task=task,
        teacher=lambda card: perceptron(),
    )
    return AdmmQuantization(config(**given)).apply(model, context)


def test_the_pull_is_that_of_the_paper_and_what_is_left_adds_up() -> None:
    layer = nn.Linear(4, 1, bias=False)
    (weight,) = Model(layer).weights()
    with torch.no_grad():
        weight.parameter.copy_(torch.tensor([[1.0, -1.0, 0.2, 1.4]]))
    pulled = PulledToLevels([weight], 3, config(interval=1, penalty=0.5))
    grid = named_grid("ternary", 2)
    levels = project(weight.matrix(), grid, by_row=True)
    rest = weight.matrix() - levels
    weight.parameter.grad = torch.full((1, 4), 2.0)
    pulled.before_step()
    # W − G + U = 2 (W − G) at first.
    assert weight.parameter.grad is not None
    torch.testing.assert_close(weight.parameter.grad, 2 + 0.5 * 2 * rest)
    pulled.after_step()
    again = project(weight.matrix() + rest, grid, by_row=True)
    torch.testing.assert_close(pulled.tensors()["levels/0"], again)
    torch.testing.assert_close(pulled.tensors()["rest/0"], rest + weight.matrix() - again)
    assert not pulled.reached()
    for _ in range(2):
        pulled.after_step()
    assert pulled.reached()
    assert len(weight.parameter.abs().unique()) <= 2


@pytest.mark.parametrize("scale", ["row", "tensor"])
@pytest.mark.parametrize("grid", ["binary", "ternary", "power_of_two"])
def test_what_is_packed_is_what_was_trained(
    grid: str, scale: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained: dict[str, torch.Tensor] = {}
    packing = Model.pack

    def watched(self: Model, weight: Any, *rest: Any) -> None:
        trained[weight.name] = weight.parameter.detach().clone()
        packing(self, weight, *rest)

    monkeypatch.setattr(Model, "pack", watched)
    subject = Model(perceptron(), layers=load_plugins().layers)
    outcome = quantize(tmp_path, subject, grid=grid, scale=scale)
    found = packed_weights(subject.module)
    assert found
    assert set(found) == set(trained)
    assert set(outcome.touched) >= set(found)
    for name, weight in found.items():
        assert isinstance(weight, LevelsWeight)
        assert torch.equal(weight.dense(), trained[name])


def test_training_to_levels_beats_rounding_to_them(tmp_path: Path) -> None:
    task, original = Classification(), perceptron()
    samples = task.samples("training").batch(range(64)).inputs
    wanted = task.forward(original, samples).detach()
    trained = Model(perceptron(), layers=load_plugins().layers)
    training = {**TRAINING, "steps": 200}
    quantize(tmp_path, trained, training=training, penalty=0.1, interval=10)
    rounded = perceptron()
    grid = named_grid("ternary", 2)
    for weight in Model(rounded).weights(("linear",)):
        with torch.no_grad():
            weight.parameter.copy_(project(weight.matrix(), grid, by_row=True))

    def apart(module: nn.Module) -> float:
        return float((task.forward(module, samples).detach() - wanted).square().mean())

    assert apart(trained.module) < 0.8 * apart(rounded)


def test_bits_are_for_powers_of_two_alone() -> None:
    with pytest.raises(ValidationError, match="leave it out"):
        config(grid="ternary", bits=3)
    assert config(grid="power_of_two", bits=4).code_bits == 4
