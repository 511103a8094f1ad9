"""Fairness: does compression cost some subgroups of the data more than others?"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from zoopress.errors import CardError
from zoopress.evaluation.comparison import Comparison
from zoopress.evaluation.statistics import bootstrap, interval_entries
from zoopress.evaluation.task_metrics import CONFIDENCE, better, is_classification
from zoopress.progress import Progress
from zoopress.tasks import Task

LEAST_SAMPLES = 2
"""A smaller subgroup is told apart: right or wrong on one sample says nothing of a group."""

Rows = Mapping[str, Tensor]

_GROUP = "subgroup"


def measure(comparison: Comparison, progress: Progress) -> dict[str, Any]:
    """Compare the task's metric between the subgroups of each column that the card names.

    Returns:
        "metric", which direction is "better", "confidence", and under "columns" for each of them:

        - "groups": by name "samples", and the metric: "original", "compressed", "difference"
          (compressed − original), each with its interval, "original_interval" and so on, None where
          it has none
        - "gap": the largest metric of a group − the smallest one, "original", "compressed",
          "difference" and "difference_interval". It is None where less than two groups are left.
          The gaps themselves have no interval: groups that are alike in truth never are quite on
          samples, so that gaps are too large on few samples, and still larger on resamples
        - "demographic_parity_difference", "equalized_odds_difference": the same of classifications
        - "apart": by name the groups that are in none of these, "samples" and "reason"
        - "resamples"

    Raises:
        CardError: if the card names no subgroups, or the task has no labels.
    """
    task = comparison.task
    before, after = comparison.original_run.statistics, comparison.compressed_run.statistics
    columns = task.groups("test")
    if not columns:
        raise CardError(
            f"Card {task.card.name!r}: fairness compares subgroups, and the card names none. Name "
            "the dataset's columns that tell them, such as 'data: {groups: [language]}'."
        )
    if task.metric is None or not before or not after:
        raise CardError(
            f"Card {task.card.name!r}: fairness compares a metric, and the task {task.name!r} has "
            "no labels. Use a task that has, or leave 'fairness' out of what is measured."
        )
    found = {}
    for done, (column, names) in enumerate(columns.items()):
        progress(column, done / len(columns))
        found[column] = compare_groups(task, before, after, names, comparison.seed)
    return {
        "metric": task.metric,
        "better": better(task, task.metric),
        "confidence": CONFIDENCE,
        "columns": found,
    }


def compare_groups(
    task: Task, original: Rows, compressed: Rows, names: Sequence[str], seed: int
) -> dict[str, Any]:
    """Compare both models between the subgroups that `names` [samples] tell; see `measure`."""
    groups: dict[str, Tensor] = {}
    apart: dict[str, dict[str, Any]] = {}
    for name in sorted(set(names)):
        rows = torch.tensor([row for row, each in enumerate(names) if each == name])
        reason = _unfit(task, rows, original, compressed)
        if reason:
            apart[name] = {"samples": len(rows), "reason": reason}
        else:
            groups[name] = rows
    found: dict[str, Any] = {"groups": {}, "gap": None, "apart": apart, "resamples": 0}
    if not groups:
        return found
    chosen = torch.cat(list(groups.values()))
    numbers = torch.cat([torch.full_like(rows, i) for i, rows in enumerate(groups.values())])
    a, b = ({**_select(each, chosen), _GROUP: numbers} for each in (original, compressed))

    def figures(rows: Rows) -> dict[str, float]:
        return disparities(task, rows, list(groups))

    drawn = bootstrap(a, b, figures, seed=seed, confidence=CONFIDENCE)
    before, after = figures(a), figures(b)
    found["resamples"] = drawn.resamples
    for name in before:
        row = {
            "original": before[name],
            "compressed": after[name],
            "difference": after[name] - before[name],
        }
        intervals = interval_entries(drawn.intervals.get(name))
        if name.startswith(_GROUP):
            group = name.removeprefix(_GROUP)
            found["groups"][group] = {"samples": len(groups[group]), **row, **intervals}
        else:
            found[name] = {**row, "difference_interval": intervals["difference_interval"]}
    return found


def disparities(task: Task, rows: Rows, names: Sequence[str]) -> dict[str, float]:
    """Return each group's metric as "subgroup" + its name, and how far the groups lie apart.

    Raises:
        ValueError: if the metric has no value on a group.
    """
    groups = rows[_GROUP]
    statistics = {name: values for name, values in rows.items() if name != _GROUP}
    values = {
        _GROUP + name: _metric(task, _select(statistics, groups == number))
        for number, name in enumerate(names)
    }
    if len(names) < 2:
        return values
    found = {**values, "gap": max(values.values()) - min(values.values())}
    if is_classification(rows):
        target, predicted = rows["target"], rows["predicted"]
        found["demographic_parity_difference"] = demographic_parity_difference(predicted, groups)
        found["equalized_odds_difference"] = equalized_odds_difference(target, predicted, groups)
    return found


def demographic_parity_difference(predicted: Tensor, groups: Tensor) -> float:
    """Return how much more often a class is predicted in one group than in another, at most.

    Of two classes this is the usual difference of selection rates; of more, that of the class for
    which it is the largest.

    Args:
        predicted: [samples], int64.
        groups: [samples], int64.

    Source: Agarwal et al. 2018, arXiv:1803.02453, definition 1.
    """
    return max(_spread(predicted == label, groups) for label in predicted.unique())


def equalized_odds_difference(target: Tensor, predicted: Tensor, groups: Tensor) -> float:
    """Return the largest difference between groups of a class's true or false positive rate.

    Of more than two classes each against the others. A group without samples of a class, or with
    no others, has no such rate and is not compared.

    Args:
        target: [samples], int64.
        predicted: [samples], int64.
        groups: [samples], int64.

    Source: Hardt et al. 2016, arXiv:1610.02413; Agarwal et al. 2018, arXiv:1803.02453.
    """
    largest = 0.0
    for label in torch.cat([target, predicted]).unique():
        for among in (target == label, target != label):
            largest = max(largest, _spread((predicted == label)[among], groups[among]))
    return largest


def _spread(chosen: Tensor, groups: Tensor) -> float:
    """Return the largest difference between groups of the share of `chosen` [samples], bool."""
    _, which = groups.unique(return_inverse=True)
    totals = torch.bincount(which).double()
    if len(totals) < 2:
        return 0.0
    rates = torch.bincount(which, weights=chosen.double()) / totals
    return float(rates.max() - rates.min())


def _metric(task: Task, rows: Rows) -> float:
    """Return the metric that the task is judged by.

    Raises:
        ValueError: if it has no value on these rows.
    """
    assert task.metric is not None
    value = task.metrics(rows)[task.metric]
    if not math.isfinite(value):
        raise ValueError(f"its {task.metric} is {value}")
    return value


def _unfit(task: Task, rows: Tensor, *models: Rows) -> str:
    """Return why a subgroup cannot be compared, empty if it can."""
    if len(rows) < LEAST_SAMPLES:
        return f"{len(rows)} sample says nothing of a group; {LEAST_SAMPLES} are the least"
    try:
        for statistics in models:
            _metric(task, _select(statistics, rows))
    except ValueError as error:
        return str(error)
    return ""


def _select(statistics: Rows, rows: Tensor) -> dict[str, Tensor]:
    return {name: values[rows] for name, values in statistics.items()}
