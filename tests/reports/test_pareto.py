"""The Pareto front is what its definition says."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, strategies as st

from zoopress.reports.pareto import pareto_front

Point = tuple[float | None, ...]

# Few values, so that ties and equal points are common.
MEASURES = st.one_of(st.none(), st.integers(0, 4).map(float), st.floats(-1e6, 1e6))


def points(measures: st.SearchStrategy[float | None] = MEASURES) -> st.SearchStrategy[list[Point]]:
    return st.integers(1, 3).flatmap(
        lambda size: st.lists(st.tuples(*[measures] * size), max_size=30)
    )


def dominates(one: Point, other: Point) -> bool:
    """The definition: at least as good in all, better in one; a missing measure is the worst."""
    a, b = ([-math.inf if value is None else value for value in point] for point in (one, other))
    pairs = list(zip(a, b, strict=True))
    return all(x >= y for x, y in pairs) and any(x > y for x, y in pairs)


@given(points())
def test_a_point_is_on_the_front_exactly_if_no_other_dominates_it(
    given_points: list[Point],
) -> None:
    expected = [
        not any(dominates(other, point) for other in given_points) for point in given_points
    ]
    assert pareto_front(given_points) == expected


@given(points())
def test_what_is_not_on_the_front_is_dominated_by_something_on_it(
    given_points: list[Point],
) -> None:
    flags = pareto_front(given_points)
    front = [point for point, flag in zip(given_points, flags, strict=True) if flag]
    for point, flag in zip(given_points, flags, strict=True):
        assert flag or any(dominates(member, point) for member in front)
    assert front or not given_points


@given(st.data(), points())
def test_the_order_of_points_does_not_matter(
    data: st.DataObject, given_points: list[Point]
) -> None:
    order = data.draw(st.permutations(range(len(given_points))))
    flags = pareto_front(given_points)
    assert pareto_front([given_points[i] for i in order]) == [flags[i] for i in order]


@given(points(st.one_of(st.none(), st.integers(-1000, 1000).map(float))))
def test_only_the_order_of_measures_counts(given_points: list[Point]) -> None:
    def rescaled(point: Point) -> Point:
        return tuple(None if value is None else value**3 + 7 for value in point)

    assert pareto_front([rescaled(point) for point in given_points]) == pareto_front(given_points)


@given(points(), points())
def test_more_points_only_take_from_the_front(some: list[Point], more: list[Point]) -> None:
    if some and more and len(some[0]) != len(more[0]):
        with pytest.raises(ValueError, match="same measures"):
            pareto_front([*some, *more])
        return
    before, after = pareto_front(some), pareto_front([*some, *more])
    assert all(was for was, still in zip(before, after, strict=False) if still)


def test_equal_points_are_on_the_front_together() -> None:
    assert pareto_front([(2.0, 1.0), (2.0, 1.0), (1.0, 1.0)]) == [True, True, False]


def test_a_missing_measure_loses_a_tie_and_may_still_win_elsewhere() -> None:
    assert pareto_front([(2.0, None), (2.0, 0.5)]) == [False, True]
    assert pareto_front([(3.0, None), (2.0, 0.5)]) == [True, True]
    assert pareto_front([(2.0, math.nan), (2.0, 0.5)]) == [False, True]
