"""The Pareto front: what nothing else is better than in every way."""

from __future__ import annotations

import math
from collections.abc import Sequence

Point = Sequence[float | None]
"""Measures of one candidate, larger is better; None (or NaN) where one is missing."""


def pareto_front(points: Sequence[Point]) -> list[bool]:
    """Tell which points no other point dominates.

    One point dominates another if it is at least as good in every measure and better in one. Equal
    points do not dominate each other, so they are on the front together or not at all. A missing
    measure is worse than any value: what was not measured cannot be claimed.

    Args:
        points: all with the same measures in the same order.

    Returns:
        For each point, whether it is on the front.

    Raises:
        ValueError: if the points differ in the number of measures.
    """
    if len({len(point) for point in points}) > 1:
        raise ValueError("All points need the same measures; give None where one is missing.")
    known = [tuple(_comparable(value) for value in point) for point in points]
    front: list[tuple[float, ...]] = []
    # A point can only be dominated by one that sorts before it, and if so by one of the front.
    for point in sorted(set(known), reverse=True):
        if not any(_at_least(member, point) for member in front):
            front.append(point)
    members = set(front)
    return [point in members for point in known]


def _comparable(value: float | None) -> float:
    # In a tuple -inf sorts before every number; a measure that is really -inf is as bad as none.
    return -math.inf if value is None or math.isnan(value) else float(value)


def _at_least(one: tuple[float, ...], other: tuple[float, ...]) -> bool:
    return all(a >= b for a, b in zip(one, other, strict=True))
