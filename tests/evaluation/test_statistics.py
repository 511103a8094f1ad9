"""Intervals and McNemar's test: by hand, beside SciPy, and on data whose truth is known."""

from __future__ import annotations

import math
from collections.abc import Mapping

import pytest
import scipy.stats
import torch
from hypothesis import given, settings, strategies as st
from torch import Tensor

from zoopress.evaluation import statistics
from zoopress.evaluation.statistics import bootstrap, mcnemar, mean_interval

Rows = Mapping[str, Tensor]


def mean(rows: Rows) -> dict[str, float]:
    return {"mean": float(rows["value"].double().mean())}


def of(values: Tensor) -> dict[str, Tensor]:
    return {"value": values}


def normal(count: int, seed: int) -> Tensor:
    return torch.randn(count, generator=torch.Generator().manual_seed(seed))


def right(share: float, count: int, seed: int) -> Tensor:
    return torch.rand(count, generator=torch.Generator().manual_seed(seed)) < share


def test_the_interval_of_a_mean_is_about_that_of_the_normal_distribution() -> None:
    values = normal(400, 0)
    low, high = mean_interval(values)
    half = 1.96 * float(values.std()) / math.sqrt(400)
    assert low == pytest.approx(float(values.mean()) - half, abs=0.15 * half)
    assert high == pytest.approx(float(values.mean()) + half, abs=0.15 * half)


def test_intervals_are_scipys() -> None:
    values = normal(60, 1)
    expected = scipy.stats.bootstrap(
        (values.numpy(),), lambda x, axis: x.mean(axis), method="percentile", rng=0
    ).confidence_interval
    low, high = mean_interval(values, resamples=5000)
    half = (high - low) / 2
    assert low == pytest.approx(expected.low, abs=0.1 * half)
    assert high == pytest.approx(expected.high, abs=0.1 * half)


def test_nineteen_of_twenty_intervals_hold_the_truth() -> None:
    held = sum(
        low <= 0.0 <= high
        for low, high in (mean_interval(normal(80, seed), resamples=300) for seed in range(200))
    )
    assert 0.89 <= held / 200 <= 0.99


def test_a_metric_drop_is_paired() -> None:
    # Much noise that both share: the difference is certain though neither mean is.
    noise = 100 * normal(200, 0)
    found = bootstrap(of(noise), of(noise + 1), mean, resamples=300).intervals["mean"]
    assert found.original[1] - found.original[0] > 10
    assert found.difference == pytest.approx((1.0, 1.0), abs=1e-4)


def test_the_difference_is_compressed_minus_original() -> None:
    found = bootstrap(of(normal(50, 0) + 5), of(normal(50, 1)), mean, resamples=200)
    assert found.intervals["mean"].difference[1] < 0
    assert found.resamples == 200


def test_one_seed_gives_one_result() -> None:
    rows = of(normal(30, 0)), of(normal(30, 1))
    assert bootstrap(*rows, mean, seed=3) == bootstrap(*rows, mean, seed=3)
    assert bootstrap(*rows, mean, seed=3) != bootstrap(*rows, mean, seed=4)


def test_the_callers_random_state_stays() -> None:
    before = torch.get_rng_state()
    bootstrap(of(normal(9, 0)), of(normal(9, 1)), mean, resamples=10)
    assert torch.equal(before, torch.get_rng_state())


@settings(max_examples=25)
@given(st.lists(st.floats(-1e3, 1e3, width=32), min_size=2, max_size=12), st.integers(0, 99))
def test_intervals_lie_within_the_values(values: list[float], seed: int) -> None:
    low, high = mean_interval(torch.tensor(values), resamples=50, seed=seed)
    assert min(values) - 1e-3 <= low <= high <= max(values) + 1e-3


def test_more_confidence_is_a_wider_interval() -> None:
    narrow, wide = (mean_interval(normal(50, 0), confidence=c) for c in (0.5, 0.99))
    assert wide[0] < narrow[0] < narrow[1] < wide[1]


def test_equal_models_differ_by_nothing() -> None:
    rows = of(right(0.9, 500, 0).float())
    assert bootstrap(rows, rows, mean, resamples=100).intervals["mean"].difference == (0.0, 0.0)


def test_resamples_without_a_value_are_left_out() -> None:
    def only_with_both_ends(rows: Rows) -> dict[str, float]:
        if float(rows["value"].max()) < 5:
            raise ValueError("no five")
        return mean(rows)

    values = torch.tensor([0.0, 1, 2, 3, 4, 5, 5, 5, 5, 5])
    found = bootstrap(of(values), of(values), only_with_both_ends, resamples=200)
    assert found.resamples == 200
    assert "mean" in found.intervals  # missed by a thousandth of the resamples
    rare = torch.tensor([0.0, 1, 2, 3, 4, 5])  # missed by a third
    assert bootstrap(of(rare), of(rare), only_with_both_ends, resamples=200).intervals == {}


def test_a_metric_that_is_not_finite_has_no_interval_and_others_do() -> None:
    def both(rows: Rows) -> dict[str, float]:
        return {**mean(rows), "broken": math.nan}

    found = bootstrap(of(normal(9, 0)), of(normal(9, 1)), both, resamples=20)
    assert found.intervals.keys() == {"mean"}


@pytest.mark.parametrize(("most", "resamples"), [(9 * 300, 300), (9 * 20, 100), (9 * 5000, 1000)])
def test_many_rows_are_resampled_less_often(
    most: int, resamples: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(statistics, "MOST_ROWS", most)
    rows = of(normal(9, 0))
    assert bootstrap(rows, rows, mean).resamples == resamples


@pytest.mark.parametrize(("one", "other"), [(3, 4), (1, 1)])
def test_too_few_samples_or_other_ones_are_an_error(one: int, other: int) -> None:
    with pytest.raises(ValueError, match="samples"):
        bootstrap(of(torch.zeros(one)), of(torch.zeros(other)), mean)


def test_mcnemar_by_hand() -> None:
    # Five only the original got right, one only the other: 2 · (C(6,0) + C(6,1)) / 2⁶ = 14/64.
    original = torch.tensor([True] * 5 + [False] + [True] * 10 + [False] * 4)
    compressed = torch.tensor([False] * 5 + [True] + [True] * 10 + [False] * 4)
    found = mcnemar(original, compressed)
    assert (found.right_to_wrong, found.wrong_to_right) == (5, 1)
    assert found.p_value == 14 / 64


def test_models_that_agree_do_not_differ() -> None:
    same = right(0.5, 30, 0)
    assert mcnemar(same, same).p_value == 1.0


counts = st.integers(0, 3000)


@given(counts, counts)
def test_mcnemar_is_scipys_binomial_test(lost: int, won: int) -> None:
    original = torch.tensor([True] * lost + [False] * won, dtype=torch.bool)
    p_value = mcnemar(original, ~original).p_value
    expected = scipy.stats.binomtest(lost, lost + won).pvalue if lost + won else 1.0
    assert p_value == pytest.approx(expected, rel=1e-9)


@given(counts, counts)
def test_many_differences_come_near_the_chi_squared_form(lost: int, won: int) -> None:
    lost, won = lost + 500, won + 500
    original = torch.tensor([True] * lost + [False] * won)
    corrected = max(0, abs(lost - won) - 1) ** 2 / (lost + won)
    p_value = mcnemar(original, ~original).p_value
    assert p_value == pytest.approx(scipy.stats.chi2.sf(corrected, 1), abs=2e-3)


def test_answers_to_other_questions_are_an_error() -> None:
    with pytest.raises(ValueError, match="same samples"):
        mcnemar(right(0.5, 3, 0), right(0.5, 4, 0))
