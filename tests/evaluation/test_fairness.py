"""Fairness: by hand, and beside fairlearn."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import fairlearn.metrics
import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import Tensor, nn

from held_data import HeldTask, compare
from zoopress.cards import load_card
from zoopress.errors import CardError
from zoopress.evaluation.fairness import (
    demographic_parity_difference,
    equalized_odds_difference,
    measure,
)
from zoopress.evaluation.metrics import r_squared
from zoopress.plugins import Plugins
from zoopress.tasks import Split


class Grouped(HeldTask):
    """Inputs are class scores; `columns` are the subgroups."""

    def __init__(
        self, scores: Tensor, targets: Tensor | None, columns: Mapping[str, Sequence[str]]
    ) -> None:
        super().__init__(scores, targets)
        self._columns = columns

    def groups(self, split: Split) -> Mapping[str, Sequence[str]]:
        assert split == "test"
        return self._columns


class Numbers(Grouped):
    metric = "r_squared"

    def statistics(self, output: Tensor, targets: Any) -> dict[str, Tensor]:
        return {"predicted": output[:, 0], "target": targets}

    def metrics(self, statistics: Mapping[str, Tensor]) -> dict[str, float]:
        return {"r_squared": r_squared(statistics["predicted"], statistics["target"])}


class Says(nn.Module):
    """Gives the scores of classes for one-hot questions."""

    def __init__(self, classes: Sequence[int]) -> None:
        super().__init__()
        self.register_buffer("scores", torch.eye(max(2, max(classes) + 1))[list(classes)])

    def forward(self, question: Tensor) -> Tensor:
        result: Tensor = question @ self.scores
        return result


def measured(
    plugins: Plugins,
    target: Sequence[int],
    before: Sequence[int],
    after: Sequence[int],
    **columns: Sequence[str],
) -> dict[str, Any]:
    task = Grouped(torch.eye(len(target)), torch.tensor(target), columns)
    found = measure(compare(task, Says(before), Says(after), plugins), lambda *_: None)
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    return found


def test_a_case_computed_by_hand(plugins: Plugins) -> None:
    target = [1, 1, 0, 0, 1, 1, 0, 0]
    before = [1, 1, 0, 0, 1, 1, 0, 1]  # en 4/4, de 3/4
    after_ = [1, 1, 0, 0, 1, 0, 1, 1]  # en 4/4, de 1/4
    found = measured(plugins, target, before, after_, language=["en"] * 4 + ["de"] * 4)
    assert found["metric"] == "accuracy"
    assert found["better"] == "higher"
    column = found["columns"]["language"]
    assert column["apart"] == {}
    assert column["groups"]["de"]["samples"] == 4
    assert column["groups"]["de"]["original"] == 0.75
    assert column["groups"]["de"]["difference"] == -0.5
    assert column["groups"]["en"]["difference_interval"] == [0.0, 0.0]
    low, high = column["groups"]["de"]["difference_interval"]
    assert low < -0.5 < high
    gap = column["gap"]
    assert gap.keys() == {"original", "compressed", "difference", "difference_interval"}
    assert gap["difference_interval"][0] <= 0.5 <= gap["difference_interval"][1]
    assert (gap["original"], gap["compressed"], gap["difference"]) == (0.25, 0.75, 0.5)
    # Class 1 is predicted 2/4 and 3/4 of the time, before as after.
    parity = column["demographic_parity_difference"]
    assert (parity["original"], parity["compressed"]) == (0.25, 0.25)
    # Of class 1: found 2/2 and 2/2, then 1/2; taken for it 0/2 and 1/2, then 2/2.
    odds = column["equalized_odds_difference"]
    assert (odds["original"], odds["compressed"]) == (0.5, 1.0)


def test_a_subgroup_of_one_sample_is_told_apart(plugins: Plugins) -> None:
    target = [0, 1, 0, 1, 1]
    names = ["a", "a", "b", "b", "c"]
    column = measured(plugins, target, target, [0, 1, 0, 1, 0], x=names)["columns"]["x"]
    assert column["groups"].keys() == {"a", "b"}
    assert column["gap"]["compressed"] == 0.0
    assert column["apart"]["c"]["samples"] == 1
    assert "1 sample" in column["apart"]["c"]["reason"]


def test_one_group_has_no_gap(plugins: Plugins) -> None:
    column = measured(plugins, [0, 1], [0, 1], [0, 0], x=["a", "a"])["columns"]["x"]
    assert column["gap"] is None
    assert column["groups"]["a"]["difference"] == -0.5


def test_only_single_samples_have_neither_groups_nor_gap(plugins: Plugins) -> None:
    column = measured(plugins, [0, 1], [0, 1], [0, 0], x=["a", "b"])["columns"]["x"]
    assert column["gap"] is None
    assert column["groups"] == {}
    assert column["apart"].keys() == {"a", "b"}


def test_every_column_is_measured_and_names_may_be_anything(plugins: Plugins) -> None:
    names = ["gap", "gap", "", ""]
    found = measured(plugins, [0, 1, 0, 1], [0, 1, 0, 1], [0, 1, 0, 1], x=names, y=["é"] * 4)
    assert found["columns"].keys() == {"x", "y"}
    assert found["columns"]["x"]["groups"].keys() == {"gap", ""}
    assert found["columns"]["x"]["gap"]["original"] == 0.0


def test_a_group_on_which_the_metric_has_no_value_is_told_apart(plugins: Plugins) -> None:
    values = torch.tensor([[1.0], [2], [3], [4], [5], [5], [5]])
    task = Numbers(values, values[:, 0], {"x": ["a", "a", "b", "b", "c", "c", "c"]})
    found = measure(compare(task, nn.Identity(), nn.Identity(), plugins), lambda *_: None)
    column = found["columns"]["x"]
    assert column["groups"].keys() == {"a", "b"}
    assert "two different" in column["apart"]["c"]["reason"]
    assert "equalized_odds_difference" not in column


def test_without_subgroups_it_says_what_to_name(plugins: Plugins) -> None:
    with pytest.raises(CardError, match=r"data: \{groups: \[language\]\}"):
        measured(plugins, [0, 1], [0, 1], [0, 1])


def test_without_labels_it_says_so(plugins: Plugins) -> None:
    task = Grouped(torch.eye(2), None, {"x": ["a", "b"]})
    with pytest.raises(CardError, match="no labels"):
        measure(compare(task, nn.Identity(), nn.Identity(), plugins), lambda *_: None)


def test_a_card_that_asks_for_fairness_without_groups_is_refused(
    tmp_path: Path, plugins: Plugins
) -> None:
    path = tmp_path / "card.yaml"
    path.write_text("name: x\nsource: path:x\nmeasures: [fairness]\n")
    with pytest.raises(CardError, match=r"data\.groups"):
        load_card(str(path), plugins)


rows = st.lists(
    st.tuples(st.integers(0, 1), st.integers(0, 1), st.integers(0, 2)), min_size=1, max_size=40
)


@settings(max_examples=20)
@given(rows)
def test_of_two_classes_the_differences_are_fairlearns(
    samples: list[tuple[int, int, int]],
) -> None:
    # Every group has both classes, so that fairlearn's rates are all defined.
    every = [(target, target, group) for target in (0, 1) for group in (0, 1, 2)]
    target, predicted, groups = (
        torch.tensor(column) for column in zip(*samples, *every, strict=True)
    )
    expected = fairlearn.metrics.demographic_parity_difference(
        target.numpy(), predicted.numpy(), sensitive_features=groups.numpy()
    )
    assert demographic_parity_difference(predicted, groups) == pytest.approx(float(expected))
    expected = fairlearn.metrics.equalized_odds_difference(
        target.numpy(), predicted.numpy(), sensitive_features=groups.numpy()
    )
    found = equalized_odds_difference(target, predicted, groups)
    assert found == pytest.approx(float(expected))


def test_of_three_classes_the_worst_one_against_the_others_counts() -> None:
    groups = torch.tensor([0, 0, 0, 1, 1, 1])
    target = torch.tensor([0, 1, 2, 0, 1, 2])
    predicted = torch.tensor([0, 1, 2, 2, 2, 2])
    # Class 2 is predicted 1/3 and 3/3 of the time; among others 0/2 and 2/2.
    assert demographic_parity_difference(predicted, groups) == pytest.approx(2 / 3)
    assert equalized_odds_difference(target, predicted, groups) == 1.0


def test_a_group_without_a_class_is_not_compared_on_it() -> None:
    groups = torch.tensor([0, 0, 1, 1])
    target = torch.tensor([1, 0, 0, 0])
    # Class 1 occurs in group 0 alone; wrongly predicted 0/1 and 1/2 of the time.
    assert equalized_odds_difference(target, torch.tensor([1, 0, 1, 0]), groups) == 0.5
