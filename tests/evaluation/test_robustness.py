"""Attacks, radii and sensitivities, by hand on linear models."""

import copy
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Generator, Tensor, nn

from held_data import HeldTask, compare
from zoopress.evaluation import attacks, robustness
from zoopress.evaluation.robustness import choose_samples, measure
from zoopress.evaluation.subject import EPSILON, MAX_RADIUS
from zoopress.models.model import Model
from zoopress.models.packing import packed_weights
from zoopress.plugins import Plugins
from zoopress.tasks import Batch, Split
from zoopress.techniques import Context

ANYWHERE = (-float("inf"), float("inf"))


def linear(weight: list[list[float]]) -> nn.Linear:
    layer = nn.Linear(len(weight[0]), len(weight), bias=False)
    layer.weight.data = torch.tensor(weight)
    return layer.eval()


def samples(count: int, size: int, seed: int = 0) -> Tensor:
    return torch.randn(count, size, generator=Generator().manual_seed(seed))


def test_fgsm_moves_by_epsilon_along_the_slope_within_bounds() -> None:
    values = [torch.tensor([[0.0, 0.95, -0.5]])]
    weight = torch.tensor([2.0, 3.0, -1.0])
    moved = attacks.fgsm(lambda at: (at[0] @ weight).sum(), values, [0.1], [(-1.0, 1.0)])
    assert moved[0][0].tolist() == pytest.approx([0.1, 1.0, -0.6])


def test_pgd_reaches_the_best_corner_of_the_box_and_never_leaves_it() -> None:
    values = [torch.zeros(3, 4)]
    weight = torch.tensor([1.0, -2.0, 3.0, -4.0])
    moved = attacks.pgd(
        lambda at: (at[0] @ weight).sum(), values, [0.5], [ANYWHERE], Generator(), steps=10
    )
    assert torch.allclose(moved[0], 0.5 * weight.sign().expand(3, 4))


def test_pgd_finds_what_one_step_misses() -> None:
    # From 0 the slope leads to the left, where it is flat; the peak is to the right.
    def loss(at: Any) -> Tensor:
        x = at[0]
        return (torch.where(x < 0, -0.1 * x, 0.0) + torch.where(x > 0.1, 5 * (x - 0.1), 0.0)).sum()

    values = [torch.full((64, 1), -1e-3)]
    once = attacks.fgsm(loss, values, [1.0], [ANYWHERE])
    often = attacks.pgd(loss, values, [1.0], [ANYWHERE], Generator().manual_seed(0))
    assert float(loss(once)) < float(loss(often))


def test_radii_are_the_smallest_distances_that_change_a_sample() -> None:
    values, away = [torch.tensor([[0.0], [0.7], [-9.0]])], [torch.ones(3, 1)]
    found = attacks.radii(lambda at: at[0].squeeze(1) > 1.0, values, away, bound=2.0)
    assert found.tolist() == pytest.approx([1.0, 0.3, 2.0], rel=1e-3)
    # Changed between 1/4 and 3/8, and again from 1: the first is what counts.
    island = attacks.radii(
        lambda at: ((at[0] >= 0.25) & (at[0] < 0.375)).squeeze(1) | (at[0] >= 1).squeeze(1),
        [torch.zeros(1, 1)],
        [torch.ones(1, 1)],
        bound=2.0,
    )
    assert float(island) == pytest.approx(0.25, rel=1e-2)


def test_the_largest_sensitivity_is_the_largest_singular_value() -> None:
    weight = torch.diag(torch.tensor([5.0, 1.0, 0.5]))
    x = torch.tensor([[1.0, 2.0, 2.0], [0.0, 3.0, 4.0]])

    def function(at: Any) -> Tensor:
        return at[0] @ weight

    found = attacks.largest_sensitivity(function, [x], Generator().manual_seed(0))
    expected = 5 * x.norm(dim=1) / (x @ weight).norm(dim=1)
    assert found.tolist() == pytest.approx(expected.tolist(), rel=1e-3)


def test_random_changes_pass_through_the_identity_and_scaling_unchanged() -> None:
    found = attacks.random_sensitivity(lambda at: -7 * at[0], [samples(5, 9)], Generator())
    assert found.tolist() == pytest.approx([1.0] * 5, rel=1e-4)


def test_a_linear_classifier_by_hand(plugins: Plugins) -> None:
    model = linear([[1.0, -2.0, 0.5], [0.0, 1.0, 1.0]])
    x = samples(60, 3)
    task = HeldTask(x, model(x).argmax(1), batch_size=7)
    found = measure(compare(task, model, copy.deepcopy(model), plugins), lambda *_: None)
    lead = model.weight[0] - model.weight[1]
    # The distance |w·x| ÷ ‖w‖₁ in L∞, as a share of the inputs' range.
    distances = (x @ lead).abs() / lead.abs().sum() / float(x.max() - x.min())
    both = {"original", "compressed"}
    assert found["radius"].keys() == both
    for which in both:
        assert found["clean"][which] == 1
        expected = float(distances.detach().clamp(max=MAX_RADIUS).mean())
        assert found["radius"][which] == pytest.approx(expected, rel=1e-3)
    # Of what is close to the boundary, clipping to the inputs' range spares some.
    share = float((distances > EPSILON).double().mean())
    assert share <= found["fgsm"]["original"] <= share + 0.04
    assert found["pgd"]["original"] == found["fgsm"]["original"]
    assert found["samples"] == 60
    assert found["not_measured"] == {}
    json.dumps(found, allow_nan=False)


def test_each_model_is_attacked_by_its_own_slopes(plugins: Plugins) -> None:
    x = torch.cat([samples(40, 2) + torch.tensor([1.0, 0.0]), samples(40, 2) - 1.0])
    target = torch.tensor([0] * 40 + [1] * 40)
    fine, blind = linear([[1.0, 0.0], [-1.0, 0.0]]), linear([[0.0, 1.0], [0.0, -1.0]])
    found = measure(compare(HeldTask(x, target), fine, blind, plugins), lambda *_: None)
    for which, axis in (("original", 0), ("compressed", 1)):
        values = x[:, axis] * (1 - 2 * target)
        moved = values - EPSILON * float(x.max() - x.min())
        right = float((moved > 0).float().mean())
        assert found["fgsm"][which] == pytest.approx(right, abs=0.03)


def test_without_labels_the_original_gives_them(plugins: Plugins) -> None:
    model, other = linear([[1.0, 0.0], [0.0, 1.0]]), linear([[0.0, 1.0], [1.0, 0.0]])
    found = measure(compare(HeldTask(samples(20, 2)), model, other, plugins), lambda *_: None)
    assert found["score"] == "label_loyalty"
    assert found["clean"] == {"original": 1.0, "compressed": 0.0}


def test_outputs_without_labels_are_judged_by_their_direction(plugins: Plugins) -> None:
    class Embeddings(HeldTask):
        def similarity(self, outputs: Sequence[Tensor]) -> None:
            return None

    model, task = linear([[1.0, 2.0], [0.5, -1.0]]), Embeddings(samples(20, 2))
    found = measure(compare(task, model, copy.deepcopy(model), plugins), lambda *_: None)
    assert found["score"] == "cosine"
    assert set(found["not_measured"]) == {"fgsm", "radius"}
    assert found["pgd"]["original"] < found["clean"]["original"] == 1


def test_the_worst_corruption_is_the_worst_of_those_listed(plugins: Plugins) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 5)).eval()
    x = torch.rand(24, 1, 8, 8, generator=Generator().manual_seed(0))
    task = HeldTask(x, model(x).argmax(1))
    found = measure(compare(task, model, copy.deepcopy(model), plugins), lambda *_: None)
    scores = [row["original"] for row in found["corruptions"]]
    assert len(scores) == 7 * 5
    assert found["worst_corruption"]["original"] == min(scores) < 1
    assert found["mean_corruption"]["original"] == pytest.approx(sum(scores) / len(scores))
    # Both meet the same noise.
    assert all(row["original"] == row["compressed"] for row in found["corruptions"])


class Tokens(nn.Module):
    """Ids [n, length] to class scores, by the mean of embeddings."""

    def __init__(self, vocabulary: int = 50, width: int = 64) -> None:
        super().__init__()
        self.positions = nn.Embedding(9, width)
        self.table = nn.Embedding(vocabulary, width)
        self.head = nn.Linear(width, 3)

    def forward(self, ids: Tensor) -> Tensor:
        places = self.positions(torch.arange(ids.shape[1]).expand_as(ids))
        result: Tensor = self.head((self.table(ids) + places).mean(1))
        return result


@pytest.mark.parametrize("bits", [None, 8, 4])
def test_token_models_are_attacked_behind_the_embedding_packed_or_not(
    bits: int | None, plugins: Plugins
) -> None:
    torch.manual_seed(0)
    original = Tokens().eval()
    model = Model(copy.deepcopy(original), plugins.layers)
    if bits is not None:
        kind = plugins.technique("weight_quantization")
        config = kind.config_type(bits=bits, group_size=None, kinds=("linear", "embedding"))
        context = Context(
            0, torch.device("cpu"), lambda: [], lambda m, b: m(b), lambda *_: None, Path()
        )
        kind(config).apply(model, context)
    ids = torch.randint(0, 50, (32, 9), generator=Generator().manual_seed(0))
    task = HeldTask(ids, original(ids).argmax(1))
    found = measure(compare(task, original, model, plugins), lambda *_: None)
    assert found["settings"]["attacked"] == "token embeddings"
    assert found["not_measured"] == {}
    assert {row["name"] for row in found["corruptions"]} == {"token_noise"}
    for which in ("original", "compressed"):
        assert found["pgd"][which] < found["clean"][which]
        assert 0 < found["radius"][which] < MAX_RADIUS
    assert len(packed_weights(model.module)) == (0 if bits is None else 3)


def test_a_model_without_gradients_is_corrupted_all_the_same(plugins: Plugins) -> None:
    class Rounds(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x).detach()

    torch.manual_seed(0)
    model = Rounds(4, 3).eval()
    task = HeldTask(samples(20, 4))
    found = measure(compare(task, model, copy.deepcopy(model), plugins), lambda *_: None)
    assert {"fgsm", "pgd", "radius"} <= set(found["not_measured"])
    assert "differentiated" in found["not_measured"]["fgsm"]
    assert found["corruptions"]
    assert found["sensitivity"]["original"] > 0


@pytest.mark.parametrize(("affordable", "count"), [(1000, 128), (50, 50), (1, 8)])
def test_a_large_model_is_looked_at_on_fewer_samples_spread_over_all(
    affordable: int, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, x = nn.Linear(3, 2), torch.arange(400.0)[:, None].expand(-1, 3)
    monkeypatch.setattr(robustness, "MAX_MACS", affordable * robustness._PASSES * 6)
    chosen = choose_samples(HeldTask(x, batch_size=20), model)
    assert [row for some in chosen for row in some] == [i * 400 // count for i in range(count)]
    assert max(map(len, chosen)) <= 20


def test_misspelt_text_is_scored_where_the_task_can_misspell_it(plugins: Plugins) -> None:
    texts = ["aaaa bb", "cccccc d", "eee ff ggg", "hhhhh"] * 10

    class Letters(HeldTask):
        def rewritten(
            self, split: Split, rows: Sequence[int], change: Callable[[str], str]
        ) -> Batch:
            return Batch(counted([change(texts[row]) for row in rows]))

    def counted(some: list[str]) -> Tensor:
        return torch.tensor([[float(text.count(c)) for c in "aceh"] for text in some])

    model, inputs = linear(torch.eye(4).tolist()), counted(texts)
    task = Letters(inputs, inputs.argmax(1))
    found = measure(compare(task, model, copy.deepcopy(model), plugins), lambda *_: None)
    rows = [row for row in found["corruptions"] if row["name"] == "neighbouring_keys"]
    assert [row["severity"] for row in rows] == [1, 2, 3, 4, 5]
    assert all(row["original"] == row["compressed"] for row in found["corruptions"])
    names = {row["name"] for row in found["corruptions"]}
    assert {"swapped_letters", "dropped_letters"} <= names
