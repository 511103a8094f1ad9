"""Pruned weights stay zero, tied ones tied, packed ones as they are."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings, strategies as st
from torch import Tensor, nn

from synthetic_task import Classification, perceptron, run
from zoopress.errors import StageError
from zoopress.models.model import Model
from zoopress.models.packing import differentiable, packed_weights
from zoopress.plugins import Plugins
from zoopress.techniques import Context
from zoopress.testing import models as testing_models, seeded
from zoopress.training.constraints import PrunedWeights

VOCABULARY = testing_models.VOCABULARY


def tokens(samples: int, generator: torch.Generator) -> Tensor:
    shape = (samples, testing_models.LENGTH)
    return torch.randint(0, VOCABULARY, shape, generator=generator)


def images(samples: int, generator: torch.Generator) -> Tensor:
    return torch.randn(samples, 3, 16, 16, generator=generator)


TASKS: dict[str, Callable[[], Classification]] = {
    "lstm": lambda: Classification(tokens, lambda ids: ids[:, -1] % 3),
    "transformer": lambda: Classification(tokens, lambda ids: ids[:, 0] % 3),
    "cnn": lambda: Classification(images, lambda x: (x.mean((1, 2, 3)) > 0).long()),
}


def apply(plugins: Plugins, model: Model, technique: str, **config: Any) -> None:
    kind = plugins.technique(technique)
    context = Context(0, torch.device("cpu"), list, lambda m, b: m(b), lambda *_: None, Path())
    kind(kind.config_type(**config)).apply(model, context)


def assert_positive_zeros(tensor: Tensor, keep: Tensor) -> None:
    assert torch.equal(tensor[~keep], torch.zeros_like(tensor[~keep]))
    assert not tensor[~keep].signbit().any()


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
@pytest.mark.parametrize("name", ["cnn", "lstm", "transformer"])
def test_pruned_weights_are_positive_zeros_after_every_step(
    tmp_path: Path, plugins: Plugins, name: str, optimizer: str
) -> None:
    model = Model(seeded(getattr(testing_models, name)), plugins.layers)
    apply(plugins, model, "magnitude_pruning", sparsity=0.6, kinds=("linear", "conv", "recurrent"))
    assert model.masks
    before = copy.deepcopy(model.module)
    tensors = model.tensors()
    checks = []

    def check(*_: object) -> None:
        checks.append(True)
        for masked, keep in model.masks.items():
            assert_positive_zeros(tensors[masked], keep)

    model.module.register_forward_pre_hook(check)
    result = run(
        model,
        tmp_path,
        TASKS[name](),
        epochs=2,
        optimizer=optimizer,
        weight_decay=0.3,
        evaluations=0,
    )
    check()
    assert len(checks) == result.steps + 1
    for masked, keep in model.masks.items():
        assert not torch.equal(tensors[masked][keep], before.state_dict()[masked][keep])


@settings(max_examples=30)
@given(seed=st.integers(0, 1000), value=st.sampled_from([1.0, -1.0, float("nan"), float("inf")]))
def test_masked_gradients_and_weights_are_zero_whatever_they_were(seed: int, value: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    keep = torch.rand(4, 5, generator=generator) > 0.5
    parameter = nn.Parameter(torch.full((4, 5), -value))
    other = nn.Parameter(torch.ones(3))
    names = {parameter: ["a", "b"], other: ["c"]}
    pruned = PrunedWeights(names, {"b": keep, "not.here": torch.zeros(2, dtype=torch.bool)})
    pruned.before_step()  # there is none yet
    parameter.grad = torch.full((4, 5), value)
    pruned.before_step()
    pruned.after_step()
    assert_positive_zeros(parameter.grad, keep)
    assert_positive_zeros(parameter.detach(), keep)
    kept = parameter.detach()[keep]
    assert torch.equal(kept, torch.full_like(kept, -value)) or value != value
    assert torch.equal(other.detach(), torch.ones(3))


def test_moments_of_pruned_weights_stay_zero(tmp_path: Path, monkeypatch: Any) -> None:
    made: list[torch.optim.Optimizer] = []
    import zoopress.training.loop as loop

    make = loop.make_optimizer
    monkeypatch.setattr(loop, "make_optimizer", lambda *a: made.append(make(*a)) or made[0])
    model = Model(perceptron())
    weight = next(model.weights())
    keep = torch.rand(weight.parameter.shape) > 0.5
    model.mask(weight, keep)
    run(model, tmp_path, evaluations=0)
    state = made[0].state[weight.parameter]
    for moment in ("exp_avg", "exp_avg_sq"):
        assert_positive_zeros(state[moment], keep)
        assert bool((state[moment][keep] != 0).any())


class Tied(nn.Module):
    """Token ids to logits, the output layer's weight that of the embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, 8)
        self.output = nn.Linear(8, VOCABULARY, bias=False)
        self.output.weight = self.embedding.weight

    def forward(self, ids: Tensor) -> Tensor:
        result: Tensor = self.output(self.embedding(ids).mean(1))
        return result


def test_tied_weights_stay_one_and_are_updated_once(tmp_path: Path) -> None:
    module = seeded(Tied)
    expected = copy.deepcopy(module)
    model = Model(module)
    keep = torch.rand(VOCABULARY, 8, generator=torch.Generator().manual_seed(0)) > 0.3
    model.mask(next(model.weights()), keep)
    model.masks = {"output.weight": model.masks.pop("embedding.weight")}  # under its other name
    task = Classification(tokens, lambda ids: ids[:, -1], sizes={"training": 16})
    result = run(
        model, tmp_path, task, epochs=None, steps=1, optimizer="sgd", learning_rate=1.0,
        warm_up=0, weight_decay=0, max_gradient_norm=None, evaluations=0,
    )  # fmt: skip
    assert result.trained == ("embedding.weight",)
    assert module.output.weight is module.embedding.weight
    with torch.no_grad():
        expected.embedding.weight *= keep
    batch = task.samples("training").batch(range(16))
    F.cross_entropy(expected(batch.inputs["x"]), batch.targets).backward()
    with torch.no_grad():
        expected.embedding.weight -= expected.embedding.weight.grad * keep
    torch.testing.assert_close(module.output.weight, expected.embedding.weight, rtol=0, atol=1e-6)
    assert_positive_zeros(module.output.weight.detach(), keep)


@pytest.mark.parametrize("config", [{"bits": 8}, {"bits": 4, "group_size": 32}])
@pytest.mark.parametrize("name", ["cnn", "lstm", "transformer"])
def test_around_packed_weights_the_rest_learns_and_they_stay(
    tmp_path: Path, plugins: Plugins, name: str, config: dict[str, Any]
) -> None:
    model = Model(seeded(getattr(testing_models, name)), plugins.layers)
    apply(plugins, model, "magnitude_pruning", sparsity=0.3, kinds=("linear", "conv", "recurrent"))
    kinds = ("linear", "conv", "recurrent", "embedding")
    apply(plugins, model, "weight_quantization", kinds=kinds, **config)
    packed = packed_weights(model.module)
    dense = {key: weight.dense() for key, weight in packed.items()}
    before = {key: tensor.clone() for key, tensor in model.tensors().items()}
    inputs = TASKS[name]().samples("test").batch(range(8)).inputs["x"]
    with torch.inference_mode():
        model.module(inputs)  # kernels keep what they make of the codes
    task = TASKS[name]()
    result = run(model, tmp_path, task, epochs=3, learning_rate=0.02, evaluations=0)
    assert result.losses[-1][1] < result.losses[0][1]
    assert packed_weights(model.module).keys() == packed.keys()
    after = model.tensors()
    for key, weight in packed_weights(model.module).items():
        assert torch.equal(weight.dense(), dense[key])
        assert not weight.is_differentiable
    trained = set(result.trained)
    assert any("bias" in key for key in trained)
    for key in before:
        statistic = key.endswith(("running_mean", "running_var", "num_batches_tracked"))
        assert torch.equal(before[key], after[key]) == (key not in trained and not statistic)


def test_gradients_through_packed_weights_are_those_of_the_dense_ones(plugins: Plugins) -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 32)).eval()
    model = Model(module, plugins.layers)
    apply(plugins, model, "weight_quantization", bits=8, include=("2.*",))
    inputs = torch.randn(4, 32)
    plain = copy.deepcopy(module[0])
    weight = packed_weights(module)["2.weight"]
    with differentiable(module):
        module(inputs).square().sum().backward()
    F.linear(plain(inputs).relu(), weight.dense(), module[2].bias).square().sum().backward()
    torch.testing.assert_close(module[0].weight.grad, plain.weight.grad)


def test_16_bit_packed_weights_train_in_float32_and_come_back(
    tmp_path: Path, plugins: Plugins
) -> None:
    model = Model(seeded(testing_models.transformer).bfloat16(), plugins.layers)
    apply(
        plugins, model, "weight_quantization", kinds=("linear", "embedding"), bits=4, group_size=32
    )
    types = {key: tensor.dtype for key, tensor in model.tensors().items()}
    packed = {key: weight.dense() for key, weight in packed_weights(model.module).items()}
    result = run(model, tmp_path, TASKS["transformer"](), epochs=2, evaluations=2)
    assert result.trained
    assert {key: tensor.dtype for key, tensor in model.tensors().items()} == types
    for key, weight in packed_weights(model.module).items():
        assert torch.equal(weight.dense(), packed[key])
        assert weight.dtype == torch.bfloat16


def test_nothing_left_to_train_is_refused(tmp_path: Path, plugins: Plugins) -> None:
    torch.manual_seed(0)
    model = Model(nn.Sequential(nn.Linear(6, 32, bias=False)), plugins.layers)
    apply(plugins, model, "weight_quantization", bits=8)
    with pytest.raises(StageError, match=r"no float parameter left\. Train before"):
        run(model, tmp_path)
