"""What reports say of the task: numbers, intervals, words."""

from __future__ import annotations

import json
from dataclasses import asdict, replace

import pytest
from hypothesis import given, strategies as st

from reports.samples import labelled, stage, unlabelled
from zoopress.reports.headline import headline
from zoopress.reports.report import comparison_rows, markdown
from zoopress.results import Fidelity
from zoopress.results.figures import (
    TaskMetric,
    flips,
    metric_of_figures,
    number,
    primary_metric,
    signed,
    task_figures,
    task_metrics,
)

NUMBER = st.floats(-1e6, 1e6)


def test_the_headline_says_in_plain_words_what_came_out() -> None:
    assert headline(labelled()) == [
        "5.35× smaller (1.07 MB → 200 kB)",
        "1.14× as fast",
        "accuracy 98.9 % → 98.6 % (−0.3 ± 0.2 points)",
        "4 of 1,000 inputs flipped",
    ]


def test_without_labels_the_headline_speaks_of_the_outputs() -> None:
    assert headline(unlabelled()) == [
        "1.52× smaller (1.07 MB → 702 kB)",
        "outputs 0.9900 similar to the original's",
    ]


def test_the_metric_that_the_task_is_judged_by_comes_first() -> None:
    report = labelled()
    names = [metric.name for metric in task_metrics(report.evaluation, report.last)]
    assert names == ["accuracy", "macro_f1", "log_loss"]


@pytest.mark.parametrize(
    ("name", "better", "drop"), [("accuracy", True, 0.1), ("perplexity", False, -0.1)]
)
def test_a_drop_is_positive_where_the_compressed_model_is_worse(
    name: str, better: bool, drop: float
) -> None:
    metric = TaskMetric(name, 0.9, 0.8, higher_is_better=better)
    assert metric.drop == pytest.approx(drop)
    assert metric.difference == pytest.approx(-0.1)


def test_shares_are_in_per_cent_and_all_else_is_not() -> None:
    interval = (-0.5, 0.25)
    share = TaskMetric("macro_f1", 0.5, 0.25, difference_interval=(-0.3, -0.2))
    other = TaskMetric("perplexity", 31.5, 33.25, difference_interval=interval)
    assert share.compressed_text == "25.0 %"
    assert share.difference_text == "−25.0 ± 5.0 points"
    assert other.original_text == "31.5"
    assert other.difference_text == "+1.75 ± 0.38"


def test_an_interval_stands_behind_its_value() -> None:
    metric = primary_metric(labelled())
    assert metric is not None
    assert metric.compressed_text == "98.6 % [97.9, 99.2]"


def test_the_original_follows_from_the_drop_where_nothing_was_evaluated() -> None:
    metric = primary_metric(labelled(evaluation={}))
    assert metric is not None
    assert metric.original == pytest.approx(0.989)
    worse = stage(
        "x", 2, 1, 0.9, metrics={"loss": 3.0}, metric="loss", metric_drop=1.0, lower_is_better=True
    )
    metric = primary_metric(labelled(evaluation={}, stages=[worse]))
    assert metric is not None
    assert metric.original == pytest.approx(2.0)


def test_metrics_json_has_the_metric_its_drop_and_the_macs() -> None:
    figures = labelled().metrics()
    assert figures["accuracy"] == 0.986
    assert figures["accuracy_original"] == 0.989
    assert figures["accuracy_drop"] == pytest.approx(0.003)
    assert figures["macs_reduction"] == 1.0
    assert "accuracy" not in unlabelled().metrics()
    assert all(isinstance(value, (int, float)) for value in figures.values())


@given(NUMBER, NUMBER, st.booleans())
def test_the_metric_is_read_back_from_metrics_json(a: float, b: float, higher: bool) -> None:
    worse = (a - b) if higher else (b - a)
    task = {"metric": "score", "metrics": {"score": {"original": a, "compressed": b}}}
    last = stage(
        "x",
        2,
        1,
        0.9,
        metrics={"score": b},
        metric="score",
        metric_drop=worse,
        lower_is_better=not higher,
    )
    figures = task_figures(labelled(evaluation={"task": task}, stages=[last]))
    again = metric_of_figures(figures)
    assert again is not None
    assert again.name == "score"
    assert again.compressed == pytest.approx(b, abs=1e-6)
    assert again.original == pytest.approx(a, abs=1e-6)
    if abs(a - b) > 1e-5:
        assert again.higher_is_better is higher


@given(NUMBER, st.none() | st.integers(0, 3))
def test_a_signed_number_reads_back(value: float, places: int | None) -> None:
    shown = signed(value, places)
    plain = shown.replace("−", "-").replace(",", "")
    if " × 10" in plain:
        powers = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻", "0123456789-")
        plain = plain.replace(" × 10", "e").translate(powers)
    again = float(plain)
    assert again == pytest.approx(
        value, rel=6e-3, abs=0.51 * 10.0 ** -(9 if places is None else places)
    )
    assert "-" not in shown.partition("e")[0]


@pytest.mark.parametrize("value", [None, True, "0.5", float("nan"), float("inf"), [1]])
def test_what_is_no_finite_number_is_none(value: object) -> None:
    assert number(value) is None


@pytest.mark.parametrize(
    "task",
    [
        None,
        [],
        "text",
        {"metrics": []},
        {"metrics": {"accuracy": None}},
        {"metrics": {"accuracy": {"original": "high", "compressed_interval": [1]}}},
        {"changes": {"flipped": "many"}},
    ],
)
def test_damaged_evaluations_leave_out_what_they_damage(task: object) -> None:
    report = labelled(evaluation={"task": task})
    assert len(headline(report)) >= 3
    assert flips(report.evaluation) is None
    metric = primary_metric(report)
    assert metric is not None
    assert metric.compressed == 0.986


def test_a_task_metric_survives_json() -> None:
    metric = primary_metric(labelled())
    assert metric is not None
    assert TaskMetric.from_dict(json.loads(json.dumps(asdict(metric)))) == metric


def test_labels_of_positions_are_not_called_inputs() -> None:
    report = labelled()
    last = replace(report.last, fidelity=Fidelity(10, 0.99, 0.9, 0.9))
    assert headline(replace(report, stages=[last]))[-1] == "4 of 1,000 labels flipped"


def test_the_table_has_metrics_with_intervals_and_macs() -> None:
    rows = {row[0]: row[1:] for row in comparison_rows(labelled())}
    assert rows["accuracy"] == (
        "98.9 % [98.2, 99.5]",
        "98.6 % [97.9, 99.2]",
        "−0.3 ± 0.2 points",
    )
    assert rows["log loss"] == ("0.0412", "0.0533", "+0.0121")
    assert rows["MACs, one input"] == ("266,200", "266,200", "1.00× fewer")
    assert "| accuracy | 98.9 % [98.2, 99.5] |" in markdown(labelled())
