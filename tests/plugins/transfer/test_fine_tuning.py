"""Fine-tuning trains all of a model or its head, and any technique recovers by it."""

from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from digits_reader import LAYERS, WIDTH, Reader, digits_card, press, trained
from zoopress.artifacts.artifact import load_artifact
from zoopress.errors import CardError, RecipeError, StageError
from zoopress.models.model import Model
from zoopress.models.packing import packed_weights
from zoopress.pipeline.compress import compress
from zoopress.plugins import Plugins
from zoopress.recipes import parse_recipe
from zoopress.store import Store
from zoopress.techniques import Context
from zoopress.testing import tiny_card
from zoopress.training.walk import Walk
from zoopress.yaml_source import read_yaml
from zoopress_plugins.distillation.distillation import Distillation
from zoopress_plugins.transfer.fine_tuning import FineTuning, FineTuningConfig, last_layer

pytestmark = pytest.mark.usefixtures("brief_evaluation")

TUNING = "{technique: fine_tuning, epochs: 2, learning_rate: 2.0e-3, evaluations: 4}"
TEACHING = "{technique: distillation, epochs: 2, learning_rate: 2.0e-3, evaluations: 4}"


def loaded(artifact: Path, plugins: Plugins) -> Model:
    return load_artifact(artifact, plugins, Reader)[0]


def test_feature_extraction_trains_the_last_layer_that_runs_and_nothing_else(
    tmp_path: Path, plugins: Plugins
) -> None:
    stages = "[{technique: fine_tuning, mode: feature_extraction, steps: 5, evaluations: 0}]"
    result = press(digits_card(tmp_path), stages, tmp_path / "run", plugins)
    stage = result.report.stages[-1]
    assert stage.notes["head"] == "head"
    assert sorted(stage.touched) == ["head.bias", "head.weight"]
    before = trained(LAYERS, WIDTH).state_dict()
    changed = {
        name
        for name, tensor in loaded(result.artifact, plugins).tensors().items()
        if not torch.equal(tensor, before[name])
    }
    assert changed == {"head.weight", "head.bias"}


class Backwards(nn.Module):
    """Registers its layers in another order than it runs them, with a norm at the end."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(4, 3)
        self.norm = nn.LayerNorm(3)
        self.body = nn.Linear(2, 4)
        self.unused = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.norm(self.head(self.body(x)))
        return result


@pytest.mark.parametrize("change", [{"mode": "feature_extraction", "learning_rates": {"*": 1}}, {}])
def test_a_config_that_says_two_things_or_nothing_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        FineTuningConfig(**change, **({"steps": 1} if change else {}))


def test_a_card_without_labels_is_told_to_distil(tmp_path: Path, plugins: Plugins) -> None:
    with pytest.raises(CardError, match=r"no labels to learn from.*distillation"):
        press(
            tiny_card("cnn", tmp_path / "card"),
            "[{technique: fine_tuning, steps: 1}]",
            tmp_path / "run",
            plugins,
        )


# ----- recovery, of every technique ------------------------------------------------------------

CHAINS = {
    "masks": "technique: magnitude_pruning, sparsity: 0.85",
    "codes": "technique: weight_quantization, bits: 2",
    "factors": "technique: truncated_svd, parameters: 0.3",
    "neurons": "technique: neuron_pruning, sparsity: 0.6",
    "layers": "technique: layer_removal, layers: 1",
}


@pytest.mark.parametrize(
    "recovery",
    [
        pytest.param(TUNING, id="fine_tuning"),
        pytest.param(TEACHING, id="distillation", marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize("chain", CHAINS)
def test_what_a_technique_costs_is_recovered_and_what_it_saved_stays(
    chain: str, recovery: str, tmp_path: Path, plugins: Plugins
) -> None:
    card = digits_card(tmp_path)
    harmed = press(card, f"[{{{CHAINS[chain]}}}]", tmp_path / "harmed", plugins)
    stages = f"[{{{CHAINS[chain]}, recovery: {recovery}}}]"
    recovered = press(card, stages, tmp_path / "recovered", plugins)
    before, after = harmed.report.stages[-1], recovered.report.stages[-1]
    assert after.metrics["log_loss"] < 0.9 * before.metrics["log_loss"]
    assert after.weight_bytes == before.weight_bytes
    assert after.parameters == before.parameters
    assert after.claims == before.claims
    one, other = (loaded(result.artifact, plugins) for result in (harmed, recovered))
    assert one.masks.keys() == other.masks.keys()
    for name, mask in one.masks.items():
        assert torch.equal(mask, other.masks[name])
        assert not other.tensors()[name][~mask].any()
    assert bool(one.masks) == (chain == "masks")
    packed = {name: weight.state_dict() for name, weight in packed_weights(one.module).items()}
    assert bool(packed) == (chain == "codes")
    for name, weight in packed_weights(other.module).items():
        for key, value in weight.state_dict().items():
            assert torch.equal(value, packed[name][key])
    trained_here = after.notes["recovery"][0]
    assert trained_here["best_step"] > 0
    if chain == "factors":
        assert not torch.equal(
            one.tensors()["layers.0.inner.down.weight"],
            other.tensors()["layers.0.inner.down.weight"],
        )


# ----- rounds ----------------------------------------------------------------------------------

ROUNDS = f"[{{technique: magnitude_pruning, sparsity: 0.9, rounds: 3, recovery: {TUNING}}}]"


def test_rounds_train_in_between_and_keep_more_than_one_cut(
    tmp_path: Path, plugins: Plugins
) -> None:
    card = digits_card(tmp_path)
    once = press(card, ROUNDS.replace("rounds: 3, ", ""), tmp_path / "once", plugins)
    often = press(card, ROUNDS, tmp_path / "often", plugins)
    one, other = once.report.stages[-1], often.report.stages[-1]
    assert len(other.notes["recovery"]) == 3
    assert other.claims == one.claims
    assert other.pruned == one.pruned
    assert other.metrics["log_loss"] < one.metrics["log_loss"]


def test_rounds_without_a_recovery_are_refused_before_any_work(
    tmp_path: Path, plugins: Plugins
) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text("stages:\n  - {technique: magnitude_pruning, sparsity: 0.9, rounds: 3}\n")
    with pytest.raises(RecipeError, match=r"recipe.yaml:2: .*3 rounds.*needs a 'recovery'"):
        parse_recipe(read_yaml(file, RecipeError), plugins, "x")


class Killed(BaseException):
    """What a signal would do."""


def test_a_killed_run_goes_on_where_it_was_to_the_same_bytes(
    tmp_path: Path, plugins: Plugins, monkeypatch: pytest.MonkeyPatch
) -> None:
    card = digits_card(tmp_path)
    whole = press(card, ROUNDS, tmp_path / "whole", plugins)
    file = tmp_path / "whole" / "recipe.yaml"
    recipe = parse_recipe(read_yaml(file, ValueError), plugins, "test")
    store, step, taken = Store(tmp_path / "killed"), Walk._take_step, []

    def counted(walk: Walk) -> float:
        taken.append(1)
        if len(taken) == killed_at:
            raise Killed
        return step(walk)

    monkeypatch.setattr(Walk, "_take_step", counted)
    steps = sum(note["steps"] for note in whole.report.stages[-1].notes["recovery"])
    killed_at = steps // 2  # in the second round
    with pytest.raises(Killed):
        compress(card, recipe, tmp_path / "out", store, plugins)
    taken.clear()
    killed_at = -1
    again = compress(card, recipe, tmp_path / "out", store, plugins)
    assert len(taken) == steps - steps // 3  # the first round was finished, and is not repeated
    for name in ("compressed.safetensors", "zoopress.json"):
        assert (again.artifact / name).read_bytes() == (whole.artifact / name).read_bytes()


def test_nothing_to_train_is_told(tmp_path: Path, plugins: Plugins) -> None:
    with pytest.raises(StageError, match="learning_rates"):
        press(
            digits_card(tmp_path),
            "[{technique: fine_tuning, steps: 1, learning_rates: {'*': 0}}]",
            tmp_path / "run",
            plugins,
        )


def test_the_head_is_found_by_what_runs_not_by_names() -> None:
    context = Context(
        **{"seed": 0, "device": torch.device("cpu"), "batches": lambda: [torch.randn(2, 2)]},
        **{"call": lambda module, batch: module(batch), "progress": lambda *_: None},
        checkpoint=Path(),
    )
    assert last_layer(Model(Backwards()), context) == "head"
    with pytest.raises(StageError, match="no head"):
        last_layer(Model(nn.LayerNorm(2)), context)


def test_a_plan_knows_how_much_is_trained() -> None:
    config: dict[str, Any] = {"batch_size": 32, "evaluations": 4}
    for kind, given, expected in (
        (FineTuning, {"epochs": 3}, (300, 50)),
        (FineTuning, {"steps": 8}, (200, 50)),
        (FineTuning, {"steps": 8, "evaluations": 0}, (200, 0)),
        (Distillation, {"epochs": 3}, (300, 300 + 2 * 50)),  # the teacher runs, too
    ):
        technique = kind(kind.config_type(**{**config, **given}))
        assert technique.training_work(100, 10) == expected
        assert technique.training_work(0, 0) == (0, 0)
