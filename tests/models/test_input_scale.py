"""Factors on a layer's input: they stay with the layer, through everything that happens to it."""

import copy
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import zoopress
from zoopress.artifacts.artifact import load_artifact, save_artifact
from zoopress.artifacts.manifest import Base
from zoopress.errors import ArtifactError, StageError
from zoopress.models.input_grid import InputGrid
from zoopress.models.input_scale import input_changes
from zoopress.models.model import Model
from zoopress.models.reading import fold_input_scales
from zoopress.plugins import load_plugins
from zoopress.testing import run_chain, tiny_card
from zoopress.testing.models import cnn
from zoopress.testing.tiny import reload_artifact, seeded
from zoopress_plugins.low_rank.layers.factored import FactoredLinear
from zoopress_zoo.factory import Factory

pytestmark = pytest.mark.usefixtures("brief_latency")

PLUGINS = load_plugins()
BASE = Base(name="tiny", source="path:x", revision="local", size_bytes=9, task="fidelity")
X = torch.randn(16, 6, generator=torch.Generator().manual_seed(0))
FACTOR = torch.tensor([0.01, 1.0, 4.0, 0.5, 2.0, 100.0])
STATIC = {"bits": 8, "symmetric": False, "per": "tensor", "dynamic": False}


def net() -> nn.Sequential:
    return seeded(lambda: nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)))


def scaled(rounded: bool = False) -> Model:
    model = Model(net(), PLUGINS.layers)
    if rounded:  # in the other order, too, the scale comes first
        grid = InputGrid(8, False, "tensor", False)
        scale, zero = grid.range((X * FACTOR).min(), (X * FACTOR).max())
        model.scale_input("0", FACTOR)
        model.quantize_input("0", STATIC, {"scale": scale, "zero_point": zero.to(torch.uint8)})
    else:
        model.scale_input("0", FACTOR)
    model.set_values("0.weight", model.module[0].weight / FACTOR)  # type: ignore[index]
    return model


def call(module: nn.Module, x: Tensor = X) -> Any:
    with torch.no_grad():
        return module(x)


def test_a_layer_computes_what_it_did() -> None:
    torch.testing.assert_close(call(scaled().module), call(net()), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("rounded", [False, True])
def test_it_is_saved_copied_and_pickled(rounded: bool, tmp_path: Path) -> None:
    model = scaled(rounded)
    wanted = call(model.module)
    save_artifact(tmp_path, model, factory(), BASE, {})
    loaded = load_artifact(tmp_path, PLUGINS, net)[0]
    assert torch.equal(call(loaded.module), wanted)
    assert torch.equal(call(copy.deepcopy(model.module)), wanted)
    assert torch.equal(call(pickle.loads(pickle.dumps(model.module))), wanted)
    half = copy.deepcopy(model.module).bfloat16()
    assert call(half, X.bfloat16()).dtype == torch.bfloat16
    assert all(part.factor.dtype == torch.float32 for part in _scales(half))


def factory() -> Factory:
    found = Factory(Path(), {"factory": "anything:net", "arguments": {}})
    found.use_factory(net)
    return found


def _scales(module: nn.Module) -> list[Any]:
    return [part for part in input_changes(module).values() if hasattr(part, "factor")]


def test_factors_that_are_none_are_refused(tmp_path: Path) -> None:
    for wrong in (torch.zeros(6), -FACTOR, FACTOR * torch.nan):
        with pytest.raises(StageError, match="positive"):
            Model(net()).scale_input("0", wrong)
    with pytest.raises(StageError, match="expected"):
        Model(net()).scale_input("0", FACTOR[:5])
    with pytest.raises(StageError, match="no linear"):
        Model(net()).scale_input("1", FACTOR)
    with pytest.raises(StageError, match="already"):
        scaled().scale_input("0", FACTOR)
    model = scaled()
    model.module[0].input_scale.factor = FACTOR * torch.inf  # type: ignore[index,union-attr]
    save_artifact(tmp_path, model, factory(), BASE, {})
    with pytest.raises(ArtifactError, match="positive"):
        load_artifact(tmp_path, PLUGINS, net)


def _technique(technique: str, **config: Any) -> Any:
    kind = PLUGINS.technique(technique)
    return kind(kind.config_type(**config))


def test_other_stages_keep_it(tmp_path: Path) -> None:
    card = tiny_card("transformer", tmp_path)
    stages: list[dict[str, Any]] = [
        {"technique": "activation_smoothing", "strength": 0.5},
        {"technique": "neuron_pruning", "sparsity": 0.25},
        {"technique": "truncated_svd", "parameters": 0.8},
        {"technique": "weight_quantization"},
        {"technique": "activation_quantization", "max_harm": 1.0},
        {"technique": "entropy_coding"},
    ]
    chain = [_technique(**stage) for stage in stages]
    result = run_chain(chain, card, tmp_path / "run", PLUGINS)
    loaded = reload_artifact(result.artifact, card).module
    kinds = [type(part).__name__ for part in input_changes(loaded).values()]
    assert {"InputScale", "InputGrid"} == set(kinds)
    ranks = [m for m in loaded.modules() if isinstance(m, FactoredLinear)]
    assert any("input_scale" in layer._modules for layer in ranks)
    assert result.report.metrics()["cosine"] > 0.5


def test_an_ordinary_model_has_them_in_its_weights() -> None:
    model = scaled().module
    wanted = call(model)
    zoopress.unpack(model)
    assert not _scales(model)
    torch.testing.assert_close(call(model), wanted, rtol=1e-4, atol=1e-4)
    assert set(model.state_dict()) == set(net().state_dict())


def test_with_a_grid_behind_them_they_stay() -> None:
    model = scaled(rounded=True).module
    wanted = call(model)
    zoopress.unpack(model)
    assert torch.equal(call(model), wanted)
    assert len(_scales(model)) == 1


def test_folding_leaves_other_readers_of_a_weight_alone() -> None:
    net = seeded(lambda: nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6)))
    net[1].weight = net[0].weight
    Model(net).scale_input("0", FACTOR)
    wanted = call(net)
    assert fold_input_scales(net) == []
    torch.testing.assert_close(call(net), wanted, rtol=1e-4, atol=1e-3)


def test_what_cannot_be_folded_is_told() -> None:
    class Rnn(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn = nn.GRU(6, 4)

        def forward(self, x: Tensor) -> Any:
            return self.rnn(x)[0]

    model = Model(seeded(Rnn))
    model.scale_input("rnn", FACTOR)
    wanted = call(model.module)
    with pytest.warns(UserWarning, match="1 layers stay as they are.*rnn"):
        zoopress.unpack(model.module)
    assert torch.equal(call(model.module), wanted)


def test_convolutions_have_channels_of_their_own() -> None:
    model, x = Model(seeded(cnn)), torch.randn(2, 3, 16, 16)
    wanted = call(model.module, x)
    names = [n for n, m in model.module.named_modules() if isinstance(m, nn.Conv2d)]
    for name in names:
        layer = model.module.get_submodule(name)
        channels: int = layer.in_channels  # type: ignore[assignment]
        factor = torch.exp2(torch.arange(channels) % 5 - 2.0)
        model.scale_input(name, factor)
        model.set_values(f"{name}.weight", layer.weight / factor.view(1, -1, 1, 1))  # type: ignore[operator]
    torch.testing.assert_close(call(model.module, x), wanted, rtol=1e-4, atol=1e-4)
    assert fold_input_scales(model.module) == []
    torch.testing.assert_close(call(model.module, x), wanted, rtol=1e-4, atol=1e-4)
