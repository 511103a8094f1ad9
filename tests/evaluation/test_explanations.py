"""Attributions and their agreement: axioms, hand-computed cases, and captum."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from captum.attr import InputXGradient, IntegratedGradients, LayerIntegratedGradients
from torch import Tensor, nn

from held_data import HeldTask, compare
from zoopress.evaluation import explanations
from zoopress.evaluation.attributions import gradient_times_input, integrated_gradients
from zoopress.evaluation.explanations import (
    affordable,
    attribute,
    direction,
    measure,
    rank_correlation,
)
from zoopress.evaluation.surface import surface_of
from zoopress.models.model import Model
from zoopress.models.packing import packed_weights, unpack
from zoopress.plugins import Plugins
from zoopress.techniques import Context
from zoopress.testing import models as testing_models


def attributions(module: nn.Module, inputs: Any, target: Tensor, steps: int) -> Tensor:
    found = attribute(surface_of(HeldTask(inputs), inputs), module, target, steps)
    return torch.stack(found)


def seeded(build: Callable[[], nn.Module], seed: int = 0) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return build().eval()


def model(name: str, seed: int = 0) -> nn.Module:
    return seeded(getattr(testing_models, name), seed)


def inputs_of(name: str, samples: int = 5) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    if name == "cnn":
        return torch.randn(samples, 3, 16, 16, generator=generator)
    return torch.randint(0, testing_models.VOCABULARY, (samples, 12), generator=generator)


def first_class(module: nn.Module, inputs: Any) -> Tensor:
    output = module(inputs).detach()
    chosen = torch.zeros_like(output)
    chosen[:, 3] = 1.0
    return chosen


def quantized(plugins: Plugins, module: nn.Module, bits: int) -> Model:
    made = Model(module, plugins.layers)
    kind = plugins.technique("weight_quantization")
    context = Context(
        seed=0,
        device=torch.device("cpu"),
        batches=lambda: [],
        call=lambda module, batch: module(batch),
        progress=lambda *_: None,
        checkpoint=Path(),
    )
    kind(kind.config_type(bits=bits)).apply(made, context)
    return made


def test_a_linear_model_is_explained_by_weight_times_input() -> None:
    layer = nn.Linear(3, 2)
    inputs = torch.tensor([[1.0, 2.0, -3.0], [0.0, 1.0, 1.0]])
    chosen = torch.tensor([[0.0, 1.0], [1.0, 0.0]])
    expected = torch.stack([layer.weight[1] * inputs[0], layer.weight[0] * inputs[1]])
    for steps in (3, 1):
        found = attributions(layer, inputs, chosen, steps)
        torch.testing.assert_close(found.float(), expected.detach())


def test_the_integral_of_a_product_by_hand() -> None:
    # Of x·y from (0, 0): each gets x·∫αy dα = xy/2; the gradient alone gives xy to each.
    values = [torch.tensor([3.0]), torch.tensor([4.0])]
    found = integrated_gradients(lambda at: (at[0] * at[1]).sum(), values, steps=2)
    assert torch.cat(found).tolist() == pytest.approx([6, 6])
    found = gradient_times_input(lambda at: (at[0] * at[1]).sum(), values)
    assert torch.cat(found).tolist() == [12, 12]


def baseline(module: nn.Module, inputs: Tensor) -> Tensor:
    """Run a model on zero inputs, or zero embeddings."""
    if inputs.is_floating_point():
        return module(torch.zeros_like(inputs))  # type: ignore[no-any-return]
    handle = module.embedding.register_forward_hook(lambda *call: torch.zeros_like(call[2]))  # type: ignore[operator, union-attr]
    try:
        return module(inputs)  # type: ignore[no-any-return]
    finally:
        handle.remove()


@pytest.mark.parametrize("name", ["cnn", "lstm", "transformer"])
def test_attributions_add_up_to_what_the_inputs_changed(name: str) -> None:
    module, inputs = model(name), inputs_of(name)
    chosen = first_class(module, inputs)
    found = attributions(module, inputs, chosen, 200)
    with torch.no_grad():
        gained = ((module(inputs) - baseline(module, inputs)) * chosen).sum(1)
    torch.testing.assert_close(found.sum(1).float(), gained, atol=2e-3, rtol=1e-2)


def test_attributions_of_images_are_captums() -> None:
    module, inputs = model("cnn"), inputs_of("cnn")
    found = attributions(module, inputs, first_class(module, inputs), 20)
    expected = IntegratedGradients(module).attribute(inputs, target=3, n_steps=20)
    torch.testing.assert_close(found.float(), expected.flatten(1).float())
    found = attributions(module, inputs, first_class(module, inputs), 1)
    expected = InputXGradient(module).attribute(inputs.clone().requires_grad_(), target=3)
    torch.testing.assert_close(found.float(), expected.flatten(1).detach())


@pytest.mark.parametrize("name", ["lstm", "transformer"])
def test_attributions_of_tokens_are_captums(name: str) -> None:
    module, inputs = model(name), inputs_of(name)
    module.embedding.weight.data[0] = 0  # captum's baseline is a token: this one
    found = attributions(module, inputs, first_class(module, inputs), 20)
    layer = LayerIntegratedGradients(module, module.embedding)
    expected = layer.attribute(inputs, baselines=torch.zeros_like(inputs), target=3, n_steps=20)
    torch.testing.assert_close(found, expected.sum(-1).double(), atol=1e-5, rtol=1e-4)


def test_parameters_get_no_gradients() -> None:
    module, inputs = model("cnn"), inputs_of("cnn")
    attributions(module, inputs, first_class(module, inputs), 2)
    assert all(parameter.grad is None for parameter in module.parameters())
    assert inputs.grad is None


@pytest.mark.parametrize("name", ["cnn", "lstm", "transformer"])
@pytest.mark.parametrize("bits", [8, 4])
def test_packed_weights_are_explained_as_their_dense_form(
    plugins: Plugins, name: str, bits: int
) -> None:
    packed = quantized(plugins, model(name), bits)
    dense = quantized(plugins, model(name), bits)
    unpack(dense.module, "all")
    assert packed_weights(packed.module)
    assert not packed_weights(dense.module)
    inputs = inputs_of(name)
    chosen = first_class(dense.module, inputs)
    before, after = (attributions(each.module, inputs, chosen, 3) for each in (dense, packed))
    torch.testing.assert_close(before, after)
    assert packed_weights(packed.module)  # as it was


class Encoder(nn.Module):
    """Token types before the tokens, and one more call of the tokens' embedding before theirs."""

    def __init__(self) -> None:
        super().__init__()
        self.types = nn.Embedding(50, 8)
        self.tokens = nn.Embedding(30, 8)
        self.head = nn.Linear(8, 4)

    def get_input_embeddings(self) -> nn.Module:
        return self.tokens

    def forward(self, input_ids: Tensor, token_type_ids: Tensor) -> Tensor:
        start = self.tokens(torch.zeros(1, 1, dtype=torch.int64))
        return self.rest(start + self.types(token_type_ids), self.tokens(input_ids))

    def rest(self, others: Tensor, tokens: Tensor) -> Tensor:
        result: Tensor = self.head((others + tokens).tanh().mean(1))
        return result


def test_only_the_call_with_the_tokens_is_attributed() -> None:
    module = seeded(Encoder)
    ids = torch.randint(2, 30, (3, 6))
    types = torch.zeros(3, 6, dtype=torch.int64)
    chosen = torch.eye(4)[[1, 2, 3]]
    found = attributions(module, {"input_ids": ids, "token_type_ids": types}, chosen, 50)
    assert found.shape == ids.shape
    with torch.no_grad():
        others = module.tokens(torch.zeros(1, 1, dtype=torch.int64)) + module.types(types)
        gained = module(ids, types) - module.rest(others, torch.zeros(3, 6, 8))
    torch.testing.assert_close(found.sum(1).float(), (gained * chosen).sum(1), atol=1e-4, rtol=1e-3)


def test_tokens_are_told_from_positions() -> None:
    class Positioned(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.positions = nn.Embedding(100, 8)
            self.tokens = nn.Embedding(30, 8)

        def forward(self, input: Tensor) -> Tensor:
            result: Tensor = self.positions(torch.arange(6)) * 0 + self.tokens(input)
            return result.sum(1)

    module, inputs = Positioned(), torch.randint(0, 30, (3, 6))
    found = attributions(module, inputs, torch.ones(3, 8), 1)
    torch.testing.assert_close(found.float(), module.tokens(inputs).sum(2).detach())


def test_pairs_of_texts_are_one_sample() -> None:
    class Pairs(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.tokens = nn.Embedding(30, 8)

        def forward(self, input: Tensor) -> Tensor:
            flat: Tensor = self.tokens(input.flatten(0, 1)).sum(1)
            return flat.unflatten(0, (-1, 2))

    module, inputs = Pairs(), torch.randint(0, 30, (3, 2, 5))
    found = attributions(module, inputs, torch.ones(3, 2, 8), 1)
    torch.testing.assert_close(found.float(), module.tokens(inputs).sum(3).flatten(1).detach())


def test_inputs_of_several_tensors_are_attributed_together() -> None:
    class Both(nn.Module):
        def forward(self, image: Tensor, sound: Tensor) -> Tensor:
            return (2 * image.sum((1, 2)) + sound.sum(1))[:, None]

    inputs = {"image": torch.ones(2, 2, 2), "sound": torch.full((2, 3), 5.0)}
    found = attributions(Both(), inputs, torch.ones(2, 1), 2)
    assert found[0].tolist() == pytest.approx([2, 2, 2, 2, 5, 5, 5])


def test_the_class_that_the_original_predicts_is_explained() -> None:
    task = HeldTask(torch.zeros(1))
    chosen, what = direction(task, torch.tensor([[0.1, 0.9], [3.0, -1.0]]))
    assert chosen.tolist() == [[0, 1], [1, 0]]
    assert "class" in what
    chosen, _ = direction(task, torch.tensor([[[0.1, 0.9], [3.0, -1.0]]]))
    assert chosen.tolist() == [[[0, 0.5], [0.5, 0]]]
    chosen, _ = direction(task, torch.randn(2, 3, 4, 5))
    assert chosen.sum(1).flatten().tolist() == pytest.approx([1 / 20] * 40)


def test_outputs_without_classes_are_explained_along_the_originals() -> None:
    class Embeddings(HeldTask):
        def similarity(self, outputs: Any) -> Tensor | None:
            return None

    chosen, what = direction(Embeddings(torch.zeros(1)), torch.tensor([[3.0, 4.0]]))
    assert chosen.flatten().tolist() == pytest.approx([0.6, 0.8])
    assert "along" in what


def test_agreement_by_hand() -> None:
    one = torch.tensor([1.0, 2.0, 3.0, 0.0, 0.0])
    assert rank_correlation(one, 7 * one) == pytest.approx(1.0)
    assert rank_correlation(one, -one) == pytest.approx(-1.0)
    # Without the two zeros: ranks 1, 2, 3 and 1, 3, 2.
    assert rank_correlation(one, torch.tensor([1.0, 3.0, 2.0, 0.0, 0.0])) == pytest.approx(0.5)
    assert rank_correlation(one, torch.full((5,), torch.nan)) == 0.0
    assert rank_correlation(one, torch.zeros(5)) == 0.0
    assert rank_correlation(torch.zeros(5), one) is None
    assert rank_correlation(torch.tensor([0.0, 5.0]), torch.tensor([0.0, 4.0])) is None


def measured(plugins: Plugins, task: HeldTask, one: nn.Module, other: Any) -> dict[str, Any]:
    found = measure(compare(task, one, other, plugins), lambda *_: None)
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    return found


@pytest.mark.parametrize("name", ["cnn", "lstm", "transformer"])
def test_more_bits_explain_more_like_the_original(plugins: Plugins, name: str) -> None:
    task = HeldTask(inputs_of(name, 12))
    correlations = {
        bits: measured(plugins, task, model(name), quantized(plugins, model(name), bits))
        for bits in (2, 8)
    }
    same = measured(plugins, task, model(name), model(name))
    assert same["rank_correlation"] == pytest.approx(1.0)
    assert same["samples"] == 12
    assert same["method"] == "integrated gradients"
    assert correlations[8]["rank_correlation"] > 0.95
    assert correlations[2]["rank_correlation"] < correlations[8]["rank_correlation"]
    low, high = correlations[2]["interval"]
    assert low < correlations[2]["rank_correlation"] < high


def test_another_model_looks_elsewhere(plugins: Plugins) -> None:
    task = HeldTask(inputs_of("cnn", 8))
    found = measured(plugins, task, model("cnn", 0), model("cnn", 1))
    assert abs(found["rank_correlation"]) < 0.5


def test_a_task_that_cannot_be_attributed_is_skipped(plugins: Plugins) -> None:
    class Counts(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.nn.functional.one_hot(x, 4).float().sum(1)

    task = HeldTask(torch.randint(0, 4, (5, 6)))
    assert "nn.Embedding" in measured(plugins, task, Counts(), Counts())["skipped"]


def test_constant_models_have_nothing_to_compare(plugins: Plugins) -> None:
    class Constant(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return 0 * x + 1

    task = HeldTask(torch.randn(5, 3))
    assert "skipped" in measured(plugins, task, Constant(), Constant())


def test_large_models_take_fewer_samples_then_one_step() -> None:
    assert affordable(1_000) == (explanations.MAX_SAMPLES, explanations.STEPS)
    samples, steps = affordable(50_000_000)
    assert explanations.LEAST_SAMPLES <= samples < explanations.MAX_SAMPLES
    assert steps == explanations.STEPS
    assert affordable(200_000_000) == (explanations.MAX_SAMPLES, 1)
    assert affordable(10**12) == (1, 1)


def test_a_large_model_is_explained_by_gradient_times_input(
    plugins: Plugins, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(explanations, "MAX_COST", 1_000_000)
    task = HeldTask(inputs_of("cnn", 8))
    found = measured(plugins, task, model("cnn"), model("cnn"))
    assert found["method"] == "gradient × input"
    assert found["rank_correlation"] == pytest.approx(1.0)
