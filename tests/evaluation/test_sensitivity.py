"""What compression did to each weight by itself."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import Tensor, nn

from small_zoo import read_zoo, write_zoo
from zoopress.cards import Card
from zoopress.evaluation import sensitivity
from zoopress.evaluation.sensitivity import (
    affordable,
    measure_layers,
    output_distance,
    relative_error,
)
from zoopress.models.model import Model
from zoopress.models.packing import unpack
from zoopress.models.weights import find_weights
from zoopress.pipeline.compress import compress
from zoopress.plugins import Plugins
from zoopress.results import LayerResult, Report
from zoopress.store import Store
from zoopress.tasks import Batch, Samples, Split, Task
from zoopress.techniques import Context


class Inputs(Task):
    """Runs a module on given inputs."""

    name = "inputs"

    def __init__(self, inputs: Tensor) -> None:
        self._examples = {"test": [Batch(inputs)]}

    def make_samples(self, split: Split) -> Samples:
        raise NotImplementedError

    def forward(self, module: nn.Module, inputs: Any) -> Tensor:
        result: Tensor = module(inputs)
        return result

    def fingerprint(self) -> str:
        return ""


def layers_of(
    original: nn.Module, compressed: Model, inputs: Tensor, stored: Mapping[str, int] | None = None
) -> dict[str, LayerResult]:
    found = measure_layers(Inputs(inputs), original, compressed, stored or {})
    return {layer.name: layer for layer in found}


def apply(plugins: Plugins, model: Model, technique: str, **config: Any) -> None:
    kind = plugins.technique(technique)
    context = Context(
        seed=0,
        device=torch.device("cpu"),
        batches=lambda: [],
        call=lambda module, batch: batch,
        progress=lambda item, done=None: None,
        checkpoint=Path(),
    )
    kind(kind.config_type(**config)).apply(model, context)


def test_a_case_computed_by_hand() -> None:
    original = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False))
    with torch.no_grad():
        original[0].weight.copy_(torch.eye(2))
        original[1].weight.copy_(torch.eye(2))
    compressed = Model(copy.deepcopy(original))
    with torch.no_grad():
        compressed.module[0].weight[0, 0] = 0.0
        compressed.module[1].weight[1, 0] = 1.0
    # The original gives (3, 4) and (1, 0). Without the first weight's (0, 0): (0, 4), at a cosine
    # of 4/5, and (0, 0), at none. With the second weight's (1, 0): (3, 7) and (1, 1).
    inputs = torch.tensor([[3.0, 4.0], [1.0, 0.0]])
    first, second = layers_of(original, compressed, inputs).values()
    assert first.sensitivity == pytest.approx(1 - (4 / 5 + 0) / 2)
    cosines = (9 + 28) / (5 * math.sqrt(58)), 1 / math.sqrt(2)
    assert second.sensitivity == pytest.approx(1 - sum(cosines) / 2)
    assert first.relative_error == pytest.approx(1 / math.sqrt(2))
    assert second.relative_error == pytest.approx(1 / math.sqrt(2))
    assert (first.parameters, first.bytes_before, first.kind) == (4, 16, "linear")


PATTERNS = {
    "cnn": ("first.weight", "second.weight", "third.weight", "head.weight"),
    "lstm": ("embedding.weight", "lstm.weight_ih_l0", "lstm.weight_hh_l0_reverse", "head.weight"),
    "transformer": ("embedding.weight", "block.self_attn.in_proj_weight", "block.linear1.weight"),
}


@settings(max_examples=25)
@given(data=st.data(), model_name=st.sampled_from(sorted(PATTERNS)))
def test_only_what_was_compressed_has_an_error_and_the_original_stays_as_it_was(
    data: st.DataObject,
    model_name: str,
    tiny: Callable[..., nn.Module],
    tiny_input: Callable[[str], Tensor],
    plugins: Plugins,
) -> None:
    original, inputs = tiny(model_name), tiny_input(model_name)
    before = {name: tensor.clone() for name, tensor in original.state_dict().items()}
    chosen = data.draw(st.sets(st.sampled_from(PATTERNS[model_name]), min_size=1))
    technique = data.draw(
        st.sampled_from(
            [
                ("magnitude_pruning", {"sparsity": 0.5}),
                ("weight_quantization", {"bits": 3}),
                ("weight_quantization", {"bits": 8, "group_size": 16}),
            ]
        )
    )
    compressed = Model(copy.deepcopy(original), plugins.layers)
    kinds = ("linear", "conv", "embedding", "recurrent", "parameter")
    apply(plugins, compressed, technique[0], kinds=kinds, include=tuple(chosen), **technique[1])
    layers = layers_of(original, compressed, inputs)
    for name, layer in layers.items():
        assert layer.relative_error is not None
        assert layer.sensitivity is not None
        if name in chosen:
            assert layer.relative_error > 0
            assert 0 <= layer.sensitivity <= 2
        else:
            assert layer.relative_error == layer.sensitivity == 0
    after = original.state_dict()
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())


@pytest.mark.parametrize("name", sorted(PATTERNS))
def test_a_weight_that_is_alone_compressed_is_as_sensitive_as_the_whole_model(
    name: str,
    tiny: Callable[..., nn.Module],
    tiny_input: Callable[[str], Tensor],
    plugins: Plugins,
) -> None:
    original, inputs = tiny(name), tiny_input(name)
    for weight in PATTERNS[name]:
        compressed = Model(copy.deepcopy(original), plugins.layers)
        kinds = ("linear", "conv", "embedding", "recurrent", "parameter")
        apply(plugins, compressed, "weight_quantization", bits=3, kinds=kinds, include=(weight,))
        layer = layers_of(original, compressed, inputs)[weight]
        unpack(compressed.module)
        with torch.inference_mode():
            expected = output_distance(original(inputs), compressed.module(inputs))
        assert expected > 0
        assert layer.sensitivity == pytest.approx(expected, rel=1e-3)


def test_fewer_bits_are_more_sensitive(
    tiny: Callable[..., nn.Module], tiny_input: Callable[[str], Tensor], plugins: Plugins
) -> None:
    found = {}
    for bits in (8, 4, 2):
        original = tiny("transformer")
        compressed = Model(copy.deepcopy(original), plugins.layers)
        kinds = ("linear", "embedding")
        apply(plugins, compressed, "weight_quantization", bits=bits, kinds=kinds)
        found[bits] = layers_of(original, compressed, tiny_input("transformer"))
    assert len(found[8]) == 5
    for name in found[8]:
        sensitivities = [found[bits][name].sensitivity for bits in (8, 4, 2)]
        assert sensitivities == sorted(set(sensitivities))
        assert 0 < sensitivities[0] < 1e-3
        errors = [found[bits][name].relative_error for bits in (8, 4, 2)]
        assert errors == sorted(set(errors))


class Factorable(nn.Module):
    """A square linear layer of each kind, and a convolution."""

    def __init__(self) -> None:
        super().__init__()
        from transformers.pytorch_utils import Conv1D

        self.conv = nn.Conv2d(3, 12, 3, padding=1)
        self.linear = nn.Linear(12, 12)
        self.gpt2 = Conv1D(12, 12)

    def forward(self, input: Tensor) -> Tensor:
        result: Tensor = self.gpt2(self.linear(self.conv(input).mean((2, 3))).relu())
        return result


def test_a_factored_layer_is_compared_by_the_product_of_its_factors(plugins: Plugins) -> None:
    pytest.importorskip("transformers")
    torch.manual_seed(0)
    original = Factorable().eval()
    compressed = Model(copy.deepcopy(original), plugins.layers)
    apply(plugins, compressed, "truncated_svd", rank=3)
    stored = {
        "linear.down.weight": 100,
        "linear.up.weight": 20,
        "linear.up.bias": 7,
        "gpt2.down.weight": 3,
    }
    inputs = torch.randn(4, 3, 5, 5)
    layers = layers_of(original, compressed, inputs, stored)
    for name, weight in original.named_parameters():
        if weight.ndim < 2:
            continue
        matrix = weight.detach().flatten(1)
        tail = torch.linalg.svdvals(matrix)[3:]
        layer = layers[name]
        assert layer.relative_error == pytest.approx(float(tail.norm() / matrix.norm()), rel=1e-3)
        only = copy.deepcopy(original)
        path = name.rpartition(".")[0]
        setattr(only, path, getattr(compressed.module, path))
        with torch.inference_mode():
            expected = output_distance(original(inputs), only(inputs))
        assert layer.sensitivity == pytest.approx(expected, rel=1e-3)
    assert layers["linear.weight"].bytes_after == 120
    assert layers["gpt2.weight"].bytes_after == 3


def test_a_weight_of_another_shape_or_without_place_is_not_compared() -> None:
    original = nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 2), nn.Linear(2, 2))
    other = nn.Sequential(nn.Linear(4, 5), nn.Linear(5, 2))
    layers = layers_of(original, Model(other), torch.randn(3, 4))
    assert [layer.relative_error for layer in layers.values()] == [None] * 3
    assert [layer.sensitivity for layer in layers.values()] == [None] * 3


def test_outputs_that_are_not_finite_count_as_lost() -> None:
    original = nn.Sequential(nn.Linear(3, 3))
    compressed = Model(copy.deepcopy(original))
    with torch.no_grad():
        compressed.module[0].weight[0, 0] = float("nan")
    [layer] = layers_of(original, compressed, torch.randn(2, 3)).values()
    assert layer.sensitivity == 1
    assert layer.relative_error is None
    json.dumps(asdict(layer), allow_nan=False)


@given(parameters=st.integers(0, 10**13), weights=st.integers(0, 5000))
def test_the_cost_is_bounded_whatever_the_model(parameters: int, weights: int) -> None:
    samples, count = affordable(parameters, weights)
    assert 1 <= samples <= sensitivity.MAX_SAMPLES
    assert 0 <= count <= weights
    assert parameters * samples * count <= sensitivity.MAX_COST
    if parameters * weights * sensitivity.MAX_SAMPLES <= sensitivity.MAX_COST:
        assert (samples, count) == (sensitivity.MAX_SAMPLES, weights)


def test_the_weights_with_most_bytes_are_measured_first(monkeypatch: pytest.MonkeyPatch) -> None:
    original = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 9), nn.Linear(9, 2))
    compressed = Model(copy.deepcopy(original))
    with torch.no_grad():
        for parameter in compressed.module.parameters():
            parameter.mul_(1.5).add_(0.1)
    parameters = sum(parameter.numel() for parameter in original.parameters())
    monkeypatch.setattr(sensitivity, "MAX_COST", 2 * parameters)
    layers = layers_of(original, compressed, torch.randn(3, 4))
    measured = [name for name, layer in layers.items() if layer.sensitivity is not None]
    assert measured == ["1.weight", "2.weight"]


def test_the_report_tells_the_layers_and_accounts_for_the_artifacts_bytes(
    tmp_path: Path, plugins: Plugins
) -> None:
    write_zoo(tmp_path, recipe="stages: [{technique: weight_quantization, bits: 4}]")
    card, recipe = read_zoo(tmp_path)
    report = compress(card, recipe, tmp_path / "out", Store(tmp_path / "store"), plugins).report
    assert [layer.name for layer in report.layers] == ["0.weight", "2.weight", "4.weight"]
    biases = 4 * (96 + 96 + 10)
    stored = sum(layer.bytes_after for layer in report.layers) + biases
    header = 1500
    assert stored < report.last.weight_bytes < stored + header
    assert Report.from_dict(json.loads(json.dumps(report.as_dict()))) == report
    plain = report.as_dict()
    del plain["layers"]
    assert Report.from_dict(plain).layers == []


def test_an_entropy_coded_weight_is_counted_by_its_coded_bytes(
    tmp_path: Path, tiny_card: Card, plugins: Plugins
) -> None:
    write_zoo(tmp_path)
    card, recipe = read_zoo(tmp_path)
    report = compress(card, recipe, tmp_path / "out", Store(tmp_path / "store"), plugins).report
    stored = sum(layer.bytes_after for layer in report.layers)
    assert 0.5 * report.last.weight_bytes < stored < report.last.weight_bytes
    first, last = report.layers[0], report.layers[-1]
    assert first.relative_error is None  # neurons were pruned
    assert last.bytes_after < last.bytes_before / 4


class Stack(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Sequential(nn.Linear(6, 6), nn.Tanh()) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


def test_blocks_that_were_numbered_anew_are_compared_with_what_they_were(plugins: Plugins) -> None:
    torch.manual_seed(0)
    original, inputs = Stack().eval(), torch.randn(4, 6)
    compressed = Model(copy.deepcopy(original), plugins.layers)
    apply(plugins, compressed, "truncated_svd", rank=2, include=["layers.3.*", "layers.1.*"])
    compressed.keep("layers", [0, 2, 3])
    stored = {name: tensor.nbytes for name, tensor in compressed.tensors().items()}
    found = layers_of(original, compressed, inputs, stored)
    errors = {name: layer.relative_error for name, layer in found.items()}
    assert errors["layers.0.0.weight"] == errors["layers.2.0.weight"] == 0
    assert errors["layers.1.0.weight"] is None
    factored = compressed.module.layers[2][0].weight  # type: ignore[union-attr, index]
    of_the_last = relative_error(list(find_weights(original))[3], factored.detach())
    assert errors["layers.3.0.weight"] == pytest.approx(of_the_last)
    after = {name: layer.bytes_after for name, layer in found.items()}
    assert after["layers.1.0.weight"] == 0
    assert after["layers.3.0.weight"] == 4 * 2 * (6 + 6)
    # Of an original that is compressed itself, only what was done since counts.
    again = measure_layers(Inputs(inputs), compressed.module, compressed, stored, since=2 + 1)
    assert all(layer.relative_error == 0 for layer in again)
