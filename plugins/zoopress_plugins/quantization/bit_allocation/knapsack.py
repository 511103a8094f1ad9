"""The multiple-choice knapsack: one option of each group, least damage within a budget.

A Lagrange multiplier gives a bound that no choice can beat and a choice near it; between the two a
dynamic program keeps the partial choices that no other partial choice is as good as, and that the
bound does not rule out. It is exact unless more of them are left than fit; then the bound falls to
that of the best that was dropped, so the gap that is told always holds.

Sources: Everett 1963, doi:10.1287/opre.11.3.399 (multipliers); Pisinger 1995,
doi:10.1016/0377-2217(95)00015-I (dynamic programming with bounds).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[np.float64]

MOST_PARTIAL_CHOICES = 1 << 17
_HALVINGS = 100
_ROUNDING = 1e-12
"""Of sums: what is within it counts as equal."""


class InfeasibleError(Exception):
    """Even the least costs are more than the budget.

    Attributes:
        least: their sum.
    """

    def __init__(self, least: float) -> None:
        super().__init__(f"the least cost is {least:g}")
        self.least = least


@dataclass(frozen=True)
class Choice:
    """One option of each group.

    Attributes:
        options: their positions.
        cost: together.
        damage: together.
        bound: no choice within the budget has less damage.
    """

    options: tuple[int, ...]
    cost: float
    damage: float
    bound: float

    @property
    def gap(self) -> float:
        """How much better the best choice may be, relative to this one's damage; 0 if exact."""
        return 0.0 if self.damage <= self.bound else (self.damage - self.bound) / self.damage


def choose(
    costs: Sequence[Numbers],
    damages: Sequence[Numbers],
    budget: float,
    most: int = MOST_PARTIAL_CHOICES,
) -> Choice:
    """Choose one option of each group with the least sum of damages within a budget of costs.

    Args:
        costs: for each group [options], finite, 0 or more.
        damages: the same.
        budget: that the costs' sum may not exceed.
        most: partial choices that are kept at a time; fewer make it faster and inexact.

    Raises:
        InfeasibleError: if no choice is within the budget.
    """
    least = float(sum(group.min() for group in costs))
    budget = budget + _ROUNDING * abs(budget)
    if least > budget:
        raise InfeasibleError(least)
    multiplier, start, bound = _relax(costs, damages, budget)
    start = _filled(costs, damages, budget, start)
    ceiling = _sum(damages, start)
    slack = _ROUNDING * max(ceiling, 1e-300)
    if ceiling - bound <= slack:
        return Choice(start, _sum(costs, start), ceiling, ceiling)
    found, dropped = _partial_choices(
        costs, damages, budget, multiplier, bound, ceiling + slack, most
    )
    best = start if found is None else min(start, found, key=lambda c: _sum(damages, c))
    damage = _sum(damages, best)
    return Choice(best, _sum(costs, best), damage, min(damage, dropped))


def _relax(
    costs: Sequence[Numbers], damages: Sequence[Numbers], budget: float
) -> tuple[float, tuple[int, ...], float]:
    """Return the best multiplier, a choice within the budget, and the bound it gives."""

    def at(multiplier: float) -> tuple[tuple[int, ...], float]:
        chosen, total = [], -multiplier * budget
        for cost, damage in zip(costs, damages, strict=True):
            sums = damage + multiplier * cost
            # Of equals the cheapest, or a multiplier without bound would not reach the budget.
            position = int(np.lexsort((cost, sums))[0])
            chosen.append(position)
            total += float(sums[position])
        return tuple(chosen), total

    chosen, bound = at(0.0)
    if _sum(costs, chosen) <= budget:
        return 0.0, chosen, bound
    scale = sum(float(np.ptp(damage)) for damage in damages) / max(budget, 1e-300)
    low, high = 0.0, max(scale, 1e-300)
    best = (bound, 0.0)
    while True:
        chosen, bound = at(high)
        best = max(best, (bound, high))
        if _sum(costs, chosen) <= budget or high > 1e280:
            break
        low, high = high, high * 8
    feasible = chosen
    if _sum(costs, feasible) > budget:
        feasible = tuple(int(np.lexsort((d, c))[0]) for c, d in zip(costs, damages, strict=True))
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        chosen, bound = at(middle)
        best = max(best, (bound, middle))
        if _sum(costs, chosen) <= budget:
            high, feasible = middle, chosen
        else:
            low = middle
        if high - low <= 1e-15 * high:
            break
    return best[1], feasible, best[0]


def _filled(
    costs: Sequence[Numbers], damages: Sequence[Numbers], budget: float, chosen: tuple[int, ...]
) -> tuple[int, ...]:
    """Spend what is left of the budget where it saves the most damage, until nothing fits."""
    options = list(chosen)
    left = budget - _sum(costs, chosen)
    while True:
        best: tuple[float, int, int] | None = None
        for group, now in enumerate(options):
            saved = damages[group][now] - damages[group]
            fits = (costs[group] - costs[group][now] <= left) & (saved > 0)
            if fits.any():
                option = int(np.where(fits, saved, -np.inf).argmax())
                if best is None or saved[option] > best[0]:
                    best = (float(saved[option]), group, option)
        if best is None:
            return tuple(options)
        _, group, option = best
        left -= float(costs[group][option] - costs[group][options[group]])
        options[group] = option


def _partial_choices(
    costs: Sequence[Numbers],
    damages: Sequence[Numbers],
    budget: float,
    multiplier: float,
    bound: float,
    ceiling: float,
    most: int,
) -> tuple[tuple[int, ...] | None, float]:
    """Return the best choice below the ceiling, None if there is none, and what was dropped.

    The last is the least bound of the partial choices that there was no room for, infinite if none.
    """
    reduced = [damage + multiplier * cost for cost, damage in zip(costs, damages, strict=True)]
    reduced = [group - group.min() for group in reduced]
    # What is settled first is what differs most: more is ruled out early.
    order = sorted(range(len(costs)), key=lambda g: -float(np.ptp(reduced[g])))
    rest = np.cumsum([0.0, *(float(costs[g].min()) for g in reversed(order))])[::-1]
    cost, damage, above = np.zeros(1), np.zeros(1), np.zeros(1)
    steps: list[tuple[NDArray[np.intp], NDArray[np.intp]]] = []
    dropped = float("inf")
    for done, group in enumerate(order, start=1):
        grown = [
            (each[:, None] + own[group][None, :]).ravel()
            for each, own in ((cost, costs), (damage, damages), (above, reduced))
        ]
        kept = np.flatnonzero(
            (grown[0] + rest[done] <= budget)
            & (bound + grown[2] <= ceiling)
            & (grown[1] <= ceiling)
        )
        kept = kept[np.lexsort((grown[1][kept], grown[0][kept]))]
        falling = np.minimum.accumulate(grown[1][kept])
        kept = kept[np.concatenate(([True], grown[1][kept][1:] < falling[:-1]))[: len(kept)]]
        if len(kept) > most:
            ranked = kept[np.argsort(grown[2][kept], kind="stable")]
            dropped = min(dropped, bound + float(grown[2][ranked[most]]))
            kept = np.sort(ranked[:most])
        if not len(kept):
            return None, dropped
        cost, damage, above = (each[kept] for each in grown)
        steps.append(np.divmod(kept, len(costs[group])))
    position = int(damage.argmin())
    options = [0] * len(costs)
    for group, (parents, taken) in zip(reversed(order), reversed(steps), strict=True):
        options[group] = int(taken[position])
        position = int(parents[position])
    return tuple(options), dropped


def _sum(values: Sequence[Numbers], options: Sequence[int]) -> float:
    return float(sum(group[option] for group, option in zip(values, options, strict=True)))
