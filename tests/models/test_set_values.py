"""Values that are set stay: in every place of a tied tensor, under masks, on disk."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from zoopress.coding.bits import pack_codes
from zoopress.errors import StageError
from zoopress.models.model import Model
from zoopress.plugins import Plugins, hookimpl, load_plugins
from zoopress.techniques import Config, Context, Effects, Outcome, Technique
from zoopress.testing import reload_artifact, run_chain, seeded, tiny_card
from zoopress.testing.models import cnn, lstm
from zoopress_plugins.quantization.weight_quantization import quantize


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(6, 4)
        self.norm = nn.BatchNorm1d(4)
        self.head = nn.Linear(4, 6)
        self.head.weight = self.embedding.weight
        self.register_buffer("table", torch.ones(3), persistent=False)

    def forward(self, ids: Tensor) -> Tensor:
        result: Tensor = self.head(self.norm(self.embedding(ids)))
        return result


def tied() -> Model:
    return Model(seeded(Tied))


def test_values_arrive_in_every_place_of_a_tied_weight() -> None:
    model, other = tied(), torch.randn(6, 4)
    weight = next(iter(model.weights(["embedding"])))
    model.set_values("head.weight", other)
    assert torch.equal(model.tensors()["embedding.weight"], other)
    assert model.module.head.weight is model.module.embedding.weight
    assert list(model.updated) == ["embedding.weight"]
    model.set_values(weight, 2 * other)
    assert torch.equal(model.module.head.weight, 2 * other)


def test_pruned_weights_stay_zero_under_any_of_their_names() -> None:
    model = tied()
    weight = next(iter(model.weights(["embedding"])))
    keep = torch.arange(24).view(6, 4) % 3 > 0
    model.mask(weight, keep)
    model.set_values("head.weight", torch.full((6, 4), -2.0))
    new = weight.parameter.detach()
    assert torch.equal(new, torch.where(keep, torch.full((6, 4), -2.0), 0.0))
    assert not new.signbit()[~keep].any()


def test_statistics_of_batch_normalization_can_be_set() -> None:
    model = tied()
    model.set_values("norm.running_var", torch.full((4,), 4.0))
    model.set_values("norm.bias", torch.full((4,), 0.5))
    assert model.module.norm.running_var.tolist() == [4.0] * 4
    assert model.module.norm.bias.requires_grad


def test_what_a_recurrent_layer_computes_with_follows() -> None:
    model, ids = Model(seeded(lstm)), torch.arange(12)[None]
    before = model.module(ids)
    for weight in model.weights(["recurrent"]):
        model.set_values(weight, torch.zeros_like(weight.parameter))
    for name in ("rnn.bias_ih_l0", "rnn.bias_hh_l0"):
        model.set_values(name, torch.zeros_like(model.tensors()[name]))
    head = model.module.head(torch.zeros(1, 40))
    assert torch.equal(model.module(ids), head)
    assert not torch.equal(before, head)


def test_every_change_of_values_or_structure_raises_the_version() -> None:
    model = Model(seeded(cnn))
    weight = next(iter(model.weights(["linear"])))
    seen = [model.version]
    for change in (
        lambda: model.set_values(weight, weight.parameter.detach() + 1),
        lambda: model.mask(weight, weight.parameter > 0),
        lambda: model.select(weight.path, {"weight": (1, torch.arange(64))}, {"in_features": 64}),
        lambda: model.cast([weight.name], Tensor.half),
    ):
        change()
        seen.append(model.version)
    assert seen == sorted(set(seen))


BAD: list[tuple[str, Callable[[], Tensor], str]] = [
    ("head.wieght", lambda: torch.zeros(6, 4), r"no tensor 'head\.wieght'.*'head\.weight'"),
    ("head.weight", lambda: torch.zeros(4, 6), r"shape \(6, 4\), not \(4, 6\).*from_matrix"),
    ("head.weight", lambda: torch.zeros(6, 4).double(), r"float32, not torch\.float64.*\.to\("),
    ("head.weight", lambda: torch.full((6, 4), torch.nan), r"24 of 24 values are NaN"),
    ("head.bias", lambda: torch.tensor([1.0, torch.inf] * 3), r"3 of 6 values are NaN or inf"),
    ("norm.num_batches_tracked", lambda: torch.tensor(3), r"int64, and only floats"),
    ("table", lambda: torch.zeros(3), r"no part of the state dict"),
    ("head", lambda: torch.zeros(6, 4), r"no tensor 'head'"),
]


@pytest.mark.parametrize(("name", "values", "message"), BAD)
def test_what_does_not_fit_is_refused_and_nothing_changes(
    name: str, values: Callable[[], Tensor], message: str
) -> None:
    model = tied()
    before = {name: tensor.clone() for name, tensor in model.tensors().items()}
    with pytest.raises(StageError, match=message):
        model.set_values(name, values())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.tensors().items())
    assert not model.updated
    assert model.version == 0


def test_a_packed_weight_is_refused(plugins: Plugins) -> None:
    model = Model(seeded(cnn), plugins.layers)
    weight = next(iter(model.weights(["linear"])))
    rows, columns = weight.matrix().shape
    codes, scale, _ = quantize(weight.matrix(), 4, None, True, False)
    arguments = {"bits": 4, "group_size": columns, "symmetric": True}
    model.pack(weight, "quantized", arguments, {"codes": pack_codes(codes, 4), "scale": scale})
    for target in (weight, f"{weight.name}.scale"):
        with pytest.raises(StageError, match=r"is packed.*'packed: tune'"):
            model.set_values(target, torch.ones(rows, 1))


def test_a_weight_that_was_found_before_a_change_is_refused() -> None:
    model = Model(seeded(cnn))
    weight = next(iter(model.weights(["linear"])))
    model.select(weight.path, {"weight": (1, torch.arange(64))}, {"in_features": 64})
    with pytest.raises(StageError, match=r"before the model was changed.*anew"):
        model.set_values(weight, weight.parameter.detach())


class Centering(Technique[Config]):
    """Take the mean from biases, and forget to say so."""

    name = "centering"
    family = "redesign"
    config_type = Config

    def effects(self) -> Effects:
        return Effects()

    def apply(self, model: Model, context: Context) -> Outcome:
        for weight in model.weights(["vector"]):
            values = weight.parameter.detach()
            model.set_values(weight, values - values.mean())
        return Outcome(touched=[], shrinks=False)


def test_what_was_set_is_in_the_artifact_and_in_the_record(tmp_path: Path) -> None:
    plugin = SimpleNamespace(hook=hookimpl(lambda: [Centering], specname="zoopress_techniques"))
    plugins = load_plugins(extra={"centering": plugin})
    card = tiny_card("cnn", tmp_path)
    result = run_chain([Centering(Config())], card, tmp_path / "run", plugins)
    vectors = list(reload_artifact(result.artifact, card, plugins).weights(["vector"]))
    assert result.report.last.touched == [weight.name for weight in vectors]
    assert all(abs(float(weight.parameter.detach().mean())) < 1e-6 for weight in vectors)
