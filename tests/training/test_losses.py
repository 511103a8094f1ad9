"""Losses of a recipe: any training takes them, from any teacher; regularizers are losses too."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from digits_reader import Reader, digits_card, press, trained
from synthetic_task import Classification, perceptron
from zoopress.artifacts.artifact import load_artifact
from zoopress.choice import NoOptions, choices
from zoopress.errors import RecipeError, StageError
from zoopress.models.model import Model
from zoopress.plugins import Plugins, hookimpl, load_plugins
from zoopress.recipes import parse_recipe
from zoopress.tasks import Batch
from zoopress.techniques import Context
from zoopress.testing import check_loss
from zoopress.training.config import TrainingConfig
from zoopress.training.loss import Loss, LossChoice, Seen
from zoopress.training.loss_term import make_term
from zoopress.yaml_source import parse_yaml
from zoopress_plugins.distillation.paired_layers import paired_layers
from zoopress_plugins.quantization.losses.periodic import Periodic, PeriodicConfig
from zoopress_plugins.transfer.fine_tuning import FineTuning, FineTuningConfig
from zoopress_plugins.transfer.losses.l1 import L1
from zoopress_plugins.transfer.losses.l2_sp import L2Sp
from zoopress_plugins.transfer.losses.selected import SelectedParameters

pytestmark = pytest.mark.usefixtures("brief_evaluation")

NAMES = [
    "cosine",
    "hidden_states",
    "kl_divergence",
    "l1",
    "l2_sp",
    "mean_squared_error",
    "periodic",
    "relational",
    "soft_weight_sharing",
]


@pytest.mark.parametrize("name", NAMES)
def test_it_conforms(name: str, plugins: Plugins) -> None:
    options = {"layers": [["", ""]]} if name == "hidden_states" else {}
    check_loss(LossChoice.model_validate({"loss": name, **options}).make(plugins), plugins)


def test_every_loss_is_checked(plugins: Plugins) -> None:
    assert sorted(plugins.references["losses"]) == NAMES


# ----- regularizers ----------------------------------------------------------------------------


def seen(parameters: dict[str, Tensor], start: dict[str, Tensor] | None = None) -> Seen:
    return Seen(
        Classification(),
        Batch(None),
        torch.zeros(1),
        parameters=parameters,
        start=start or {},
    )


def test_l1_sums_the_magnitudes_of_the_weights_that_are_selected() -> None:
    weights = {"a.weight": torch.tensor([[1.0, -2.0]]), "b.weight": torch.tensor([[4.0]])}
    biased = {**weights, "a.bias": torch.tensor([100.0])}
    assert float(L1(SelectedParameters()).value(seen(biased), None)) == 7
    only = SelectedParameters(include=("a.*",))
    assert float(L1(only).value(seen(biased), None)) == 3
    with pytest.raises(StageError, match=r"include \['c'\].*There are \['a.weight', 'b.weight'\]"):
        L1(SelectedParameters(include=("c",))).prepare(seen(biased))


def test_l2_sp_is_half_the_squared_distance_from_the_start() -> None:
    now, start = {"w": torch.tensor([[1.0, -2.0]])}, {"w": torch.tensor([[0.0, 1.0]])}
    assert float(L2Sp(SelectedParameters()).value(seen(now, start), None)) == (1 + 9) / 2


def test_the_periodic_penalty_is_zero_on_levels_and_one_between() -> None:
    weights = {"w": torch.tensor([[7.0, -3.0, 0.0, 1.5], [0.5, 14.0, 0.0, 4.0]])}
    value = float(Periodic(PeriodicConfig(bits=4)).value(seen(weights), None))
    # Steps are 1 and 2: one weight lies halfway, one a quarter of the way, whose sin² is a half.
    assert value == pytest.approx((1 + 0.5) / 8, abs=1e-6)


def train(folder: Path, plugins: Plugins, task_weight: float = 1.0, **given: Any) -> Model:
    task, model = Classification(), Model(perceptron())
    context = Context(
        seed=0,
        device=torch.device("cpu"),
        batches=lambda: task.batches("calibration"),
        call=lambda module, batch: task.call(module, batch),
        progress=lambda *_: None,
        checkpoint=folder,
        task=task,
        teacher=lambda name: perceptron(),
        plugins=plugins,
    )
    options = {"steps": 30, "learning_rate": 0.02, "evaluations": 0, "weight_decay": 0, **given}
    context.train(model, TrainingConfig.model_validate(options), task_weight=task_weight)
    return model


def size(model: Model) -> float:
    return sum(weight.parameter.abs().sum().item() for weight in model.weights())


def test_weights_shrink_under_l1_and_stay_near_the_start_under_l2_sp(
    tmp_path: Path, plugins: Plugins
) -> None:
    free = train(tmp_path / "free", plugins)
    small = train(tmp_path / "l1", plugins, losses=[{"loss": "l1", "weight": 0.05}])
    assert size(small) < 0.7 * size(free)
    near = train(tmp_path / "l2_sp", plugins, losses=[{"loss": "l2_sp", "weight": 1.0}])
    start = Model(perceptron())

    def moved(model: Model) -> float:
        pairs = zip(model.weights(), start.weights(), strict=True)
        return sum((w.parameter - s.parameter).square().sum().item() for w, s in pairs)

    assert moved(near) < 0.3 * moved(free)


def test_a_regularizer_sees_what_is_trained_and_nothing_else(
    tmp_path: Path, plugins: Plugins
) -> None:
    losses = [{"loss": "l1", "include": ["0.weight"], "weight": 0.05}]
    frozen = {"learning_rates": {"0.*": 0, "*": 1}}
    with pytest.raises(StageError, match=r"No weight that is trained matches include \['0.w"):
        train(tmp_path, plugins, losses=losses, **frozen)


def test_losses_of_a_recipe_alone_are_enough_to_train_on(tmp_path: Path, plugins: Plugins) -> None:
    model = train(tmp_path, plugins, 0.0, losses=[{"loss": "l1", "weight": 1.0}])
    assert size(model) < 0.7 * size(Model(perceptron()))


# ----- what a recipe says ----------------------------------------------------------------------


def recipe(losses: str, plugins: Plugins) -> Any:
    text = f"stages:\n  - technique: fine_tuning\n    steps: 1\n    losses:\n      - {losses}\n"
    return parse_recipe(parse_yaml(text, Path("r.yaml"), RecipeError), plugins, "r")


@pytest.mark.parametrize(
    ("losses", "said"),
    [
        ("{loss: kl_divergenc}", "r.yaml:5: losses.0: There is no loss 'kl_divergenc'. Did you me"),
        ("{loss: kl_divergence, temprature: 2}", "losses.0.temprature: 'kl_divergence' has no opt"),
        ("{loss: kl_divergence, temperature: 0}", "losses.0.temperature: input should be greater"),
        ("{loss: l1, weight: -1}", "losses.0.weight: input should be greater than 0, got -1"),
        ("{loss: l1, teacher: input}", "losses.0: the loss 'l1' learns from no teacher"),
        ("{weight: 1}", "expected a name, or {loss: NAME, …} with its options"),
    ],
)
def test_mistakes_are_told_with_file_line_and_key(losses: str, said: str, plugins: Plugins) -> None:
    with pytest.raises(RecipeError) as error:
        recipe(losses, plugins)
    assert said in str(error.value)


def test_all_options_are_spelled_out_and_read_again(plugins: Plugins) -> None:
    stage = recipe("{loss: kl_divergence, weight: 0.1}", plugins).stages[0]
    (spelled,) = stage.as_dict()["losses"]
    assert spelled == {"loss": "kl_divergence", "weight": 0.1, "teacher": None, "temperature": 2.0}
    assert TrainingConfig.model_validate({"steps": 1, "losses": [spelled]}).losses == (
        stage.technique.config.losses
    )
    assert [choice.name for choice in choices(stage.technique.config)] == ["kl_divergence"]


def test_teachers_of_losses_count_as_cards_that_are_learned_from() -> None:
    losses = [{"loss": "cosine", "teacher": name} for name in ("big.yaml", "input", "big.yaml")]
    config = FineTuningConfig.model_validate({"steps": 10, "losses": losses})
    technique = FineTuning(config)
    assert list(technique.all_cards()) == ["big.yaml"]
    trained, looked_at = technique.training_work(64, 16)
    alone = FineTuning(FineTuningConfig(steps=10)).training_work(64, 16)
    assert (trained, looked_at) == (alone[0], alone[1] + 2 * sum(alone))


@pytest.mark.parametrize("losses", [3, [3], [{"weight": 1}], [{"loss": 3}], "l1"])
def test_what_is_no_loss_is_refused_in_python_too(losses: Any) -> None:
    with pytest.raises(ValidationError):
        TrainingConfig.model_validate({"steps": 1, "losses": losses})


# ----- teachers --------------------------------------------------------------------------------


def outputs(model: nn.Module) -> Tensor:
    from sklearn.datasets import load_digits

    images = torch.tensor(load_digits().images[:200], dtype=torch.float32)[:, None] / 16
    with torch.inference_mode():
        found: Tensor = model(images)
    return found


def test_the_stages_input_teaches_what_it_answers_not_what_the_original_does(
    tmp_path: Path, plugins: Plugins
) -> None:
    card = digits_card(tmp_path)
    first = "{technique: fine_tuning, steps: 40, learning_rate: 5.0e-3, evaluations: 0}"
    results = {}
    for teacher in ("input", "null"):
        prune = f"""{{technique: magnitude_pruning, sparsity: 0.5, recovery: {{
            technique: distillation, response: regression, teacher: {teacher}, steps: 60,
            learning_rate: 2.0e-3, evaluations: 0}}}}"""
        results[teacher] = press(card, f"[{first}, {prune}]", tmp_path / teacher, plugins)
    tuned = press(card, f"[{first}]", tmp_path / "tuned", plugins)
    expected = {
        "input": outputs(load_artifact(tuned.artifact, plugins, Reader)[0].module),
        "null": outputs(trained(4, 32)),
    }
    for teacher, other in (("input", "null"), ("null", "input")):
        got = outputs(load_artifact(results[teacher].artifact, plugins, Reader)[0].module)
        near = float((got - expected[teacher]).square().mean())
        far = float((got - expected[other]).square().mean())
        assert near < far, teacher
        notes = results[teacher].report.stages[-1].notes["recovery"][0]
        assert notes["teacher"] == ("the stage's input" if teacher == "input" else "the original")


def test_fine_tuning_takes_losses_from_two_teachers_and_of_none(
    tmp_path: Path, plugins: Plugins
) -> None:
    stages = """
    - technique: layer_removal
      layers: 2
      recovery:
        technique: fine_tuning
        steps: 20
        learning_rate: 2.0e-3
        losses:
          - {loss: kl_divergence, teacher: input, weight: 0.5}
          - {loss: hidden_states, teacher: input}
          - {loss: mean_squared_error, weight: 0.1}
          - {loss: l1, weight: 1.0e-5}"""
    card = digits_card(tmp_path)
    result = press(card, stages, tmp_path / "run", plugins)
    alone = press(card, "[{technique: layer_removal, layers: 2}]", tmp_path / "alone", plugins)
    after, before = result.report.stages[-1], alone.report.stages[-1]
    assert after.fidelity.cosine > before.fidelity.cosine + 0.03
    assert after.recovery is not None
    assert after.recovery["losses"][0]["teacher"] == "input"


def test_layers_removed_before_the_teacher_was_are_not_looked_for() -> None:
    student, teacher = Model(Reader(6, 8)), Reader(4, 8)
    student.keep("layers", [0, 1, 3, 5])  # by an earlier stage: the teacher lacks them too
    student.keep("layers", [1, 2])
    assert paired_layers(student, teacher, same=True) == [
        ("layers.0", "layers.1"),
        ("layers.1", "layers.3"),
    ]


class Misshapen(Loss[NoOptions]):
    """Returns a number a sample."""

    name = "misshapen"

    def value(self, seen: Seen, learned: nn.Module | None) -> Tensor:
        return seen.output.sum(1)


def test_a_loss_that_returns_many_numbers_is_told() -> None:
    task, model = Classification(), Model(perceptron())
    batch = task.samples("training").batch(range(4))
    term = make_term(model, task, [(Misshapen(NoOptions()), 1.0)], batch.inputs, task.call, 0)
    with pytest.raises(StageError, match=r"'misshapen' returned \[4\] numbers instead of one"):
        term(batch, task.forward(model.module, batch.inputs))


class Labels(Loss[NoOptions]):
    """Counts on the targets, as a task's own loss does."""

    name = "labels"

    def value(self, seen: Seen, learned: nn.Module | None) -> Tensor:
        return nn.functional.cross_entropy(seen.output, seen.batch.targets)


def test_a_loss_sees_the_targets(tmp_path: Path) -> None:
    sys.modules[__name__] = sys.modules.get(__name__, SimpleNamespace(Labels=Labels))  # type: ignore[assignment]
    announced = hookimpl(lambda: {"labels": f"{__name__}:Labels"}, specname="zoopress_losses")
    plugins = load_plugins(extra={"mine": SimpleNamespace(zoopress_losses=announced)})
    by_loss = train(tmp_path / "loss", plugins, 0.0, losses=["labels"])
    by_task = train(tmp_path / "task", plugins)
    for one, other in zip(by_loss.weights(), by_task.weights(), strict=True):
        torch.testing.assert_close(one.parameter, other.parameter)


def test_editors_take_names_and_mappings_for_choices_and_nothing_else() -> None:
    import jsonschema

    schema = TrainingConfig.model_json_schema()
    jsonschema.validate({"steps": 1, "losses": ["l1", {"loss": "l1", "include": ["a"]}]}, schema)
    for wrong in (3, {"weight": 1}):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate({"steps": 1, "losses": [wrong]}, schema)
