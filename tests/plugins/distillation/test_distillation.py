"""Distillation: the losses are what their papers say, and students learn from any teacher."""

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, strategies as st
from pydantic import ValidationError
from torch import Tensor, nn

from digits_reader import Reader, digits_card, press, trained
from zoopress.artifacts.artifact import load_artifact
from zoopress.cards import Card
from zoopress.choice import NoOptions
from zoopress.errors import StageError
from zoopress.models.model import Model
from zoopress.plugins import Plugins
from zoopress.tasks import Batch, Samples, Split, Task
from zoopress.techniques import Context
from zoopress.testing.models import Encoder
from zoopress.training.loss import Loss, rows
from zoopress.training.loss_term import LossTerm, make_term
from zoopress_plugins.distillation.distillation import Distillation, DistillationConfig
from zoopress_plugins.distillation.losses.cosine import cosine_loss
from zoopress_plugins.distillation.losses.hidden_states import (
    HiddenStates,
    HiddenStatesConfig,
    hint_loss,
)
from zoopress_plugins.distillation.losses.kl_divergence import (
    KlDivergence,
    KlDivergenceConfig,
    response_loss,
)
from zoopress_plugins.distillation.losses.mean_squared_error import (
    MeanSquaredError,
    regression_loss,
)
from zoopress_plugins.distillation.losses.relational import relational_loss
from zoopress_plugins.distillation.paired_layers import paired_layers

pytestmark = pytest.mark.usefixtures("brief_evaluation")

# ----- losses ----------------------------------------------------------------------------------


def test_the_response_loss_is_the_divergence_of_softened_softmaxes_times_t_squared() -> None:
    # p = (3/4, 1/4) and q = (1/2, 1/2) at temperature 2.
    student, teacher = torch.zeros(1, 2), torch.tensor([[2 * math.log(3), 0.0]])
    divergence = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    assert float(response_loss(student, teacher, 2.0)) == pytest.approx(4 * divergence)
    twice = response_loss(student.repeat(2, 1), torch.cat([teacher, student]), 2.0)
    assert float(twice) == pytest.approx(2 * divergence)


def test_at_a_high_temperature_the_response_loss_matches_centered_scores() -> None:
    # Hinton et al. 2015, eq. 4: the gradient tends to (z − v) / N, whatever the temperature.
    generator = torch.Generator().manual_seed(0)
    student = torch.randn(1, 5, generator=generator, dtype=torch.float64, requires_grad=True)
    teacher = torch.randn(1, 5, generator=generator, dtype=torch.float64)
    response_loss(student, teacher, 1e4).backward()
    centered = (student - student.mean()) - (teacher - teacher.mean())
    torch.testing.assert_close(student.grad, centered.detach() / 5, rtol=1e-3, atol=1e-4)


def test_a_class_that_is_ruled_out_adds_nothing() -> None:
    student = torch.tensor([[0.0, 1.0, -torch.inf]], requires_grad=True)
    teacher = torch.tensor([[1.0, 0.0, -torch.inf]])
    loss = response_loss(student, teacher, 1.0)
    assert loss.item() == pytest.approx(response_loss(student[:, :2], teacher[:, :2], 1.0).item())
    loss.backward()
    assert student.grad is not None
    assert student.grad.isfinite().all()


def test_embedding_losses_of_hand_computed_cases() -> None:
    right, up = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 2.0]])
    assert float(cosine_loss(right, up)) == pytest.approx(1)
    assert float(cosine_loss(right, right + up / 2)) == pytest.approx(1 - 1 / math.sqrt(2))
    apart, alike = torch.eye(2), torch.tensor([[1.0, 0.0, 0.0], [3.0, 0.0, 0.0]])
    assert float(relational_loss(apart, alike)) == pytest.approx(1)  # similarity 0 against 1
    assert float(relational_loss(right, up)) == 0  # a single sample has no relations
    assert float(regression_loss(right, up)) == pytest.approx((1 + 4) / 2)


def test_a_hint_is_relative_to_the_teachers_hidden_state() -> None:
    teacher = torch.tensor([[3.0, 4.0], [0.0, 0.1]])
    assert float(hint_loss(torch.zeros(2, 2), teacher)) == pytest.approx(1)
    assert float(hint_loss(teacher + torch.tensor([[0.0, 5.0], [0.0, 0.0]]), teacher)) == (
        pytest.approx(0.5)
    )
    assert float(hint_loss(torch.zeros(1, 2), torch.zeros(1, 2))) == 0


@given(seed=st.integers(0, 2**16), scale=st.floats(0.1, 10))
def test_relations_do_not_change_when_embeddings_turn_or_grow(seed: int, scale: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    embeddings = torch.randn(6, 4, generator=generator, dtype=torch.float64)
    turn, _ = torch.linalg.qr(torch.randn(4, 4, generator=generator, dtype=torch.float64))
    assert float(relational_loss(scale * embeddings @ turn, embeddings)) == pytest.approx(
        0, abs=1e-9
    )


@pytest.mark.parametrize(
    "loss",
    [
        lambda a, b: response_loss(a, b, 3.0),
        regression_loss,
        cosine_loss,
        relational_loss,
        hint_loss,
    ],
)
def test_losses_are_zero_at_the_teacher_and_their_gradients_are_right(loss: Any) -> None:
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(2, 4, 3, generator=generator, dtype=torch.float64)
    assert float(loss(b, b)) == pytest.approx(0, abs=1e-12)
    assert float(loss(a, b)) > 0
    assert torch.autograd.gradcheck(loss, (a.requires_grad_(), b))


def test_rows_have_features_last_and_no_padding() -> None:
    tokens = torch.arange(24.0).view(2, 3, 4)
    real = torch.tensor([[True, True, False], [True, False, False]])
    assert rows(tokens).shape == (6, 4)
    assert torch.equal(rows(tokens, real), tokens[real])
    assert torch.equal(rows(tokens.view(2, 4, 3, 1)), tokens.view(2, 4, 3).mT.reshape(6, 4))
    assert torch.equal(rows(tokens[0], real), tokens[0])
    assert rows(tokens[0, 0]).shape == (4, 1)


# ----- the term --------------------------------------------------------------------------------


class Given(Task):
    """A task on given inputs, without labels, that takes outputs for scores of classes."""

    name = "given"

    def __init__(self, inputs: Any) -> None:
        data = {"random": {"0": {"shape": [1]}}}
        super().__init__(
            Card.model_validate({"name": "x", "source": "path:x", "data": data}), Path()
        )
        self.inputs = inputs

    def make_samples(self, split: Split) -> Samples:
        raise NotImplementedError

    def forward(self, module: nn.Module, inputs: Any) -> Tensor:
        output: Tensor = module(*inputs.values()) if isinstance(inputs, dict) else module(inputs)
        return output

    def fingerprint(self) -> str:
        return ""

    def context(self, teacher: nn.Module) -> Context:
        def call(module: nn.Module, batch: Any) -> Tensor:
            try:
                return self.call(module, batch)
            except RuntimeError as error:
                raise StageError(str(error)) from error

        return Context(
            **{"seed": 0, "device": torch.device("cpu"), "batches": lambda: [self.inputs]},
            **{"call": call, "progress": lambda *_: None, "checkpoint": Path()},
            **{"task": self, "teacher": lambda card: teacher},
        )


class Tokens(nn.Module):
    """Scores [samples, tokens, 5] of hidden states that do not look at each other."""

    def __init__(self, width: int = 6, seed: int = 0) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.embedding = nn.Embedding(9, width)
            self.layers = nn.ModuleList(
                nn.Sequential(nn.Linear(width, width), nn.Tanh()) for _ in range(3)
            )
            self.head = nn.Linear(width, 5)

    def forward(self, ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        hidden = self.embedding(ids)
        for layer in self.layers:
            hidden = hidden + layer(hidden)
        result: Tensor = self.head(hidden)
        return result


def term_of(
    task: Task,
    student: nn.Module,
    teacher: nn.Module,
    inputs: Any,
    *losses: tuple[Loss[Any], float],
) -> LossTerm:
    return make_term(
        *(Model(student), task, losses, inputs, task.call, 0, teacher, "the teacher", False)
    )


def hints(*pairs: tuple[str, str]) -> HiddenStates:
    return HiddenStates(HiddenStatesConfig(layers=pairs))


def loss_of(term: LossTerm, task: Task, student: nn.Module, inputs: Any) -> Tensor:
    with term.watching(student):
        return term(Batch(inputs), task.forward(student, inputs))


def test_padded_tokens_do_not_count() -> None:
    ids = torch.tensor([[1, 2, 3], [4, 5, 0]])
    mask = torch.tensor([[1, 1, 1], [1, 1, 0]])
    student, teacher = Tokens(seed=1), Tokens(seed=2)
    kl = KlDivergence(KlDivergenceConfig(temperature=1.0))
    losses = []
    for padding in (0, 8):
        inputs = {"ids": torch.where(mask.bool(), ids, padding), "attention_mask": mask}
        states = hints(("layers.1", "layers.2"))
        term = term_of(Given(inputs), student, teacher, inputs, (kl, 1.0), (states, 1.0))
        losses.append(loss_of(term, Given(inputs), student, inputs).item())
    assert losses[0] == pytest.approx(losses[1])


def test_the_term_adds_up_its_parts_and_leaves_the_teacher_alone() -> None:
    ids = torch.arange(8).view(2, 4)
    student, teacher = Tokens(seed=1), Tokens(seed=2).eval()
    before = copy.deepcopy(teacher.state_dict())
    parts = (MeanSquaredError(NoOptions()), 0.5), (hints(("layers.0", "layers.1")), 3.0)
    term = term_of(Given(ids), student, teacher, ids, *parts)
    assert list(term.parameters()) == []
    loss = loss_of(term, Given(ids), student, ids)
    loss.backward()
    states = {}
    for name, module, layer in (("student", student, 0), ("teacher", teacher, 1)):
        hidden = module.embedding(ids)
        for position in range(layer):
            hidden = hidden + module.layers[position](hidden)
        states[name] = module.layers[layer](hidden).reshape(-1, 6)
    expected = 0.5 * (student(ids) - teacher(ids)).square().mean()
    expected += 3 * hint_loss(states["student"], states["teacher"])
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    assert all(parameter.grad is None for parameter in teacher.parameters())
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())
    assert not any(module._forward_hooks for module in (*student.modules(), *teacher.modules()))


def test_hidden_states_of_other_widths_are_compared_through_a_learned_adapter() -> None:
    ids = torch.arange(8).view(2, 4)
    student, teacher = Tokens(width=4, seed=1), Tokens(width=6, seed=2)
    term = term_of(Given(ids), student, teacher, ids, (hints(("layers.2", "layers.2")), 1.0))
    optimizer = torch.optim.Adam(term.parameters(), 0.05)
    losses = []
    for _ in range(60):
        loss = loss_of(term, Given(ids), student, ids)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 4


# ----- which layers teach which ----------------------------------------------------------------


def readers(student: int, teacher: int) -> tuple[Model, nn.Module]:
    return Model(Reader(student, 8)), Reader(teacher, 8)


@pytest.mark.parametrize(
    ("kept", "teachers"),
    [
        ([0, 2, 4], [1, 3, 5]),
        ([0, 1, 5], [0, 4, 5]),
        ([2, 3], [2, 5]),
        ([0, 1, 2, 3, 4, 5], [0, 1, 2, 3, 4, 5]),
        ([3], [5]),
    ],
)
def test_a_layer_learns_from_the_one_before_its_next_layers_origin(
    kept: list[int], teachers: list[int]
) -> None:
    student, teacher = readers(6, 6)
    student.keep("layers", kept)
    expected = [(f"layers.{i}", f"layers.{other}") for i, other in enumerate(teachers)]
    assert paired_layers(student, teacher, same=True) == expected


def test_layers_that_went_in_two_stages_are_followed_back() -> None:
    student, teacher = readers(6, 6)
    student.keep("layers", [0, 1, 3, 5])
    student.keep("layers", [0, 2])
    assert paired_layers(student, teacher, True) == [
        ("layers.0", "layers.2"),
        ("layers.1", "layers.5"),
    ]


@pytest.mark.parametrize(
    ("student", "teacher", "expected"),
    [(2, 6, [(0, 2), (1, 5)]), (4, 2, [(1, 0), (3, 1)]), (3, 3, [(0, 0), (1, 1), (2, 2)])],
)
def test_another_teachers_layers_are_spread_evenly(
    student: int, teacher: int, expected: list[tuple[int, int]]
) -> None:
    pairs = paired_layers(*readers(student, teacher), same=False)
    assert pairs == [(f"layers.{one}", f"layers.{other}") for one, other in expected]


def test_stacks_of_other_names_are_paired_by_their_length() -> None:
    assert paired_layers(Model(Reader(2, 8)), Encoder(), same=False) == [
        ("layers.0", "encoder.layers.0"),
        ("layers.1", "encoder.layers.1"),
    ]
    assert paired_layers(Model(nn.Linear(2, 2)), Encoder(), same=False) == []


# ----- what kind of output ---------------------------------------------------------------------


class Embeddings(Given):
    def similarity(self, outputs: Any) -> Tensor:
        embeddings = torch.cat(list(outputs))
        return embeddings @ embeddings.T


class Numbers(Given):
    def similarity(self, outputs: Any) -> None:
        return None


@pytest.mark.parametrize(
    ("task", "response"), [(Given, "logits"), (Embeddings, "embedding"), (Numbers, "regression")]
)
def test_what_outputs_are_follows_from_how_the_task_takes_labels(
    task: type[Given], response: str
) -> None:
    given_task = task(torch.randn(4, 3))
    technique = Distillation(DistillationConfig(steps=1))
    assert technique._response(given_task.context(nn.Identity()), torch.randn(4, 3)) == response
    set_by_hand = Distillation(DistillationConfig(steps=1, response="regression"))
    found = set_by_hand._response(given_task.context(nn.Identity()), torch.randn(4, 3))
    assert found == "regression"


@pytest.mark.parametrize(
    ("teacher", "config", "reason"),
    [
        (nn.Linear(3, 7), {}, r"\[4, 5\], the teacher the original \[4, 7\]"),
        (nn.Linear(2, 5), {}, "the original cannot run on the student's inputs"),
        (nn.Unflatten(1, (1, 3)), {"response": "embedding"}, "Embeddings are"),
        (nn.Linear(3, 7), {"response": "embedding", "relational": 0}, "have no cosine"),
        (nn.Linear(3, 5), {"hints": True}, "no lists of equal layers"),
        (nn.Linear(3, 5), {"hints": {"layers": [["", "hed"]]}}, "teacher has no module 'hed'"),
        (nn.Linear(3, 5), {"hints": {"layers": [["x", ""]]}}, "student has no module 'x'"),
        (
            nn.Sequential(nn.Flatten(0), nn.Unflatten(0, (4, 3)), nn.Linear(3, 5)),
            {"hints": {"layers": [["", "0"]]}},
            "alike but for the features",
        ),
    ],
)
def test_a_teacher_that_does_not_fit_is_told_before_training(
    teacher: nn.Module, config: dict[str, Any], reason: str
) -> None:
    task = Given(torch.randn(4, 3))
    technique = Distillation(DistillationConfig(steps=1, **config))
    with pytest.raises(StageError, match=reason):
        technique.apply(Model(nn.Linear(3, 5)), task.context(teacher))


@pytest.mark.parametrize(
    "config",
    [
        {"steps": 1, "temperature": 0},
        {"steps": 1, "alpha": 1.5},
        {"steps": 1, "hints": {"weight": 0}},
        {"steps": 1, "hints": {"layers": [["a"]]}},
        {},
        {"steps": 1, "epochs": 1},
    ],
)
def test_configs_that_make_no_sense_are_refused(config: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        DistillationConfig(**config)


# ----- through a real run ----------------------------------------------------------------------


def test_a_taught_student_beats_the_layers_alone_and_needs_no_labels(
    tmp_path: Path, plugins: Plugins, monkeypatch: pytest.MonkeyPatch
) -> None:
    card = digits_card(tmp_path)
    cut = press(card, "[{technique: layer_removal, layers: 2}]", tmp_path / "cut", plugins)
    monkeypatch.setattr(
        "zoopress_zoo.tasks.image_classification.ImageClassification.loss",
        lambda *_: pytest.fail("a label was looked at"),
    )
    stages = """
    - technique: layer_removal
      layers: 2
      recovery: {technique: distillation, epochs: 3, learning_rate: 1.0e-3, hints: true}"""
    taught = press(card, stages, tmp_path / "taught", plugins)
    before, after = cut.report.stages[-1], taught.report.stages[-1]
    assert after.fidelity.cosine > before.fidelity.cosine + 0.05
    assert after.metrics["accuracy"] > before.metrics["accuracy"]
    assert before.weight_bytes == after.weight_bytes
    notes = after.notes["recovery"][0]
    assert notes["response"] == "logits"
    assert notes["hints"] == [["layers.0", "layers.1"], ["layers.1", "layers.3"]]


def test_labels_alone_teach_what_fine_tuning_does(tmp_path: Path, plugins: Plugins) -> None:
    card = digits_card(tmp_path)
    results = [
        press(card, f"[{{technique: {name}, steps: 5, evaluations: 0}}]", tmp_path / name, plugins)
        for name in ("fine_tuning", "distillation, alpha: 1")
    ]
    one, other = (load_artifact(r.artifact, plugins, Reader)[0].tensors() for r in results)
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        torch.testing.assert_close(tensor, other[name], msg=name)


def test_another_card_can_teach_and_is_named_in_the_report(
    tmp_path: Path, plugins: Plugins
) -> None:
    import yaml

    large = digits_card(tmp_path, layers=6, width=48)
    file = tmp_path / "large.yaml"
    file.write_text(yaml.safe_dump(large.as_dict()))
    technique = Distillation(DistillationConfig(steps=1, teacher=str(file)))
    assert technique.cards() == [str(file)] or technique.cards() == (str(file),)
    small = digits_card(tmp_path, layers=2)
    stages = f"""
    - technique: distillation
      teacher: {file}
      steps: 60
      learning_rate: 1.0e-3
      hints: true"""
    result = press(small, stages, tmp_path / "run", plugins)
    notes = result.report.stages[-1].notes
    assert notes["teacher"] == str(file)
    assert notes["hints"] == [["layers.0", "layers.2"], ["layers.1", "layers.5"]]
    losses = [loss for _, loss in notes["losses"]]
    assert losses[-1] < losses[0]
    # The small model is now closer to the large one than it was.
    student = load_artifact(result.artifact, plugins, Reader)[0].module
    x = torch.rand(64, 1, 8, 8)
    with torch.inference_mode():
        wanted = trained(6, 48)(x)
        gaps = [float((m(x) - wanted).square().mean()) for m in (student, trained(2, 32))]
    assert gaps[0] < gaps[1]
