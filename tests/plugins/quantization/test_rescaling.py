"""Channels are scaled where outputs stay, and nowhere else; means move back."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from zoopress.errors import StageError
from zoopress.models.model import Model
from zoopress.plugins import load_plugins
from zoopress.techniques import Context, Outcome
from zoopress.testing.tiny import context_for, seeded, tiny_card
from zoopress_plugins.quantization.activations.rescaling import find_links, outputs_of_run
from zoopress_plugins.quantization.activations.smoothing import smoothing_scale
from zoopress_plugins.quantization.weight_equalization import equalizing_scale
from zoopress_plugins.quantization.weight_quantization import (
    WeightQuantization,
    WeightQuantizationConfig,
)

PLUGINS = load_plugins()


def _first(outputs: Any) -> Tensor:
    found: Tensor = outputs[0] if isinstance(outputs, list) else outputs
    return found


def context_of(module: nn.Module, x: Tensor, folder: Path) -> Context:
    """Return a context for a model of its own."""
    return replace(
        context_for(tiny_card("cnn", folder), folder / "context", PLUGINS),
        batches=lambda: [x],
        call=lambda m, batch: _first(m(batch)).detach(),
        teacher=lambda _: module,
    )


def apply(name: str, model: Model, context: Context, **config: Any) -> Outcome:
    kind = PLUGINS.technique(name)
    return kind(kind.config_type(**config)).apply(model, context)


def through(between: nn.Module, residual: bool = False) -> nn.Module:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.between, self.second = nn.Linear(6, 8), between, nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            hidden = self.first(x)
            result: Tensor = self.second(self.between(hidden))
            return result + hidden[:, :3] if residual else result

    return seeded(Net)


X = torch.randn(64, 6, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("between", "residual", "found"),
    [
        (nn.ReLU(), False, True),
        (nn.LeakyReLU(0.1), False, True),
        (nn.ReLU6(), False, False),
        (nn.GELU(), False, False),
        (nn.ReLU(), True, False),
        (nn.LayerNorm(8), False, True),
    ],
)
def test_links_are_those_that_change_nothing(
    between: nn.Module, residual: bool, found: bool
) -> None:
    model = Model(through(between, residual))
    before = {name: tensor.clone() for name, tensor in model.tensors().items()}
    links, left = find_links(model, lambda: [model.module(X).detach()])
    source = "between" if isinstance(between, nn.LayerNorm) else "first"
    assert [(link.source, link.readers) for link in links] == [(source, ("second",))] * found
    assert ("second" in left) is not found
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.tensors().items())


def test_smoothing_evens_outliers_and_computes_the_same(tmp_path: Path) -> None:
    module = through(nn.LayerNorm(8))
    with torch.no_grad():
        module.between.weight[2] *= 100  # type: ignore[union-attr,operator]
    wanted = module(X).detach()
    model = Model(module)
    told: list[Tensor] = []
    module.second.register_forward_pre_hook(lambda _, args: told.append(args[0].detach()))  # type: ignore[union-attr]
    module(X)
    outcome = apply("activation_smoothing", model, context_of(module, X, tmp_path))
    assert outcome.notes["scaled"] == {"between": ["second"]}
    torch.testing.assert_close(module(X).detach(), wanted, rtol=1e-4, atol=1e-4)
    sizes = [each.abs().amax(0) for each in (told[0], told[-1])]
    assert float(sizes[1].max() / sizes[1].median()) < float(sizes[0].max() / sizes[0].median()) / 4


def test_where_no_layer_before_can_be_scaled_the_input_is(tmp_path: Path) -> None:
    module = through(nn.GELU())
    with torch.no_grad():
        module.first.weight[5] *= 100  # type: ignore[union-attr,operator]
    wanted = module(X).detach()
    model, context = Model(module), context_of(module, X, tmp_path)
    outcome = apply("activation_smoothing", model, context)
    assert "second" in outcome.notes["inserted"]
    assert outcome.notes["strength"]["second"] > 0
    assert "second" not in outcome.notes.get("left", {})
    torch.testing.assert_close(module(X).detach(), wanted, rtol=1e-4, atol=1e-4)

    def harm(smoothed: bool) -> float:
        net = through(nn.GELU())
        with torch.no_grad():
            net.first.weight[5] *= 100  # type: ignore[union-attr,operator]
        rounded, given = Model(net), context_of(net, X, tmp_path)
        if smoothed:
            apply("activation_smoothing", rounded, given)
        apply("activation_quantization", rounded, given, max_harm=1.0, include=["second"])
        return float((net(X) - wanted).detach().norm())

    assert harm(smoothed=True) < harm(smoothed=False) / 2
    with pytest.raises(StageError, match="proportional"):
        apply("activation_smoothing", Model(through(nn.GELU())), context, insert=False)


class Scales(nn.Module):
    """A head that reads two scales of features: what keeps its first output may change the rest."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 8), nn.Linear(8, 8)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> list[Tensor]:
        one = torch.relu(self.first(x))
        return [self.head(one), 1000 * self.head(torch.relu(self.second(one)))]


def test_all_outputs_must_stay(tmp_path: Path) -> None:
    module = seeded(Scales)
    wanted = module(X)
    model, context = Model(module), context_of(module, X, tmp_path)
    links, _ = find_links(model, outputs_of_run(context, model, X))
    assert not any("head" in link.readers for link in links)
    outcome = apply("activation_smoothing", model, context)
    assert "head" in outcome.notes["inserted"]
    for now, before in zip(module(X), wanted, strict=True):
        torch.testing.assert_close(now, before, rtol=1e-4, atol=1e-3)
    assert len(outputs_of_run(context, model, X)()) == 2


def test_harm_is_that_of_the_output_that_suffers_most(tmp_path: Path) -> None:
    class Breaks(Scales):
        def forward(self, x: Tensor) -> list[Tensor]:
            one = torch.relu(self.first(x))
            large = torch.cat([one[:, :7], one[:, 7:] * 1e4 + 1e6], 1)
            return [self.head(one), self.second(large) - 1e6 * self.second.weight[:, 7]]

    module = seeded(Breaks)
    model, context = Model(module), context_of(module, X, tmp_path)
    outcome = apply("activation_quantization", model, context, mode="static", per="tensor")
    assert "second" in outcome.notes["kept_because_they_break"]


def test_a_weight_that_others_read_is_left_alone(tmp_path: Path) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(6, 8), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            hidden = nn.functional.gelu(self.first(x))
            result: Tensor = self.second(hidden) @ self.second.weight
            return result

    module = seeded(Net)
    wanted = module(X).detach()
    outcome = apply(
        "activation_smoothing", Model(module), context_of(module, X, tmp_path), strength=1
    )
    assert outcome.notes["left"]["second"] == "something else reads its weight"
    torch.testing.assert_close(module(X).detach(), wanted, rtol=1e-4, atol=1e-4)


def test_scales_are_those_of_the_papers() -> None:
    made = smoothing_scale(torch.tensor([16.0, 0.0]), torch.tensor([4.0, 1.0]), 0.5)
    assert made.tolist() == [2.0, 1.0]
    scale = equalizing_scale(torch.tensor([8.0, 0.0]), torch.tensor([2.0, 3.0]))
    assert scale.tolist() == [2.0, 1.0]


def test_equalization_gives_both_layers_one_range(tmp_path: Path) -> None:
    module = through(nn.ReLU())
    with torch.no_grad():
        module.first.weight[5] *= 50  # type: ignore[union-attr,operator]
    wanted = module(X).detach()
    apply("weight_equalization", Model(module), context_of(module, X, tmp_path))
    torch.testing.assert_close(module(X).detach(), wanted, rtol=1e-4, atol=1e-4)
    first, second = module.first.weight.detach(), module.second.weight.detach()  # type: ignore[union-attr]
    torch.testing.assert_close(first.abs().amax(1), second.abs().amax(0), rtol=1e-4, atol=0)  # type: ignore[operator]
    with pytest.raises(StageError, match="proportional"):
        apply("weight_equalization", Model(through(nn.GELU())), context_of(module, X, tmp_path))


def test_means_are_those_of_the_original_again(tmp_path: Path) -> None:
    original, module = through(nn.GELU()), through(nn.GELU())
    model, context = Model(module, PLUGINS.layers), context_of(original, X, tmp_path)
    WeightQuantization(WeightQuantizationConfig(bits=3)).apply(model, context)

    def shift() -> float:
        return float((module(X) - original(X)).detach().mean(0).norm())

    before = shift()
    config = {"correct_biases": True, "max_harm": 1.0}
    outcome = apply("activation_quantization", model, context, **config)
    assert outcome.touched == ["first", "second", "first.bias", "second.bias"]
    assert shift() < before / 100


def test_means_of_channels_that_were_scaled_stay_scaled(tmp_path: Path) -> None:
    def net() -> nn.Module:
        module = through(nn.ReLU())
        with torch.no_grad():
            module.first.weight[5] *= 50  # type: ignore[union-attr,operator]
            module.first.bias += 3.0  # type: ignore[union-attr,operator]
        return module

    original, errors = net(), []
    for correct in (False, True):
        module = net()
        model, context = Model(module, PLUGINS.layers), context_of(original, X, tmp_path)
        apply("weight_equalization", model, context)
        WeightQuantization(WeightQuantizationConfig(bits=5)).apply(model, context)
        config = {"correct_biases": correct, "max_harm": 1.0}
        apply("activation_quantization", model, context, **config)
        errors.append(float((module(X) - original(X)).detach().mean(0).norm()))
    assert errors[1] < errors[0] / 3
