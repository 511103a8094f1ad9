"""Regression and forecasting: the numbers of tables and series."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from dataset_cards import SMALL, open_task
from zoopress.errors import CardError
from zoopress.evaluation.fidelity import run_all

CSV = "a,b,name,y,z\n" + "".join(
    f"{i},{i * i / 10},{'odd' if i % 2 else 'even'},{2 * i + 1},{-i}\n" for i in range(40)
)


@pytest.fixture
def table(tmp_path: Path) -> Path:
    (tmp_path / "d.csv").write_text(CSV)
    return tmp_path


def numbers(task: Any, split: str = "test") -> tuple[torch.Tensor, torch.Tensor]:
    samples = task.samples(split)
    batch = samples.batch(range(len(samples)))
    return batch.inputs, batch.targets


class Exact(nn.Module):
    """2·a + 1 of rows [n, features] whose first one is a."""

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        return 2 * rows[:, 0] + 1


class TestRegression:
    def test_features_are_all_other_columns_of_numbers(self, table: Path) -> None:
        task = open_task(
            table, "regression", dataset="file:d.csv", columns={"target": "y"}, **SMALL
        )
        inputs, targets = numbers(task)
        rows = [place.row for place in task.places["test"]]
        assert torch.allclose(inputs, torch.tensor([[i, i * i / 10, -i] for i in rows]))
        assert torch.equal(targets, torch.tensor([[2.0 * i + 1] for i in rows]))

    def test_columns_may_be_named(self, table: Path) -> None:
        columns = {"features": "z, a", "target": "y,b"}
        task = open_task(table, "regression", dataset="file:d.csv", columns=columns, **SMALL)
        inputs, targets = numbers(task)
        assert torch.equal(inputs[:, 0], -inputs[:, 1])
        assert torch.allclose(targets[:, 1], inputs[:, 1] ** 2 / 10)

    def test_subgroups_are_no_features(self, table: Path) -> None:
        task = open_task(table, "regression", dataset="file:d.csv", groups=["z", "name"], **SMALL)
        assert task.columns["features"] == ("a", "b")
        rows = [place.row for place in task.places["test"]]
        assert task.groups("test")["name"] == ["odd" if i % 2 else "even" for i in rows]

    def test_one_column_may_hold_lists(self, tmp_path: Path) -> None:
        x = np.random.default_rng(0).normal(size=(30, 3))
        np.savez(tmp_path / "d.npz", x=x, y=x.sum(1))
        task = open_task(
            tmp_path, "regression", dataset="file:d.npz", columns={"features": "x"}, **SMALL
        )
        inputs, targets = numbers(task)
        assert torch.allclose(inputs.sum(1, keepdim=True), targets, atol=1e-6)

    def test_an_exact_model_has_no_error_whether_it_gives_rows_or_columns(
        self, table: Path
    ) -> None:
        task = open_task(table, "regression", dataset="file:d.csv", **SMALL)
        found = task.metrics(run_all(task, Exact()).statistics)
        assert found == {
            "mean_absolute_error": 0.0,
            "root_mean_squared_error": 0.0,
            "r_squared": 1.0,
            "spearman": pytest.approx(1.0),
        }
        assert task.higher_is_better is False

    def test_figures_of_a_wrong_model_are_those_computed_by_hand(self, table: Path) -> None:
        task = open_task(table, "regression", dataset="file:d.csv", **SMALL)
        value = torch.tensor([[0.0], [1.0], [2.0], [3.0]])
        prediction = torch.tensor([[1.0], [1.0], [2.0], [0.0]])
        found = task.metrics(task.statistics(prediction, value))
        assert found["mean_absolute_error"] == 1.0
        assert math.isclose(found["root_mean_squared_error"], math.sqrt(10 / 4))
        assert math.isclose(found["r_squared"], 1 - 10 / 5)
        # Ranks 2.5, 2.5, 4, 1 against 1, 2, 3, 4.
        assert math.isclose(found["spearman"], -1.5 / math.sqrt(5 * 4.5))
        assert float(task.loss(prediction, value)) == 2.5

    def test_hubers_loss_is_linear_beyond_its_delta(self, table: Path) -> None:
        settings = {"loss": "huber", "huber_delta": 1.0}
        task = open_task(table, "regression", dataset="file:d.csv", preprocessing=settings, **SMALL)
        found = task.loss(torch.tensor([[0.5], [4.0]]), torch.zeros(2, 1))
        assert math.isclose(float(found), (0.5 * 0.25 + 1 * (4 - 0.5)) / 2)

    def test_the_training_split_alone_is_measured(self, table: Path) -> None:
        settings = {"standardize": True, "standardize_target": True}
        task = open_task(table, "regression", dataset="file:d.csv", preprocessing=settings, **SMALL)
        inputs, targets = numbers(task, "training")
        for found in (inputs, targets):
            assert torch.allclose(found.mean(0), torch.zeros(found.shape[1]), atol=1e-6)
            assert torch.allclose(found.std(0, correction=0), torch.ones(found.shape[1]))
        raw = open_task(table, "regression", dataset="file:d.csv", **SMALL)
        raw_training, raw_test = numbers(raw, "training")[0], numbers(raw)[0]
        expected = (raw_test - raw_training.mean(0)) / raw_training.std(0, correction=0)
        assert torch.allclose(numbers(task)[0], expected, atol=1e-5)

    def test_metrics_are_in_the_datasets_units_even_if_the_model_is_not(self, table: Path) -> None:
        settings = {"standardize_target": True}
        task = open_task(table, "regression", dataset="file:d.csv", preprocessing=settings, **SMALL)
        training = [place.row for place in task.places["training"]]
        y = torch.tensor([2.0 * i + 1 for i in training])
        statistics = task.statistics(numbers(task)[1] + 1.0, numbers(task)[1])
        rows = [2.0 * place.row + 1 for place in task.places["test"]]
        assert torch.allclose(statistics["value"][:, 0].float(), torch.tensor(rows))
        found = task.metrics(statistics)
        assert found["mean_absolute_error"] == pytest.approx(float(y.std(correction=0)))

    def test_known_scales_may_be_given(self, table: Path) -> None:
        settings = {"mean": [1, 2], "std": [2, 4]}
        columns = {"features": "a,b"}
        named = {"dataset": "file:d.csv", "columns": columns, **SMALL}
        task = open_task(table, "regression", preprocessing=settings, **named)
        raw = numbers(open_task(table, "regression", **named))[0]
        expected = (raw - torch.tensor([1.0, 2.0])) / torch.tensor([2.0, 4.0])
        assert torch.allclose(numbers(task)[0], expected)

    def test_a_constant_target_has_no_correlations(self, table: Path) -> None:
        task = open_task(table, "regression", dataset="file:d.csv", **SMALL)
        found = task.metrics(task.statistics(torch.rand(4, 1), torch.ones(4, 1)))
        assert found.keys() == {"mean_absolute_error", "root_mean_squared_error"}

    @pytest.mark.parametrize(
        ("data", "said"),
        [
            (
                {"columns": {"features": "a,bb"}},
                "'data.columns.features': the dataset has no colum",
            ),
            ({"columns": {"features": "a,bb"}}, "Did you mean 'b'"),
            ({"columns": {"features": "a,name"}}, "'name' must hold numbers"),
            ({"columns": {"feature": "a"}}, "Did you mean 'features'"),
            ({"columns": {"target": "x"}}, "no column 'x'"),
            ({"preprocessing": {"mean": [1], "std": [1, 2]}}, "'mean' has 1 values and 'std' 2"),
            ({"preprocessing": {"mean": [1, 2], "std": [1, 2]}}, "there are 3 features: a, b, z"),
            ({"preprocessing": {"loss": "l1"}}, "loss"),
            ({"preprocessing": {"standardise": True}}, "Did you mean 'standardize'"),
        ],
    )
    def test_mistakes_are_told(self, table: Path, data: dict[str, Any], said: str) -> None:
        with pytest.raises(CardError) as raised:
            open_task(table, "regression", dataset="file:d.csv", **data, **SMALL).samples("test")
        assert said in str(raised.value)

    def test_a_row_that_is_in_both_files_is_not_learned_from(self, tmp_path: Path) -> None:
        train = [f"{i},{i % 7},{i}" for i in range(40)]
        test = [f"{i + 0.5},1,{i}" for i in range(10)]
        test[3] = "12,5,999"  # of row 12 of the training part, with another target
        for name, lines in (("train", train), ("test", test)):
            (tmp_path / f"{name}.csv").write_text("a,b,y\n" + "\n".join(lines))
        numbers = {"evaluation_samples": 5, "calibration_samples": 5}
        task = open_task(tmp_path, "regression", dataset="file:.", **numbers)
        learned = {
            place
            for split in ("calibration", "training", "validation")
            for place in task.places[split]
        }
        assert len(learned) == 39
        assert ("train", 12) not in learned

    def test_missing_numbers_are_told_with_their_row(self, tmp_path: Path) -> None:
        lines = [f"{i},{i}" for i in range(20)]
        lines[7] = "7,"
        (tmp_path / "d.csv").write_text("y,x\n" + "\n".join(lines))
        task = open_task(tmp_path, "regression", dataset="file:d.csv", **SMALL)
        split = next(s for s, places in task.places.items() if ("all", 7) in places)
        with pytest.raises(CardError, match="'x' has no finite number in row 7 of part 'all'"):
            task.samples(split)

    def test_a_model_of_other_targets_is_told(self, table: Path) -> None:
        task = open_task(table, "regression", dataset="file:d.csv", **SMALL)
        with pytest.raises(CardError, match=r"expects outputs \[4, 1\].*got \[4, 3\]"):
            run_all(task, nn.Identity())

    def test_outputs_carry_no_label(self, table: Path) -> None:
        task = open_task(table, "regression", dataset="file:d.csv", **SMALL)
        assert task.similarity([torch.rand(4, 3)]) is None


class TestTabularClassification:
    def test_a_linear_rule_is_learned_and_judged(self, tmp_path: Path) -> None:
        task = open_task(
            tmp_path,
            "tabular-classification",
            dataset="package:sklearn.datasets/iris",
            evaluation_samples=40,
            calibration_samples=20,
            preprocessing={"standardize": True},
        )
        inputs, targets = numbers(task, "training")
        assert tuple(inputs.shape) == (len(targets), 4)
        assert task.label_names() == ("setosa", "versicolor", "virginica")
        torch.manual_seed(0)
        model = nn.Linear(4, 3)
        optimizer = torch.optim.Adam(model.parameters(), 0.05)
        for _ in range(200):
            optimizer.zero_grad()
            task.loss(task.forward(model, inputs), targets).backward()
            optimizer.step()
        found = task.metrics(run_all(task, model).statistics)
        assert found["accuracy"] > 0.9

    def test_the_label_is_no_feature(self, table: Path) -> None:
        columns = {"label": "name"}
        task = open_task(
            table, "tabular-classification", dataset="file:d.csv", columns=columns, **SMALL
        )
        assert task.columns["features"] == ("a", "b", "y", "z")
        assert task.label_names() == ("even", "odd")


class TestForecasting:
    @pytest.fixture
    def series(self, tmp_path: Path) -> Path:
        lines = [f"{i},{100 - i}" for i in range(200)]
        (tmp_path / "d.csv").write_text("target,other\n" + "\n".join(lines))
        return tmp_path

    def test_windows_are_followed_by_their_targets(self, series: Path) -> None:
        settings = {"window": 5, "horizon": 2}
        task = open_task(
            series, "forecasting", dataset="file:d.csv", preprocessing=settings, **SMALL
        )
        inputs, targets = numbers(task)
        assert tuple(inputs.shape) == (4, 5, 2)
        # 200 steps end with the four windows of the test split.
        assert inputs[:, 0, 0].tolist() == [190.0, 191.0, 192.0, 193.0]
        assert torch.equal(inputs[:, :, 1], 100 - inputs[:, :, 0])
        assert torch.equal(targets, inputs[:, -1:, 0] + torch.tensor([1.0, 2.0]))

    def test_several_targets_have_an_axis_of_their_own(self, series: Path) -> None:
        task = open_task(
            series,
            "forecasting",
            dataset="file:d.csv",
            columns={"target": "other,target", "features": "target"},
            preprocessing={"window": 3, "horizon": 2},
            **SMALL,
        )
        inputs, targets = numbers(task)
        assert tuple(inputs.shape) == (4, 3, 1)
        assert tuple(targets.shape) == (4, 2, 2)
        found = task.metrics(task.statistics(targets, targets))
        assert found["mean_absolute_error"] == 0

    def test_a_model_is_judged(self, series: Path) -> None:
        class Last(nn.Module):
            def forward(self, windows: torch.Tensor) -> torch.Tensor:
                return windows[:, -1, 0]

        for scaled in ({}, {"standardize_target": True, "standardize": True}):
            task = open_task(
                series, "forecasting", dataset="file:d.csv",
                preprocessing={"window": 4, **scaled}, **SMALL,
            )  # fmt: skip
            found = task.metrics(run_all(task, Last()).statistics)
            assert found["mean_absolute_error"] == pytest.approx(1.0, rel=1e-4)

    def test_no_time_step_is_learned_from_and_tested(self, series: Path) -> None:
        task = open_task(
            series, "forecasting", dataset="file:d.csv", preprocessing={"window": 6}, **SMALL
        )
        steps = {}
        for split in ("calibration", "training", "validation", "test"):
            inputs, targets = numbers(task, split)
            steps[split] = {*inputs[..., 0].flatten().tolist(), *targets.flatten().tolist()}
        assert not steps["test"] & (steps["training"] | steps["calibration"] | steps["validation"])
        assert not steps["training"] & (steps["calibration"] | steps["validation"])

    def test_a_window_must_be_said(self, series: Path) -> None:
        with pytest.raises(CardError, match="window"):
            open_task(series, "forecasting", dataset="file:d.csv", **SMALL)
