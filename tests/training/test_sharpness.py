"""Sharpness-aware steps: gradients come from where the loss is highest nearby."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from synthetic_task import perceptron, run, same
from zoopress.models.model import Model
from zoopress.tasks import Batch
from zoopress.training.config import TrainingConfig
from zoopress.training.sharpness import climbed
from zoopress.training.term import Term


def test_weights_climb_along_their_gradients_together_and_come_back() -> None:
    parameters = [nn.Parameter(torch.tensor(v)) for v in ([1.0, 2.0], [3.0], [7.0])]
    parameters[0].grad, parameters[1].grad = torch.tensor([3.0, 0.0]), torch.tensor([4.0])
    with climbed(parameters, 0.5):
        moved = [parameter.tolist() for parameter in parameters]
    assert moved == [[pytest.approx(1.3), 2.0], [pytest.approx(3.4)], [7.0]]
    assert [parameter.tolist() for parameter in parameters] == [[1.0, 2.0], [3.0], [7.0]]


def test_nothing_climbs_without_a_slope() -> None:
    parameter = nn.Parameter(torch.ones(2))
    parameter.grad = torch.zeros(2)
    with climbed([parameter], 0.5):
        assert parameter.tolist() == [1.0, 1.0]


def test_a_step_takes_the_slope_from_where_it_climbed_to(tmp_path: Path) -> None:
    """Of w² ÷ 2 the slope at w + ρ is larger by ρ, so a step of plain descent is."""

    class Slope(Term):
        def forward(self, batch: Batch, output: Tensor) -> Tensor:
            return self.held[0].square().sum() / 2  # type: ignore[no-any-return]

        held: tuple[nn.Parameter, ...] = ()

    ends = []
    for sharpness in (None, 0.25):
        layer = nn.Linear(6, 3)
        with torch.no_grad():
            layer.weight.zero_()
            layer.bias.copy_(torch.tensor([2.0, 0.0, 0.0]))
        term = Slope("slope")
        term.held = (layer.bias,)
        run(
            *(layer, tmp_path / str(sharpness)),
            terms=[term],
            task_weight=0.0,
            **{"epochs": None, "steps": 1, "evaluations": 0, "sharpness": sharpness},
            **{"optimizer": "sgd", "learning_rate": 0.1, "momentum": 0.0, "weight_decay": 0.0},
            **{"schedule": "constant", "warm_up": 0.0, "max_gradient_norm": None},
        )
        ends.append(float(layer.bias[0].detach()))
    assert ends == [pytest.approx(2 - 0.1 * 2), pytest.approx(2 - 0.1 * 2.25)]


def test_masks_and_running_statistics_are_those_of_single_passes(tmp_path: Path) -> None:
    plain, sharp = Model(perceptron()), Model(perceptron())
    masks = {}
    for model in (plain, sharp):
        for weight in model.weights(["linear"]):
            masks[weight.name] = weight.parameter > 0
            model.mask(weight, masks[weight.name])
    options = {"epochs": None, "steps": 6, "evaluations": 0}
    run(plain, tmp_path / "plain", **options)
    run(sharp, tmp_path / "sharp", sharpness=0.1, **options)
    assert not same(plain.module, sharp.module)
    norms = [model.module.get_submodule("1") for model in (plain, sharp)]
    assert [int(norm.num_batches_tracked) for norm in norms] == [6, 6]  # type: ignore[arg-type]
    for weight in sharp.weights(["linear"]):
        assert bool((weight.parameter[~masks[weight.name]] == 0).all())


def test_equal_seeds_give_equal_weights_with_dropout(tmp_path: Path) -> None:
    models = [perceptron(dropout=0.3), perceptron(dropout=0.3)]
    for i, model in enumerate(models):
        run(model, tmp_path / str(i), epochs=None, steps=4, sharpness=0.05)
    assert same(*models)


def test_scales_of_packed_weights_do_not_climb() -> None:
    with pytest.raises(ValidationError, match="'sharpness' moves weights"):
        TrainingConfig(steps=1, sharpness=0.05, packed="tune")
