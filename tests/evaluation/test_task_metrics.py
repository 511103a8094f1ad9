"""The task's metrics of both models, and what flipped."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import sklearn.metrics
import torch
from hypothesis import given, settings, strategies as st
from torch import Tensor, nn

from held_data import HeldTask, compare
from zoopress.cards import Card
from zoopress.evaluation import changes
from zoopress.evaluation.changes import classification_changes, confusion, label_changes
from zoopress.evaluation.comparison import Comparison
from zoopress.evaluation.evaluate import evaluate
from zoopress.evaluation.fidelity import Run
from zoopress.evaluation.metrics import mean_absolute_error, r_squared
from zoopress.evaluation.task_metrics import better, measure_task
from zoopress.models.model import Model
from zoopress.plugins import Plugins
from zoopress.progress import Reporter
from zoopress.tasks import Split, Task
from zoopress.testing import models as testing_models
from zoopress_zoo.tasks.sentence_similarity import SentenceSimilarity

NAMES = ("cat", "dog", "eel")


class Animals(HeldTask):
    """Inputs are the scores; samples show what `shown` has."""

    def __init__(self, scores: Tensor, targets: Tensor, shown: Sequence[str | None] = ()) -> None:
        super().__init__(scores, targets)
        self._shown = shown

    def label_names(self) -> Sequence[str]:
        return NAMES

    def show(self, split: Split, row: int) -> str | None:
        assert split == "test"
        return self._shown[row] if self._shown else f"sample {row}"


class Numbers(HeldTask):
    """Regression to numbers [samples]."""

    metric = "mean_absolute_error"
    higher_is_better = False

    def statistics(self, output: Tensor, targets: Any) -> dict[str, Tensor]:
        return {"predicted": output[:, 0], "target": targets}

    def metrics(self, statistics: Mapping[str, Tensor]) -> dict[str, float]:
        rows = statistics["predicted"], statistics["target"]
        return {"mean_absolute_error": mean_absolute_error(*rows), "r_squared": r_squared(*rows)}


class Answers(nn.Module):
    """Says of one-hot questions what it is told to."""

    def __init__(self, classes: Sequence[int], width: int = 3) -> None:
        super().__init__()
        self.register_buffer("scores", torch.eye(width)[list(classes)])

    def forward(self, question: Tensor) -> Tensor:
        result: Tensor = question @ self.scores
        return result


def measured(plugins: Plugins, task: Task, one: nn.Module, other: nn.Module) -> dict[str, Any]:
    found = measure_task(compare(task, one, other, plugins))
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    return found


def animals(
    plugins: Plugins, target: Sequence[int], before: Sequence[int], after: Sequence[int]
) -> dict[str, Any]:
    task = Animals(torch.eye(len(target)), torch.tensor(target))
    return measured(plugins, task, Answers(before), Answers(after))


def test_a_case_counted_by_hand(plugins: Plugins) -> None:
    target = [0, 0, 1, 1, 2, 2, 2, 2]
    before = [0, 0, 1, 2, 2, 2, 0, 0]  # 5 right
    after_ = [0, 1, 1, 1, 2, 2, 1, 0]  # row 1 lost, row 3 won, row 6 wrong in another way
    found = animals(plugins, target, before, after_)
    assert found["samples"] == 8
    assert found["metric"] == "accuracy"
    accuracy = found["metrics"]["accuracy"]
    assert (accuracy["original"], accuracy["compressed"]) == (5 / 8, 5 / 8)
    assert accuracy["difference"] == 0.0
    assert accuracy["better"] == "higher"
    low, high = accuracy["difference_interval"]
    assert low < 0 < high
    assert found["mcnemar"] == {"right_to_wrong": 1, "wrong_to_right": 1, "p_value": 1.0}
    assert found["confusion"] == {
        "labels": list(NAMES),
        "original": [[2, 0, 0], [0, 1, 1], [2, 0, 2]],
        "compressed": [[1, 1, 0], [0, 2, 0], [1, 1, 2]],
    }
    examples = found["changes"].pop("examples")
    assert found["changes"] == {
        "samples": 8,
        "flipped": 3,
        "right_to_wrong": 1,
        "wrong_to_right": 1,
        "wrong_to_other_wrong": 1,
    }
    assert examples[0] == {
        "row": 1,
        "kind": "right_to_wrong",
        "target": "cat",
        "original": "cat",
        "compressed": "dog",
        "shown": "sample 1",
    }
    assert [example["row"] for example in examples] == [1, 3, 6]


def test_a_worse_model_has_a_negative_difference(plugins: Plugins) -> None:
    target = [0, 1, 2] * 40
    found = animals(plugins, target, target, [0, 1, 1] * 40)
    accuracy = found["metrics"]["accuracy"]
    assert accuracy["difference"] == pytest.approx(-1 / 3)
    low, high = accuracy["difference_interval"]
    assert -0.45 < low < -1 / 3 < high < -0.2
    assert accuracy["original_interval"] == [1.0, 1.0]
    assert found["mcnemar"]["p_value"] == 2 / 2**40


labels = st.lists(st.tuples(*[st.integers(0, 2)] * 3), min_size=2, max_size=30)


@settings(max_examples=25)
@given(labels)
def test_counts_agree_with_each_other(rows: list[tuple[int, int, int]]) -> None:
    target, before, after = (torch.tensor(column) for column in zip(*rows, strict=True))
    task = Animals(torch.eye(len(rows)), target)
    found = classification_changes(task, target, before, after)
    right = int((before == target).sum()), int((after == target).sum())
    assert right[1] - right[0] == found["wrong_to_right"] - found["right_to_wrong"]
    assert found["flipped"] == int((before != after).sum()) == len(found["examples"])
    matrices = confusion(target, before, after, NAMES)
    for predicted, matrix in ((before, matrices["original"]), (after, matrices["compressed"])):
        expected = sklearn.metrics.confusion_matrix(target, predicted, labels=[0, 1, 2])
        assert matrix == expected.tolist()


def test_of_many_classes_the_most_confused_pairs_are_told() -> None:
    target = torch.tensor([0, 0, 0, 5, 5, 100, 7])
    before = torch.tensor([1, 1, 0, 6, 5, 100, 7])
    after_ = torch.tensor([1, 0, 0, 6, 6, 100, 8])
    names = [f"class {label}" for label in range(90)]
    found = confusion(target, before, after_, names)["pairs"]
    assert found == [
        {"target": "class 0", "predicted": "class 1", "original": 2, "compressed": 1},
        {"target": "class 5", "predicted": "class 6", "original": 1, "compressed": 2},
        {"target": "class 7", "predicted": "class 8", "original": 0, "compressed": 1},
    ]
    assert "labels" in confusion(target[:5], before[:5], after_[:5], ())


def test_examples_are_of_every_kind_and_not_too_many() -> None:
    target = torch.zeros(300, dtype=torch.int64)
    before = torch.tensor([0] * 290 + [1] * 10)
    after_ = torch.tensor([1] * 290 + [0] * 5 + [2] * 5)
    found = classification_changes(Animals(torch.eye(300), target), target, before, after_)
    kinds = [example["kind"] for example in found["examples"]]
    assert len(kinds) == changes.MAX_EXAMPLES
    assert {kind: kinds.count(kind) for kind in changes.KINDS} == {
        "right_to_wrong": 30,
        "wrong_to_right": 5,
        "wrong_to_other_wrong": 5,
    }


def test_what_is_shown_is_bounded() -> None:
    image = "data:image/png;base64," + "A" * changes.MAX_SHOWN_BYTES
    shown = [image, "ä" * 10_000, None, "x" * 3_999] + ["y" * 3_999] * 60
    target = torch.zeros(64, dtype=torch.int64)
    task = Animals(torch.eye(64), target, shown)
    examples = classification_changes(task, target, target, target + 1)["examples"]
    texts = [example["shown"] for example in examples]
    assert texts[0] is None  # half an image is none
    assert texts[1].endswith("ä…")
    assert texts[2] is None
    assert texts[3] == shown[3]
    sizes = [len(text.encode()) for text in texts if text]
    assert max(sizes) <= changes.MAX_SHOWN_BYTES
    assert changes.MAX_ALL_SHOWN_BYTES * 0.9 < sum(sizes) <= changes.MAX_ALL_SHOWN_BYTES


class Stretched(nn.Module):
    """Adds to its input, and multiplies it."""

    def __init__(self, factor: float, offset: float = 0.0) -> None:
        super().__init__()
        self.factor, self.offset = factor, offset

    def forward(self, input: Tensor) -> Tensor:
        return input * self.factor + self.offset


def test_an_error_is_better_lower_and_has_no_confusion(plugins: Plugins) -> None:
    values = torch.linspace(-1, 1, 50)[:, None]
    task = Numbers(values, values[:, 0])
    found = measured(plugins, task, Stretched(1.0), Stretched(1.0, 0.5))
    assert found.keys() == {"samples", "metric", "metrics", "confidence", "resamples"}
    error = found["metrics"]["mean_absolute_error"]
    assert error["difference"] == pytest.approx(0.5)
    assert error["better"] == "lower"
    assert found["metrics"]["r_squared"]["better"] == "higher"
    assert error["difference_interval"] == pytest.approx([0.5, 0.5])


def test_a_model_that_gives_nan_has_no_metrics_and_a_reason(plugins: Plugins) -> None:
    values = torch.linspace(-1, 1, 50)[:, None]
    task = Numbers(values, values[:, 0])
    found = measured(plugins, task, Stretched(1.0), Stretched(math.nan))
    error = found["metrics"]["mean_absolute_error"]
    assert error["original"] == 0.0
    assert error["compressed"] is error["difference"] is error["difference_interval"] is None
    assert "50 of 50 values are NaN" in error["reason"]


def test_a_metric_without_a_value_for_either_model_is_there_with_a_reason(
    plugins: Plugins,
) -> None:
    values = torch.ones(5, 1)  # nothing correlates with constant targets
    found = measured(plugins, Numbers(values, values[:, 0]), Stretched(1.0), Stretched(2.0))
    error = found["metrics"]["mean_absolute_error"]
    assert error["original"] is error["compressed"] is None
    assert "two different" in error["reason"]
    assert found["resamples"] == 0


def test_an_infinite_metric_is_none_with_a_reason(plugins: Plugins) -> None:
    class Endless(Animals):
        def metrics(self, statistics: Mapping[str, Tensor]) -> dict[str, float]:
            return {**super().metrics(statistics), "perplexity": math.inf}

    task = Endless(torch.eye(4), torch.tensor([0, 1, 2, 0]))
    found = measured(plugins, task, Answers([0, 1, 2, 0]), Answers([0, 1, 2, 1]))
    assert found["metrics"]["perplexity"]["original"] is None
    assert "inf" in found["metrics"]["perplexity"]["reason"]
    assert found["metrics"]["accuracy"]["original_interval"] == [1.0, 1.0]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("accuracy", "higher"),
        ("log_loss", "lower"),
        ("calibration_error", "lower"),
        ("recall_at_10", "higher"),
        ("perplexity", "lower"),
        ("colour", None),
    ],
)
def test_metrics_say_which_direction_is_better(name: str, expected: str | None) -> None:
    assert better(HeldTask(torch.zeros(1)), name) == expected


@pytest.mark.parametrize("name", ["cnn", "lstm", "transformer"])
def test_without_labels_flips_are_of_the_originals_labels(plugins: Plugins, name: str) -> None:
    torch.manual_seed(0)
    inputs = torch.randn(30, 3, 16, 16) if name == "cnn" else torch.randint(0, 64, (30, 12))
    task = HeldTask(inputs, batch_size=8)
    one, other = (getattr(testing_models, name)() for _ in range(2))
    comparison = compare(task, one, other, plugins)
    found = measured(plugins, task, one, other)
    assert found.keys() == {"samples", "changes"}
    before, after = (
        torch.cat(run.outputs).argmax(1)
        for run in (comparison.original_run, comparison.compressed_run)
    )
    flipped = (before != after).nonzero().flatten().tolist()
    assert flipped
    assert found["changes"]["flipped"] == len(flipped)
    assert [example["row"] for example in found["changes"]["examples"]] == flipped
    first = found["changes"]["examples"][0]
    assert first["original"] == str(int(before[flipped[0]]))
    assert first["compressed"] == str(int(after[flipped[0]]))


def test_a_flip_in_a_sequence_names_sample_and_position(plugins: Plugins) -> None:
    scores = torch.zeros(5, 7, 3)
    scores[..., 0] = 1.0

    class Changed(nn.Module):
        def forward(self, input: Tensor) -> Tensor:
            first = input[:, 0, 1] == 9.0
            output = input.clone()
            output[first, 4, 2] = 5.0
            return output

    scores[3, 0, 1], scores[3, 0, 0] = 9.0, 10.0
    task = HeldTask(scores, batch_size=2)
    found = measured(plugins, task, nn.Identity(), Changed())
    assert found["samples"] == 35
    assert found["changes"]["examples"] == [
        {"row": 3, "position": 4, "original": "0", "compressed": "2", "shown": None}
    ]


def test_flips_of_long_sequences_are_shown_from_all_samples(plugins: Plugins) -> None:
    task = HeldTask(torch.randn(10, 50, 3, generator=torch.Generator().manual_seed(0)))
    found = measured(plugins, task, nn.Identity(), Stretched(-1.0))
    examples = found["changes"]["examples"]
    assert len(examples) == changes.MAX_EXAMPLES
    assert {example["row"] for example in examples} == set(range(10))


def test_a_model_that_changed_nothing_has_no_flips(plugins: Plugins) -> None:
    task = HeldTask(torch.randn(6, 3))
    found = measured(plugins, task, nn.Identity(), nn.Identity())
    assert found == {"samples": 6, "changes": {"samples": 6, "flipped": 0, "examples": []}}
    assert animals(plugins, [0, 1], [0, 1], [0, 1])["changes"]["examples"] == []


def test_a_flipped_neighbour_is_told_by_its_sentence(plugins: Plugins, tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_text("\n".join("word " * count for count in range(1, 20)))
    data = {"text": str(path), "evaluation_samples": 8, "calibration_samples": 1}
    card = Card.model_validate({"name": "x", "source": "path:x", "data": data})
    task = SentenceSimilarity(card, Path())
    names = task.label_names()
    outputs = [torch.randn(8, 5, generator=torch.Generator().manual_seed(i)) for i in range(2)]
    runs = [Run([output], {}) for output in outputs]
    comparison = Comparison(task, nn.Identity(), Model(nn.Identity()), *runs, Path(), plugins)
    found = label_changes(comparison)
    example = found["examples"][0]
    scores = task.similarity(outputs[:1])
    assert scores is not None
    assert example["shown"] == names[example["row"]]
    assert example["original"] == names[int(scores[example["row"]].argmax())]
    assert len(set(names)) == 8


def test_outputs_without_classes_have_no_flips(plugins: Plugins) -> None:
    task = HeldTask(torch.randn(6, 1))
    assert measured(plugins, task, nn.Identity(), Stretched(-1.0)) == {}
    assert evaluate(compare(task, nn.Identity(), nn.Identity(), plugins), [], Reporter()) == {}


def test_outputs_that_are_not_finite_have_no_labels(plugins: Plugins) -> None:
    task = HeldTask(torch.randn(6, 3))
    comparison = compare(task, nn.Identity(), Stretched(math.nan), plugins)
    assert label_changes(comparison) == {}


def test_a_run_is_the_same_every_time(plugins: Plugins) -> None:
    target = [0, 1, 2] * 5
    runs = [animals(plugins, target, target, [0, 1, 1] * 5) for _ in range(2)]
    assert runs[0] == runs[1]
