"""Low-rank updates are learned in place of weights and merged without a trace."""

from __future__ import annotations

import copy
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from synthetic_task import Classification, perceptron, run, same
from zoopress.errors import StageError
from zoopress.models.model import Model
from zoopress.models.packing import packed_weights
from zoopress.models.precision import accept_float32
from zoopress.plugins import Plugins
from zoopress.techniques import Context
from zoopress.testing import models as testing_models, seeded
from zoopress.training.config import LoraConfig
from zoopress.training.lora import low_rank_updates, updated_layers

pytest.importorskip("peft")
EVERY = LoraConfig(rank=2)
TOKENS = Classification(
    lambda n, g: torch.randint(
        0, testing_models.VOCABULARY, (n, testing_models.LENGTH), generator=g
    ),
    lambda ids: ids[:, 0] % 3,
)


def structure(module: nn.Module) -> list[tuple[str, type]]:
    return [(name, type(part)) for name, part in module.named_modules()]


def changed(before: nn.Module, after: nn.Module) -> set[str]:
    state = after.state_dict()
    return {
        name for name, value in before.state_dict().items() if not torch.equal(value, state[name])
    }


def test_only_the_chosen_layers_weights_change_and_nothing_of_peft_is_left(tmp_path: Path) -> None:
    module = perceptron()
    before = copy.deepcopy(module)
    objects = dict(module.named_modules())
    result = run(
        module, tmp_path, epochs=10, lora={"rank": 2, "include": ["4", "6"]}, batch_norm="freeze"
    )
    assert result.trained == ("4.weight", "6.weight")
    assert changed(before, module) == {"4.weight", "6.weight"}
    assert structure(module) == structure(before)
    assert dict(module.named_modules()) == objects
    assert vars(module).keys() == vars(before).keys()
    assert all(parameter.requires_grad for parameter in module.parameters())
    assert result.losses[-1][1] < result.losses[0][1]


def test_the_change_has_the_rank_that_was_asked_for(tmp_path: Path) -> None:
    module = perceptron()
    before = copy.deepcopy(module)
    run(module, tmp_path, epochs=10, lora={"rank": 2, "include": ["4"]}, evaluations=0)
    values = torch.linalg.svdvals((module[4].weight - before[4].weight).detach())
    assert values[1] > 1e-3
    assert values[2] < 1e-6 * values[0]


@pytest.mark.parametrize("masked", [False, True])
def test_the_merged_model_is_the_one_that_was_validated(tmp_path: Path, masked: bool) -> None:
    model = Model(perceptron())
    if masked:
        for weight in model.weights():
            model.mask(weight, torch.rand(weight.parameter.shape) > 0.5)
    result = run(model, tmp_path, epochs=20, lora={"rank": 4}, learning_rate=0.03)
    assert result.best_step > 0
    task = Classification()
    batch = task.samples("validation").batch(range(40))
    with torch.no_grad():
        loss = task.loss(model.module(batch.inputs["x"]), batch.targets)
    [best] = [e for e in result.evaluations if e.step == result.best_step]
    assert float(loss) == pytest.approx(best.loss, rel=1e-4)
    for name, keep in model.masks.items():
        pruned = model.tensors()[name][~keep]
        assert torch.equal(pruned, torch.zeros_like(pruned))
        assert not pruned.signbit().any()


def test_attentions_fast_path_does_not_hide_updates_from_validation(tmp_path: Path) -> None:
    module = seeded(testing_models.transformer)
    lora = {"rank": 4, "include": ["encoder.*.linear?"]}
    result = run(module, tmp_path, TOKENS, epochs=3, lora=lora, learning_rate=0.05)
    losses = {evaluation.loss for evaluation in result.evaluations}
    assert len(losses) == len(result.evaluations)
    assert result.trained == tuple(
        f"encoder.layers.{i}.linear{j}.weight" for i in (0, 1) for j in (1, 2)
    )


def test_what_is_tied_packed_inside_attention_or_trained_itself_gets_no_update(
    plugins: Plugins,
) -> None:
    module = seeded(testing_models.transformer)
    model = Model(module, plugins.layers)
    kind = plugins.technique("weight_quantization")
    context = Context(0, torch.device("cpu"), list, lambda m, b: m(b), lambda *_: None, Path())
    kind(kind.config_type(bits=8, include=("encoder.layers.0.linear1.weight",))).apply(
        model, context
    )
    module.head2 = nn.Linear(32, 10)
    module.head2.weight = module.head.weight
    trained = [module.encoder.layers[1].linear2.weight]
    assert updated_layers(module, ["*"], trained) == [
        "encoder.layers.0.linear2",
        "encoder.layers.1.linear1",
    ]


def test_nothing_to_update_is_refused_and_says_why(tmp_path: Path, plugins: Plugins) -> None:
    with pytest.raises(StageError, match=r"no linear layer .*\['nothing'\].*Leave 'lora' out"):
        run(perceptron(), tmp_path, lora={"include": ["nothing"]})
    model = Model(seeded(testing_models.cnn), plugins.layers)
    kind = plugins.technique("weight_quantization")
    context = Context(0, torch.device("cpu"), list, lambda m, b: m(b), lambda *_: None, Path())
    kind(kind.config_type(bits=8)).apply(model, context)
    assert packed_weights(model.module)
    with pytest.raises(StageError, match="packed weights, which cannot be updated: train before"):
        run(model, tmp_path, lora={})


def test_learning_rates_name_what_is_trained_besides(tmp_path: Path) -> None:
    module = perceptron()
    before = copy.deepcopy(module)
    result = run(
        module,
        tmp_path,
        lora={"rank": 2},
        learning_rates={"6.*": 0.5, "0.*": 0.0},
        batch_norm="freeze",
        evaluations=0,
    )
    assert set(result.trained) == changed(before, module) == {"4.weight", "6.weight", "6.bias"}
    assert torch.linalg.matrix_rank((module[6].weight - before[6].weight).detach()) == 3


def test_a_failure_leaves_the_structure_and_the_weights(tmp_path: Path) -> None:
    class Failing(Classification):
        def loss(self, output: Tensor, targets: Any) -> Tensor:
            return super().loss(output, targets) * (float("nan") if self.calls > 3 else 1)

    module = perceptron()
    before = copy.deepcopy(module)
    with pytest.raises(StageError, match="became nan"):
        run(module, tmp_path, Failing(), lora={}, evaluations=0, batch_norm="freeze")
    assert structure(module) == structure(before)
    assert same(module, before)


def test_16_bit_weights_get_float32_updates(tmp_path: Path) -> None:
    module = perceptron().bfloat16()
    with low_rank_updates(module, EVERY, ["0", "4"], {}):
        types = {n: p.dtype for n, p in module.named_parameters() if "lora" in n}
        assert set(types.values()) == {torch.float32}
        assert len(types) == 4
    accept_float32(module)
    result = run(module, tmp_path, lora={"rank": 2}, learning_rate=0.05, epochs=5)
    assert {p.dtype for p in module.parameters()} == {torch.bfloat16}
    assert result.losses[-1][1] < result.losses[0][1]


@pytest.mark.parametrize("masked", [False, True])
def test_transformers_models_and_their_conv1d_are_updated(tmp_path: Path, masked: bool) -> None:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        vocab_size=testing_models.VOCABULARY, n_positions=16, n_embd=16, n_layer=1, n_head=2,
        num_labels=3, pad_token_id=0,
    )  # fmt: skip
    model = Model(transformers.GPT2ForSequenceClassification(config).eval())
    if masked:
        for weight in model.weights(("linear",)):
            model.mask(weight, torch.rand(weight.parameter.shape) > 0.5)
    before = copy.deepcopy(model.module)
    result = run(
        model, tmp_path, TOKENS, epochs=3, lora={"rank": 2, "dropout": 0.1}, learning_rate=0.05
    )
    linear = {w.name for w in model.weights(("linear",))}
    assert set(result.trained) == linear == changed(before, model.module)
    assert "transformer.h.0.attn.c_attn.weight" in linear
    assert structure(model.module) == structure(before)
    [best] = [e for e in result.evaluations if e.step == result.best_step]
    batch = TOKENS.samples("validation").batch(range(40))
    with torch.no_grad():
        loss = TOKENS.loss(TOKENS.forward(model.module, batch.inputs), batch.targets)
    assert float(loss) == pytest.approx(best.loss, rel=1e-4)


def test_without_peft_the_remedy_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(StageError, match=r"pip install 'zoopress\[lora\]'"):
        run(perceptron(), tmp_path, lora={})
