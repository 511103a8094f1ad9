"""Sensitivities tell what errors in weights do to outputs, whatever holds the weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, strategies as st
from torch import Tensor, nn

from synthetic_task import CLASSES, FEATURES, Classification
from zoopress.cards import Card
from zoopress.errors import StageError
from zoopress.models.weights import WEIGHT_KINDS, find_weights
from zoopress.plugins import load_plugins
from zoopress.statistics.probes import probe, sliced
from zoopress.tasks import Task
from zoopress.techniques import Context
from zoopress.testing import context_for, tiny_card
from zoopress_plugins.quantization.rate_distortion import sensitivity as module_under_test
from zoopress_plugins.quantization.rate_distortion.probes import made_up
from zoopress_plugins.quantization.rate_distortion.sensitivity import _Sums, measure_sensitivities

ALL_KINDS = (*WEIGHT_KINDS, "vector")


class Answers(Classification):
    """A task without labels, whose outputs are compared by their cosine."""

    def similarity(self, outputs: Any) -> None:
        return None


def context_of(task: Task, tmp_path: Path) -> Context:
    return Context(
        seed=0,
        device=torch.device("cpu"),
        batches=lambda: task.batches("calibration"),
        call=task.call,
        progress=lambda item, fraction=None: None,
        checkpoint=tmp_path,
        task=task,
    )


def inputs_of(task: Task) -> Tensor:
    return torch.cat([batch["x"] for batch in task.batches("calibration")])


def test_of_one_layer_it_is_what_follows_on_paper(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With y = W·x, u = y / ‖y‖: G = p·xᵀ, where p has the covariance (I − u·uᵀ) / ‖y‖²."""
    monkeypatch.setattr(module_under_test, "_SMALL_PASSES", 2000)
    monkeypatch.setattr(module_under_test, "_MOST_PROBES", 2000)
    monkeypatch.setattr(module_under_test, "_EVEN_ROWS", 0.0)
    monkeypatch.setattr(module_under_test, "_CAUTION", 0.0)
    torch.manual_seed(0)
    layer, task = nn.Linear(FEATURES, 4, bias=False), Answers()
    weights = list(find_weights(layer))
    found = measure_sensitivities(layer, weights, context_of(task, tmp_path), data="calibration")
    x = inputs_of(task)
    y = layer(x).detach()
    length = y.norm(dim=1)
    variances = (1 - (y / length[:, None]).square()) / length.square()[:, None]  # [samples, out]
    per_sample = variances.sum(1)
    columns = (x.T * per_sample) @ x
    rows = (variances * x.square().sum(1, keepdim=True)).mean(0)
    sensitivity = found["weight"]
    assert sensitivity.columns is not None
    assert sensitivity.rows is not None
    assert torch.allclose(sensitivity.rows, rows, rtol=0.1)
    expected = columns / columns.trace()
    assert float((sensitivity.columns - expected).norm() / expected.norm()) < 0.1


@given(
    entries=st.lists(st.floats(0, 1e6), min_size=1, max_size=20),
    slices=st.integers(1, 9),
    least=st.sampled_from([0.0, 0.03, 1.0]),
    disagreement=st.floats(0, 1),
    seed=st.integers(0, 99),
)
def test_estimates_lie_between_sums_and_their_mean(
    entries: list[float], slices: int, least: float, disagreement: float, seed: int
) -> None:
    torch.manual_seed(seed)
    sums, total = _Sums(), torch.zeros(len(entries), dtype=torch.float64)
    for _ in range(slices):
        for _ in range(2):
            values = torch.tensor(entries) * (1 + disagreement * (2 * torch.rand(len(entries)) - 1))
            sums.add(values)
            total += values
        sums.end_slice()
    found = sums.estimate(least)
    if bool((total > 0).any()):  # what no sample reached is taken to be like the others
        total = torch.where(total > 0, total, total[total > 0].mean())
    mean = total.mean()
    allowed = 1e-5 * (1 + float(mean))
    assert abs(float(found.mean() - mean)) <= allowed
    assert bool(((found - mean).abs() <= (1 - least) * (total - mean).abs() + allowed).all())
    if disagreement == 0 and least == 0:
        assert bool(((found - total).abs() <= 1e-3 * (total + mean) + allowed).all())


def test_what_differs_by_chance_alone_becomes_alike_and_what_truly_differs_does_not() -> None:
    generator = torch.Generator().manual_seed(0)
    for means, alike in ((torch.ones(1000), True), (torch.arange(1, 1001) / 500, False)):
        sums = _Sums()
        for _ in range(400):
            sums.add(means * torch.randn(1000, generator=generator).square())
            sums.end_slice()
        errors = sums.estimate() / 400 - means
        assert (float(errors.square().mean().sqrt()) < 0.01) is alike
        assert float(errors.square().mean().sqrt()) < 0.08


def test_what_few_samples_ask_for_matters_no_more_than_they_can_tell(tmp_path: Path) -> None:
    """Eight samples move a quarter of 60 rows: those that none of them moves matter, too."""
    task = Answers()
    torch.manual_seed(0)
    layer = nn.Sequential(nn.Linear(FEATURES, 60), nn.Threshold(1.2, 0.0))
    (weight,) = [weight for weight in find_weights(layer) if weight.kind == "linear"]
    rows = measure_sensitivities(layer, [weight], context_of(task, tmp_path), data="calibration")[
        weight.name
    ].rows
    assert rows is not None
    moved = layer(inputs_of(task)).ne(0).any(0)
    assert 5 < int(moved.sum()) < 30
    assert float(rows.min()) > 0.5 * float(rows.mean())


@pytest.mark.parametrize("name", ["cnn", "lstm", "transformer"])
def test_it_foretells_what_small_errors_do(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Twice 1 − cosine, of weights of every kind, each alone."""
    card: Card = tiny_card(name, tmp_path / "model")
    context = context_for(card, tmp_path / "checkpoint", load_plugins())
    task, teacher = context.task, context.teacher
    assert task is not None
    assert teacher is not None
    monkeypatch.setattr(module_under_test, "_SMALL_PASSES", 128)
    monkeypatch.setattr(task, "similarity", lambda outputs: None)
    model = teacher(None)
    weights = list(find_weights(model, ALL_KINDS))
    found = measure_sensitivities(model, weights, context, data="calibration")
    batches = task.batches("calibration")

    def outputs() -> Tensor:
        return torch.cat([task.call(model, batch).double().flatten(1) for batch in batches])

    before, generator = outputs(), torch.Generator().manual_seed(1)
    ratios = []
    for weight in weights:
        own = weight.parameter.data
        size = 1e-3 * float(own.abs().mean() or 1.0)
        costs = []
        for _ in range(12):
            weight.parameter.data = own + size * torch.randn(own.shape, generator=generator)
            costs.append(float((2 - 2 * torch.cosine_similarity(before, outputs())).mean()))
        weight.parameter.data = own
        rows = found[weight.name].rows
        assert rows is not None
        expected = size**2 * float(rows.sum())  # columns have a trace of 1
        if sum(costs) / 12 > 1e-12:
            ratios.append(sum(costs) / 12 / expected)
    assert len(ratios) >= len(weights) - 2
    assert sorted(ratios)[len(ratios) // 2] == pytest.approx(1, abs=0.25)
    assert 0.3 < min(ratios) <= max(ratios) < 3


def test_a_model_is_left_as_it_was(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(FEATURES, 8), nn.Dropout(), nn.Linear(8, 3)).train()
    model[0].weight.requires_grad_(False)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    weights = list(find_weights(model, ALL_KINDS))
    measure_sensitivities(model, weights, context_of(Answers(), tmp_path), data="calibration")
    assert model.training
    assert model[1].training
    assert [p.requires_grad for p in model.parameters()] == [False, True, True, True]
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


class Tokens(nn.Module):
    """Means of embeddings, and scores by the same, tied embeddings."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(20, 5)
        self.mix = nn.Linear(5, 5)
        self.head = nn.Linear(5, 20, bias=False)
        self.head.weight = self.embedding.weight
        self.never = nn.Linear(5, 5, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.head(torch.tanh(self.mix(self.embedding(x).mean(1))))
        return result


def tokens_below(top: int) -> Callable[[int, torch.Generator], Tensor]:
    return lambda n, generator: torch.randint(top, (n, 4), generator=generator)


def test_tied_and_unused_weights_have_one_too(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Tokens()
    task = Answers(tokens_below(10), target=None)
    weights = list(find_weights(model, ALL_KINDS))
    found = measure_sensitivities(model, weights, context_of(task, tmp_path), data="calibration")
    assert set(found) == {"embedding.weight", "mix.weight", "mix.bias", "never.weight"}
    unused, used = found["never.weight"].rows, found["mix.weight"].rows
    assert unused is not None
    assert used is not None
    assert found["never.weight"].columns is None
    # Nothing is known of it: it matters about as much as the others, relative to its size.
    assert 0.1 * float(used.sum()) < float(unused.sum() * 5) < 10 * float(used.sum())


def test_tokens_that_no_sample_has_matter_as_much_as_rare_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module_under_test, "_CAUTION", 0.0)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(20, 5), nn.Flatten(), nn.Linear(20, 3))
    task = Answers(tokens_below(10), target=None)
    weights = list(find_weights(model))
    found = measure_sensitivities(model, weights, context_of(task, tmp_path), data="calibration")
    rows = found["0.weight"].rows
    assert rows is not None
    assert torch.allclose(rows[10:], rows[10], rtol=1e-3)
    assert float(rows[:10].min()) <= float(rows[10]) <= float(rows[:10].median()) * 1.05


def test_synthetic_inputs_tell_another_story(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(20, 5), nn.Flatten(), nn.Linear(20, 3))
    context = context_of(Answers(tokens_below(10), target=None), tmp_path)
    weights = list(find_weights(model))
    real, noise, again = [
        measure_sensitivities(model, weights, context, data=data)
        for data in ("calibration", "synthetic", "synthetic")
    ]
    for weight in weights:
        rows = noise[weight.name].rows
        assert rows is not None
        assert noise[weight.name].columns is None
        assert torch.equal(rows, rows[:1].expand(len(rows)))
        assert torch.equal(rows, again[weight.name].rows)
        assert not torch.allclose(rows.mean(), real[weight.name].rows.mean(), rtol=1e-3)


class Writer(Answers):
    """A task whose models make up the inputs that it has."""

    def imagined(self, module: nn.Module, samples: int, generator: torch.Generator) -> Any:
        assert samples == len(self.samples("calibration"))
        return self.batches("calibration")


def test_what_a_model_writes_tells_as_much_as_data(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(20, 5), nn.Flatten(), nn.Linear(20, 3))
    context = context_of(Writer(tokens_below(10), target=None), tmp_path)
    weights = list(find_weights(model))
    real = measure_sensitivities(model, weights, context, data="calibration")
    written = measure_sensitivities(model, weights, context, data="synthetic")
    for weight in weights:
        columns = written[weight.name].columns
        assert columns is not None
        assert torch.equal(columns, real[weight.name].columns)
        assert torch.equal(written[weight.name].rows, real[weight.name].rows)


def test_made_up_inputs_have_the_shapes_and_ranges_of_real_ones() -> None:
    generator = torch.Generator().manual_seed(0)
    real = {
        "ids": torch.tensor([[3, 7, 2, 0]]).expand(64, 4),
        "mask": torch.tensor([[1, 1, 1, 0]]).expand(64, 4),
        "pixels": 5 + 2 * torch.randn(64, 3, 8, generator=generator),
        "flags": torch.tensor([[True, False]]).expand(64, 2),
        "none": torch.zeros(64, 0, dtype=torch.int64),
    }
    made = made_up(real, generator)
    assert {name: (t.shape, t.dtype) for name, t in made.items()} == {
        name: (t.shape, t.dtype) for name, t in real.items()
    }
    assert torch.equal(made["mask"], real["mask"])
    assert torch.equal(made["flags"], real["flags"])
    assert sorted(made["ids"].unique().tolist()) == list(range(8))
    assert float(made["pixels"].mean()) == pytest.approx(5, abs=0.3)
    assert float(made["pixels"].std()) == pytest.approx(2, abs=0.3)
    assert not torch.equal(made["pixels"], real["pixels"])


def test_slices_hold_all_samples_once() -> None:
    batches = [{"x": torch.arange(10)}, {"x": torch.arange(10, 13)}]
    found = [batch["x"].tolist() for batch in sliced(batches, 4)]
    assert found == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9], [10, 11, 12]]


def test_a_probe_of_labels_has_the_softmax_covariance() -> None:
    """diag(p) − p·pᵀ, with p the softmax of the scores and a tenth of labels drawn evenly."""
    scores = torch.tensor([[2.0, 0.0, -1.0]]).expand(40_000, 3).clone().requires_grad_()
    probe(Classification(), scores, torch.Generator().manual_seed(0)).backward()
    assert scores.grad is not None
    share = 0.9 * scores[0].detach().softmax(0) + 0.1 / 3
    covariance = scores.grad.T @ scores.grad / len(scores)
    assert torch.allclose(covariance, share.diag() - share[:, None] * share, atol=0.01)
    assert float(scores.grad.mean(0).abs().max()) < 0.01


def test_what_scales_an_output_changes_no_cosine() -> None:
    outputs = torch.randn(6, 2, 5, generator=torch.Generator().manual_seed(0)).requires_grad_()
    probe(Answers(), outputs, torch.Generator().manual_seed(1)).backward()
    assert outputs.grad is not None
    along = (outputs.grad * outputs.detach()).sum((1, 2))
    assert float(along.abs().max()) < 1e-5
    assert float(outputs.grad.abs().min()) > 0


def test_an_output_of_zeros_has_a_finite_probe() -> None:
    outputs = torch.zeros(3, 4, requires_grad=True)
    probe(Answers(), outputs, torch.Generator()).backward()
    assert outputs.grad is not None
    assert bool(outputs.grad.isfinite().all())


class Labels(nn.Module):
    """Puts out what has no gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(FEATURES, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x).argmax(1, keepdim=True).float()


def test_outputs_without_gradients_are_an_error_with_a_remedy(tmp_path: Path) -> None:
    model = Labels()
    with pytest.raises(StageError, match="Set 'sensitivity' to 'none'"):
        measure_sensitivities(
            model, list(find_weights(model)), context_of(Answers(), tmp_path), data="calibration"
        )


def test_no_inputs_are_an_error_with_a_remedy(tmp_path: Path) -> None:
    model = nn.Linear(FEATURES, CLASSES)
    task = Answers(sizes={"calibration": 0})
    with pytest.raises(StageError, match="calibration_samples"):
        measure_sensitivities(
            model, list(find_weights(model)), context_of(task, tmp_path), data="synthetic"
        )
