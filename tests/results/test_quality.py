"""The guard on quality: what it judges by, what lifts it, and what it says."""

import math
from dataclasses import asdict, replace
from typing import Any

import pytest

from reports.samples import labelled, stage, unlabelled
from zoopress.recipes import Targets
from zoopress.reports.quality_words import unlike_words
from zoopress.reports.report import markdown
from zoopress.results import Fidelity, Quality, Report
from zoopress.results.quality import judge_quality


def judged(targets: Targets | None = None, **changes: Any) -> Quality:
    result = replace(stage("pruning", 100, 50, 0.99), **changes)
    return judge_quality(result, targets or Targets())


@pytest.mark.parametrize(
    ("fidelity", "problem"),
    [
        (Fidelity(8, 0.9, 0.8), ""),
        (Fidelity(8, 0.9), ""),
        (Fidelity(8, 0.899, 0.9), "cosine is 0.899, the bound 0.9"),
        (Fidelity(8, 0.95, 0.79), "label loyalty is 0.79, the bound 0.8"),
        (
            Fidelity(8, 0.0912, 0.3),
            "cosine is 0.0912, the bound 0.9; label loyalty is 0.3, the bound 0.8",
        ),
        (Fidelity(8, math.nan), "cosine is no number, the bound 0.9"),
    ],
)
def test_without_labels_outputs_must_stay_the_originals(fidelity: Fidelity, problem: str) -> None:
    quality = judged(fidelity=fidelity)
    assert quality.problem == problem
    assert quality.like_original == (not problem)


@pytest.mark.parametrize(
    ("value", "drop", "lower_is_better", "like"),
    [
        (0.81, 0.09, False, True),  # of 0.9
        (0.80, 0.10, False, False),
        (0.95, -0.05, False, True),
        (11.0, 1.0, True, True),  # of 10
        (11.2, 1.2, True, False),
        (8.0, -2.0, True, True),
        (math.nan, math.nan, False, False),
        (-0.1, 0.1, False, False),  # of 0: nothing is a tenth of it
    ],
)
def test_with_labels_the_metric_alone_decides(
    value: float, drop: float, lower_is_better: bool, like: bool
) -> None:
    quality = judged(
        metrics={"score": value},
        metric="score",
        metric_drop=drop,
        lower_is_better=lower_is_better,
        fidelity=Fidelity(8, 0.1, 0.1),
    )
    assert [each.quantity for each in quality.judged] == ["score"]
    assert quality.like_original is like


def test_a_target_lifts_the_guard_of_its_own_quantity_alone() -> None:
    bad = Fidelity(8, 0.1, 0.1)
    assert judged(Targets(min_cosine=0.05), fidelity=bad).targets == ["min_label_loyalty"]
    both = judged(Targets(min_cosine=0.05, min_label_loyalty=0.0), fidelity=bad)
    assert (both.judged, both.lifted) == ([], ["min_cosine", "min_label_loyalty"])
    assert both.like_original
    score: dict[str, Any] = {"metrics": {"score": 0.1}, "metric": "score", "metric_drop": 0.8}
    assert judged(Targets(min_cosine=0.05), **score).targets == ["max_metric_drop"]
    assert judged(Targets(max_metric_drop=0.9), **score).like_original
    assert judged(Targets(worst_metric=0.05), **score).like_original


def with_cosines(*cosines: float, targets: dict[str, Any] | None = None) -> Report:
    stages = [stage("pruning", 100, 90, c, fidelity=Fidelity(8, c)) for c in cosines]
    return replace(
        unlabelled(),
        stages=stages,
        recipe={"name": "r", "targets": targets or {}, "stages": [{} for _ in stages]},
    )


def test_a_chain_is_judged_at_its_end_and_says_since_when_it_is_bad() -> None:
    recovered = with_cosines(0.3, 0.97)
    assert [each.like_original for each in recovered.judged] == [False, True]
    assert unlike_words(recovered) == ""
    assert recovered.metrics()["like_original"] is True
    ruined = with_cosines(0.5, 0.95, 0.4, 0.3)
    assert unlike_words(ruined) == (
        "UNLIKE THE ORIGINAL: cosine is 0.3, the bound 0.9; so since stage 3 (pruning)."
    )
    assert ruined.metrics()["like_original"] is False
    text = markdown(ruined)
    assert "**⚠ UNLIKE THE ORIGINAL" in text
    assert [line.count("⚠") for line in text.splitlines() if "`pruning`" in line] == [1, 0, 1, 1]
    assert unlike_words(with_cosines(0.3, targets={"min_cosine": 0.2})) == ""


def test_a_report_survives_plain_data_and_an_old_one_without_the_field_is_judged_anew() -> None:
    report = with_cosines(0.3)
    recorded = replace(report, quality=report.judged)
    assert Report.from_dict(recorded.as_dict()) == recorded
    old = report.as_dict()
    del old["quality"], old["stages"][0]["layers"]
    read = Report.from_dict(old)
    assert read.quality == []
    assert not read.last_judged.like_original
    assert Quality.from_dict(asdict(report.judged[0])) == report.judged[0]
    assert labelled().last_judged.like_original
