"""The search finds the least effort that meets a target, in few trials, whatever the curve."""

import math
from collections.abc import Callable

import pytest
from hypothesis import given, strategies as st

from zoopress_plugins.quantization.rate_distortion.target_search import (
    MOST_TRIALS,
    Search,
    Trial,
    least_met,
    run_search,
)


def search(**changes: float) -> Search:
    given = {"start": 0.0, "rise": 1.0, "lowest": -30.0, "highest": 30.0}
    return Search(**{**given, "tolerance": 0.01, "resolution": 0.05, **changes})


def trials_of(
    curve: Callable[[float], float], known: list[Trial] | None = None, **changes: float
) -> list[Trial]:
    return run_search(search(**changes), lambda effort: Trial(effort, curve(effort)), known or [])


@given(root=st.floats(-25, 25), rise=st.floats(0.2, 5), bend=st.floats(-0.4, 0.4))
def test_the_least_effort_is_found_to_the_tolerance_or_the_resolution(
    root: float, rise: float, bend: float
) -> None:
    def curve(effort: float) -> float:
        distance = effort - root
        return rise * (distance + bend * math.sin(distance))

    trials = trials_of(curve)
    met = least_met(trials)
    assert met is not None
    assert met.surplus >= 0
    assert met.surplus <= 0.01 or met.effort - root <= 0.05 + 1e-9
    assert len(trials) <= MOST_TRIALS


@pytest.mark.parametrize("root", [-9.0, -2.0, 0.5, 3.0, 11.0])
def test_a_straight_curve_takes_three_trials(root: float) -> None:
    assert len(trials_of(lambda effort: effort - root, rise=1.0)) <= 3 + (abs(root) > 8)


@given(root=st.floats(-10, 10))
def test_a_staircase_ends_at_the_resolution(root: float) -> None:
    # Label loyalty of few samples knows no values between two steps.
    trials = trials_of(lambda effort: math.floor(effort - root) + 0.5)
    met = least_met(trials)
    assert met is not None
    assert met.effort - math.ceil(root - 0.5) <= 1.5
    assert len(trials) <= MOST_TRIALS


@given(
    root=st.floats(-10, 10),
    noise=st.lists(st.floats(-0.3, 0.3), min_size=MOST_TRIALS, max_size=MOST_TRIALS),
)
def test_noise_neither_loops_nor_passes_a_miss_for_a_hit(root: float, noise: list[float]) -> None:
    left = iter(noise)
    trials = trials_of(lambda effort: effort - root + next(left))
    met = least_met(trials)
    assert met is not None
    assert met.surplus >= 0
    assert abs(met.effort - root) <= 1


def test_what_cannot_be_met_is_tried_at_the_highest_effort_and_given_up() -> None:
    trials = trials_of(lambda effort: -1.0 - 2.0**-effort)
    assert least_met(trials) is None
    assert trials[-1].effort == 30
    assert len(trials) <= MOST_TRIALS


def test_what_is_always_met_takes_the_lowest_effort() -> None:
    trials = trials_of(lambda effort: 5.0)
    met = least_met(trials)
    assert met is not None
    assert met.effort == -30


@given(root=st.floats(-10, 10), kept=st.integers(0, 12))
def test_a_killed_search_goes_on_as_if_it_had_not_been(root: float, kept: int) -> None:
    def curve(effort: float) -> float:
        return effort - root + 0.3 * math.sin(3 * effort)

    whole = trials_of(curve)
    told: list[int] = []
    again = run_search(
        search(),
        lambda effort: Trial(effort, curve(effort)),
        whole[:kept],
        lambda trials: told.append(len(trials)),
    )
    assert again == whole
    assert told == list(range(min(kept, len(whole)) + 1, len(whole) + 1))
