"""Feasibility: what no stage could do is refused before anything is computed."""

from pathlib import Path
from typing import Any, ClassVar

import pytest
from torch import nn

from zoopress.cards import Card
from zoopress.cells.cell import open_original
from zoopress.cells.feasibility import check_feasible
from zoopress.errors import PluginError, StageError
from zoopress.plugins import Plugins
from zoopress.recipes import Recipe, Stage
from zoopress.sources import build_on_meta
from zoopress.techniques import Config, Context, Effects, Outcome, Technique, WeightSelection
from zoopress.testing import run_chain, tiny_card

QUANTIZE: dict[str, Any] = {"technique": "weight_quantization"}
PRUNE: dict[str, Any] = {"technique": "magnitude_pruning", "sparsity": 0.5}


@pytest.fixture(params=["cnn"])
def card(request: pytest.FixtureRequest, tmp_path: Path) -> Card:
    return tiny_card(request.param, tmp_path)


def techniques(plugins: Plugins, *stages: dict[str, Any]) -> list[Technique[Any]]:
    made = []
    for options in stages:
        kind = plugins.technique(options["technique"])
        config = {key: value for key, value in options.items() if key != "technique"}
        made.append(kind(kind.config_type(**config)))
    return made


def check(card: Card, plugins: Plugins, *stages: dict[str, Any]) -> None:
    recipe = Recipe("r", tuple(map(Stage, techniques(plugins, *stages))))
    module = build_on_meta(open_original(card, plugins).architecture)
    assert all(tensor.is_meta for tensor in module.parameters())
    check_feasible(module, recipe, plugins)


@pytest.mark.parametrize(
    ("name", "stages", "reason"),
    [
        ("cnn", ({**PRUNE, "kinds": ["recurrent"]},), r"Stage 1 .*No float weight matches"),
        ("cnn", ({**PRUNE, "include": ["no.such.*"]},), r"include \['no\.such\.\*'\]"),
        ("lstm", ({"technique": "batch_norm_folding"},), "no batch normalization"),
        ("cnn", ({"technique": "layer_removal", "layers": 2},), "No list of equal layers"),
        (
            "cnn",
            ({"technique": "neuron_pruning", "sparsity": 0.5, "include": ["nothing"]},),
            r"No layer with float weights matches include \['nothing'\]",
        ),
    ],
)
def test_a_stage_that_finds_nothing_is_refused_with_the_reason(
    name: str, stages: tuple[dict[str, Any], ...], reason: str, tmp_path: Path, plugins: Plugins
) -> None:
    with pytest.raises(StageError, match=reason):
        check(tiny_card(name, tmp_path), plugins, *stages)


def test_layers_that_can_not_be_factored_are_refused_by_name(plugins: Plugins) -> None:
    module = nn.Sequential(nn.Conv2d(4, 4, 3, groups=4), nn.ReLU(), nn.Linear(4, 4))
    (factor,) = techniques(plugins, {"technique": "truncated_svd", "rank": 1, "kinds": ["conv"]})
    with pytest.raises(StageError, match=r"None of the 1 selected layers can be factored \(0\."):
        check_feasible(module.to("meta"), Recipe("r", (Stage(factor),)), plugins)


def test_weights_that_earlier_stages_pack_piece_by_piece_are_gone(
    card: Card, plugins: Plugins
) -> None:
    module = build_on_meta(open_original(card, plugins).architecture)
    names = [name for name, tensor in module.named_parameters() if tensor.ndim > 1]
    first, *rest = names
    pieces = [{**QUANTIZE, "include": [first]}, {**QUANTIZE, "include": rest}]
    check(card, plugins, *pieces)
    check(card, plugins, pieces[0], {**PRUNE, "include": rest})
    with pytest.raises(StageError, match=r"Stage 3 .*stage 1 \(weight_quantization\) takes 1"):
        check(card, plugins, *pieces, {**PRUNE, "include": [*names]})


def test_it_is_refused_before_anything_is_computed(
    card: Card, tmp_path: Path, plugins: Plugins
) -> None:
    chain = techniques(plugins, PRUNE, {**PRUNE, "include": ["no.such.*"]})
    with pytest.raises(StageError, match="Stage 2"):
        run_chain(chain, card, tmp_path / "out", plugins)
    assert not list((tmp_path / "out").rglob("artifact"))


class Answering(Technique[Config]):
    """Answers as it is told."""

    name = "answering"
    family = "pruning"
    config_type = Config
    answer: ClassVar[Any] = None

    def effects(self) -> Effects:
        return Effects()

    def refusal(self, model: Any) -> str | None:
        if isinstance(self.answer, Exception):
            raise self.answer
        shapes = [tuple(weight.parameter.shape) for weight in model.weights()]
        return self.answer(shapes) if callable(self.answer) else None

    def apply(self, model: Any, context: Context) -> Outcome:
        raise AssertionError("a plan computes nothing")


def test_a_plugins_answer_counts_and_its_bug_is_named(
    card: Card, plugins: Plugins, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = build_on_meta(open_original(card, plugins).architecture)
    recipe = Recipe("r", (Stage(Answering(Config())),))
    check_feasible(module, recipe, plugins)
    monkeypatch.setattr(Answering, "answer", staticmethod(lambda shapes: f"only {len(shapes)}."))
    with pytest.raises(StageError, match=r"Stage 1 \(answering\): only \d"):
        check_feasible(module, recipe, plugins)
    monkeypatch.setattr(Answering, "answer", ZeroDivisionError("oh"))
    with pytest.raises(PluginError, match=r"'answering' failed to say.*ZeroDivisionError: oh"):
        check_feasible(module, recipe, plugins)


def test_properties_are_narrowed_by_patterns_and_not_lifted() -> None:
    narrow = WeightSelection(kinds=("linear",), include=("a.*",))
    assert narrow.properties() == WeightSelection(kinds=("linear",)).properties()
    assert narrow.selection().include == ("a.*",)
