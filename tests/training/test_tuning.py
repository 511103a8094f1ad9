"""Scales, steps and codebooks of packed weights are trained; their codes stay what they are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from synthetic_task import CLASSES, FEATURES, Classification, perceptron, run
from zoopress.errors import StageError
from zoopress.models.model import Model
from zoopress.models.packing import PackedWeight, differentiable, packed_weights
from zoopress.pipeline.compress import compress
from zoopress.plugins import Plugins
from zoopress.recipes import Recipe, Stage
from zoopress.store import Store
from zoopress.techniques import Context, Technique
from zoopress.testing import models as testing_models, reload_artifact, seeded, tiny_card
from zoopress.training.constraints import TunedBuffers, tunable_parameters

QUANTIZERS: dict[str, tuple[str, dict[str, Any]]] = {
    "rows": ("weight_quantization", {"bits": 3}),
    "groups": ("weight_quantization", {"bits": 4, "group_size": 8, "symmetric": False}),
    "codebook": ("codebook_quantization", {"bits": 3}),
    "lattice": ("lattice_quantization", {"step": 0.7, "steps": "row"}),
    "Z, no dither": ("lattice_quantization", {"step": 0.7, "lattice": "Z", "dither": False}),
}


def technique(plugins: Plugins, name: str, config: dict[str, Any]) -> Technique[Any]:
    kind = plugins.technique(name)
    return kind(kind.config_type(**config))


def quantize(plugins: Plugins, module: nn.Module, quantizer: str, **besides: Any) -> Model:
    model = Model(module, plugins.layers)
    context = Context(0, torch.device("cpu"), list, lambda m, b: m(b), lambda *_: None, Path())
    name, config = QUANTIZERS[quantizer]
    technique(plugins, name, {**config, **besides}).apply(model, context)
    return model


def tunable_buffers(model: Model) -> dict[str, Tensor]:
    return {
        f"{name}.{buffer}": getattr(weight, buffer)
        for name, weight in packed_weights(model.module).items()
        for buffer in weight.tunable()
    }


class Tokens(nn.Module):
    """Looks up, convolves and multiplies; the output layer's weight is that of the embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(24, 16)
        self.conv = nn.ConvTranspose1d(16, 16, 3)
        self.output = nn.Linear(16, 24, bias=False)
        self.output.weight = self.embedding.weight

    def forward(self, ids: Tensor) -> Tensor:
        hidden = self.conv(self.embedding(ids).transpose(1, 2)).mean(2)
        result: Tensor = self.output(hidden)
        return result


def ids(samples: int, generator: torch.Generator) -> Tensor:
    return torch.randint(0, 24, (samples, 5), generator=generator)


@pytest.mark.parametrize("quantizer", QUANTIZERS)
def test_gradients_of_what_is_tuned_are_those_of_the_dense_weight(
    plugins: Plugins, quantizer: str
) -> None:
    model = quantize(plugins, seeded(Tokens), quantizer)
    for weight in packed_weights(model.module).values():
        dense, weights = weight.dense(), torch.randn(weight.shape)
        with tunable_parameters(weight, True) as parameters:
            (parameter,) = parameters
            assert torch.equal(weight.dense(), dense)
            (weight.dense() * weights).sum().backward()
            gradient = parameter.grad
            assert gradient is not None
            # Values are proportional to the buffer, so by Euler's theorem:
            product, expected = (gradient * parameter).sum(), (dense * weights).sum()
            torch.testing.assert_close(product, expected, rtol=1e-4, atol=1e-4)
            place = int(gradient.abs().argmax())
            with torch.no_grad():
                parameter.view(-1)[place] += 1.0
            moved = ((weight.dense() - dense) * weights).sum()
            torch.testing.assert_close(moved, gradient.view(-1)[place], rtol=1e-4, atol=1e-4)
            if weight.shape == (24, 16):
                rows = torch.tensor([[3, 5], [5, 23]])
                one, other = weight.embedding(rows), weight.dense()[rows]
                assert torch.equal(one, other)
                ones = torch.autograd.grad(one.square().sum(), parameter)[0]
                others = torch.autograd.grad(other.square().sum(), parameter)[0]
                torch.testing.assert_close(ones, others)


@pytest.mark.parametrize("quantizer", QUANTIZERS)
def test_tuning_lowers_the_loss_and_leaves_codes_and_ties(
    tmp_path: Path, plugins: Plugins, quantizer: str
) -> None:
    model = quantize(plugins, seeded(Tokens), quantizer)
    before = {name: tensor.clone() for name, tensor in model.tensors().items()}
    buffers = tunable_buffers(model)
    task = Classification(ids, lambda x: x[:, 0])
    result = run(
        model, tmp_path, task, packed="tune", epochs=6, evaluations=6, learning_rate=0.03,
        learning_rates={"conv.bias": 0},
    )  # fmt: skip
    assert result.evaluations[-1].loss < result.evaluations[0].loss
    after = model.tensors()
    assert list(after) == list(before)
    assert {name: tensor.dtype for name, tensor in after.items()} == {
        name: tensor.dtype for name, tensor in before.items()
    }
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == buffers.keys()
    assert set(result.trained) == changed - {name for name in changed if "output" in name}
    for name, buffer in tunable_buffers(model).items():
        assert buffer is buffers[name]
    packed = packed_weights(model.module)
    one, other = packed["embedding.weight"], packed["output.weight"]
    assert torch.equal(one.dense(), other.dense())
    assert [a.data_ptr() for a in one.buffers()] == [b.data_ptr() for b in other.buffers()]


def test_every_forward_pass_sees_what_can_be_stored(tmp_path: Path, plugins: Plugins) -> None:
    model = quantize(plugins, perceptron(), "rows")
    seen: list[bool] = []

    def look(module: nn.Module, *_: object) -> None:
        scales = [w.get_parameter("scale") for w in packed_weights(module).values()]
        seen.append(all(torch.equal(s, s.bfloat16().float()) for s in scales))

    handle = model.module.register_forward_pre_hook(look)
    # So small a rate moves no scale to the next bfloat16 at once: the factors must add up.
    result = run(
        model, tmp_path, Classification(metric=None), packed="tune", epochs=10,
        learning_rate=1e-3, warm_up=0, batch_norm="freeze",
        schedule="constant", evaluations=10, learning_rates={"*.scale": 1, "*": 0},
    )  # fmt: skip
    handle.remove()
    assert len(seen) > 60
    assert all(seen)
    assert result.best_step > 0
    assert result.evaluations[-1].loss < result.evaluations[0].loss


def test_what_is_kept_is_what_was_judged(tmp_path: Path, plugins: Plugins) -> None:
    model, task = quantize(plugins, perceptron(), "codebook"), Classification()
    result = run(model, tmp_path, task, packed="tune", epochs=4, evaluations=8)
    best = next(e for e in result.evaluations if e.step == result.best_step)
    validation = task.samples("validation").batch(range(40))
    with torch.no_grad(), differentiable(model.module):
        loss = task.loss(model.module(validation.inputs["x"]), validation.targets)
    assert float(loss) == pytest.approx(best.loss, abs=1e-6)


@pytest.mark.parametrize("bits", [4, 8])
def test_kernels_read_the_scales_that_were_learned(
    tmp_path: Path, plugins: Plugins, bits: int
) -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, CLASSES)).eval()
    group = {"group_size": 32} if bits == 4 else {"group_size": None}
    model = quantize(plugins, module, "rows", bits=bits, include=("0.*",), **group)
    weight = packed_weights(module)["0.weight"]
    inputs = torch.randn(4, 64)
    with torch.inference_mode():
        before = module[0](inputs)  # the kernel keeps what it makes of the codes
    task = Classification(lambda n, g: torch.randn(n, 64, generator=g))
    run(
        model, tmp_path, task, packed="tune", epochs=2, learning_rate=0.05, evaluations=0,
        learning_rates={"*.scale": 1, "*": 0},
    )  # fmt: skip
    with torch.inference_mode():
        after = module[0](inputs)
    dense = nn.functional.linear(inputs, weight.dense(), module[0].bias)
    torch.testing.assert_close(after, dense, rtol=0.03, atol=0.03)
    assert (before - after).abs().max() > 0.1


def test_zeros_stay_zero_and_factors_are_relative() -> None:
    values = nn.Parameter(torch.tensor([[0.0, 2.0, -0.5]]))
    tuned = TunedBuffers({values: torch.bfloat16})
    (factor,) = tuned.factors.values()
    tuned.before_step()
    assert factor.grad is None
    values.grad = torch.tensor([[7.0, 3.0, 4.0]])
    tuned.before_step()
    assert values.grad is None
    assert factor.grad is not None
    assert factor.grad.tolist() == [0.0, 6.0, -2.0]
    with torch.no_grad():
        factor.copy_(torch.tensor([5.0, 1.5, 1.001]))
    tuned.after_step()
    assert values.tolist() == [[0.0, 3.0, -0.5]]  # -0.5005 is between two bfloat16
    assert tuned.tensors()["0"].tolist() == pytest.approx([5.0, 1.5, 1.001])


def test_scales_have_learning_rates_of_their_own(tmp_path: Path, plugins: Plugins) -> None:
    model = quantize(plugins, perceptron(), "rows")
    before = {name: scale.clone() for name, scale in tunable_buffers(model).items()}
    rates = {"0.weight.scale": 0, "*.scale": 1, "*": 0}
    result = run(model, tmp_path, packed="tune", evaluations=0, learning_rates=rates)
    assert result.trained == ("4.weight.scale", "6.weight.scale")
    for name, scale in tunable_buffers(model).items():
        assert torch.equal(scale, before[name]) == (name == "0.weight.scale")


def test_frozen_is_the_default(tmp_path: Path, plugins: Plugins) -> None:
    model = quantize(plugins, perceptron(), "rows")
    before = {name: scale.clone() for name, scale in tunable_buffers(model).items()}
    result = run(model, tmp_path, evaluations=0)
    assert not any("scale" in name for name in result.trained)
    assert all(torch.equal(s, before[name]) for name, s in tunable_buffers(model).items())


def test_a_model_with_nothing_else_to_train_can_be_tuned(tmp_path: Path, plugins: Plugins) -> None:
    model = quantize(plugins, nn.Sequential(nn.Linear(FEATURES, CLASSES, bias=False)), "rows")
    with pytest.raises(StageError, match="or set 'packed: tune' to train their scales"):
        run(model, tmp_path / "frozen")
    result = run(model, tmp_path / "tuned", packed="tune")
    assert result.trained == ("0.weight.scale",)


def test_tuning_without_packed_weights_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StageError, match="'packed: tune': the model has no packed weights"):
        run(perceptron(), tmp_path, packed="tune")


def test_a_packed_weight_that_names_nothing_tunable_cannot_be_tuned(
    tmp_path: Path, plugins: Plugins, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = quantize(plugins, perceptron(), "rows")
    weight = next(iter(packed_weights(model.module).values()))
    monkeypatch.setattr(type(weight), "tunable", PackedWeight.tunable)
    with pytest.raises(StageError, match="none of the 3 packed weights holds anything"):
        run(model, tmp_path, packed="tune")


def test_a_finished_tuning_is_found_again(tmp_path: Path, plugins: Plugins) -> None:
    models = [quantize(plugins, perceptron(), "codebook") for _ in range(2)]
    results = [run(m, tmp_path, packed="tune", epochs=2, learning_rate=0.02) for m in models]
    assert {**vars(results[0]), "seconds": 0} == {**vars(results[1]), "seconds": 0}
    one, other = (m.tensors() for m in models)
    assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())


def test_what_training_breaks_off_leaves_has_its_buffers(tmp_path: Path, plugins: Plugins) -> None:
    model = quantize(plugins, perceptron(), "rows")
    names = list(model.tensors())
    with pytest.raises(StageError, match="became nan"):
        run(model, tmp_path, Classification(lambda n, g: torch.full((n, 6), torch.nan)),
            packed="tune", evaluations=0)  # fmt: skip
    assert list(model.tensors()) == names
    assert not any(list(weight.parameters()) for weight in packed_weights(model.module).values())


def test_a_16_bit_model_is_tuned(tmp_path: Path, plugins: Plugins) -> None:
    model = quantize(plugins, seeded(Tokens).bfloat16(), "groups")
    types = {name: tensor.dtype for name, tensor in model.tensors().items()}
    task = Classification(ids, lambda x: x[:, 0])
    result = run(model, tmp_path, task, packed="tune", epochs=4, learning_rate=0.02)
    assert result.evaluations[-1].loss < result.evaluations[0].loss
    assert {name: tensor.dtype for name, tensor in model.tensors().items()} == types


@pytest.mark.parametrize("as_recovery", [True, False], ids=["recovery", "stage of its own"])
def test_a_teacher_tunes_what_quantization_cost(
    tmp_path: Path, plugins: Plugins, as_recovery: bool
) -> None:
    card = tiny_card("cnn", tmp_path)
    assert card.data is not None
    data = card.data.model_copy(update={"training_samples": 96, "validation_samples": 32})
    used = card.model_copy(update={"data": data})
    used._root = card.root
    quantizer = technique(plugins, "codebook_quantization", {"bits": 2})
    learn = {"epochs": 8, "learning_rate": 0.02, "response": "regression", "batch_norm": "freeze"}
    tune = technique(plugins, "distillation", {"packed": "tune", **learn})
    stages = (Stage(quantizer, recovery=tune),) if as_recovery else (Stage(quantizer), Stage(tune))
    plain, tuned = (
        compress(used, Recipe("r", s), tmp_path / f"{i}", Store(tmp_path / "store"), plugins)
        for i, s in enumerate([(Stage(quantizer),), stages])
    )
    assert tuned.report.last.fidelity.cosine > plain.report.last.fidelity.cosine
    assert tuned.report.last.reload_difference == 0
    one, other = (
        packed_weights(reload_artifact(result.artifact, used, plugins).module)
        for result in (plain, tuned)
    )
    for name, weight in one.items():
        assert torch.equal(weight.get_buffer("codes"), other[name].get_buffer("codes"))
    books = [(w.get_buffer("codebook"), other[n].get_buffer("codebook")) for n, w in one.items()]
    assert any(not torch.equal(before, after) for before, after in books)


@pytest.mark.parametrize("name", ["lstm", pytest.param("transformer", marks=pytest.mark.slow)])
def test_recurrent_layers_and_attention_are_tuned(
    tmp_path: Path, plugins: Plugins, name: str
) -> None:
    def tokens(samples: int, generator: torch.Generator) -> Tensor:
        shape = (samples, testing_models.LENGTH)
        return torch.randint(0, testing_models.VOCABULARY, shape, generator=generator)

    model = quantize(plugins, seeded(getattr(testing_models, name)), "codebook")
    before = {name: book.clone() for name, book in tunable_buffers(model).items()}
    run(
        model, tmp_path, Classification(tokens, lambda ids: ids[:, -1] % 3), packed="tune",
        evaluations=0, learning_rate=0.02,
    )  # fmt: skip
    for key, book in tunable_buffers(model).items():
        assert not torch.equal(book, before[key])
