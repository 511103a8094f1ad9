"""One option of each group: as good as trying all, or off by no more than the gap told."""

from itertools import product

import numpy as np
import pytest
from hypothesis import given, strategies as st

from zoopress_plugins.quantization.bit_allocation.knapsack import (
    Choice,
    InfeasibleError,
    Numbers,
    choose,
)

NUMBER = st.one_of(st.integers(0, 12).map(float), st.floats(0, 1e3, allow_subnormal=False))
GROUP = st.lists(st.tuples(NUMBER, NUMBER), min_size=1, max_size=4)
GROUPS = st.lists(GROUP, min_size=1, max_size=5)


def numbers(groups: list[list[tuple[float, float]]]) -> tuple[list[Numbers], list[Numbers]]:
    costs = [np.array([cost for cost, _ in group]) for group in groups]
    return costs, [np.array([damage for _, damage in group]) for group in groups]


def by_trying_all(groups: list[list[tuple[float, float]]], budget: float) -> float | None:
    """The least damage that any choice within the budget does."""
    sums = [[sum(part) for part in zip(*chosen, strict=True)] for chosen in product(*groups)]
    return min((d for c, d in sums if c <= budget * (1 + 1e-12)), default=None)


def check(choice: Choice, groups: list[list[tuple[float, float]]], budget: float) -> None:
    chosen = [group[option] for group, option in zip(groups, choice.options, strict=True)]
    assert choice.cost == pytest.approx(sum(cost for cost, _ in chosen))
    assert choice.damage == pytest.approx(sum(damage for _, damage in chosen))
    assert choice.cost <= budget * (1 + 1e-9) + 1e-9


@given(groups=GROUPS, share=st.floats(0, 1.2))
def test_it_equals_trying_all_choices(
    groups: list[list[tuple[float, float]]], share: float
) -> None:
    costs, damages = numbers(groups)
    budget = share * sum(group.max() for group in costs)
    expected = by_trying_all(groups, budget)
    if expected is None:
        with pytest.raises(InfeasibleError) as refused:
            choose(costs, damages, budget)
        assert refused.value.least == pytest.approx(sum(group.min() for group in costs))
        return
    choice = choose(costs, damages, budget)
    check(choice, groups, budget)
    assert choice.damage == pytest.approx(expected, rel=1e-9, abs=1e-9)
    assert choice.gap <= 1e-9


@given(groups=GROUPS, share=st.floats(0, 1), room=st.integers(1, 3))
def test_with_little_room_the_gap_that_is_told_holds(
    groups: list[list[tuple[float, float]]], share: float, room: int
) -> None:
    costs, damages = numbers(groups)
    budget = share * sum(group.max() for group in costs)
    expected = by_trying_all(groups, budget)
    if expected is None:
        return
    choice = choose(costs, damages, budget, most=room)
    check(choice, groups, budget)
    assert choice.bound <= expected + 1e-9 * (1 + expected)
    assert choice.damage >= expected - 1e-9 * (1 + expected)


@given(groups=GROUPS, first=st.floats(0, 1), second=st.floats(0, 1))
def test_more_budget_never_does_more_damage(
    groups: list[list[tuple[float, float]]], first: float, second: float
) -> None:
    costs, damages = numbers(groups)
    least, most = (sum(f(group) for group in costs) for f in (np.min, np.max))
    small, large = (least + share * (most - least) for share in sorted((first, second)))
    tight, loose = (choose(costs, damages, budget) for budget in (small, large))
    assert loose.damage <= tight.damage + 1e-9 * (1 + tight.damage)


def test_as_many_layers_as_models_have_are_solved_exactly() -> None:
    generator = np.random.default_rng(0)
    bits = np.array([2, 3, 4, 5, 6, 7, 8, 32])
    sizes = generator.integers(1_000, 500_000, 120)
    costs = [size * bits / 8 for size in sizes]
    damages = [4.0**-bits * generator.lognormal(0, 2) for _ in sizes]
    choice = choose(costs, damages, 4.3 / 8 * float(sizes.sum()))
    assert choice.gap == 0
