"""Collect garbage: choose what to remove, and remove what no living run uses."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

HOUR_S = 3600.0


@dataclass(frozen=True)
class Stored:
    """A result as collection sees it."""

    key: str
    seconds_unused: float
    """Since its last use; zero if that is said to lie in the future."""
    contents: Mapping[str, int]
    """Bytes of what it holds. Results of a shared store may hold the same under the same name."""
    record: Mapping[str, Any] = field(default_factory=dict)

    @property
    def bytes(self) -> int:
        return sum(self.contents.values())


@dataclass(frozen=True)
class Policy:
    """What may stay.

    Attributes:
        max_age_s: results that were used in this time stay; None: age removes nothing.
        max_size_bytes: if there is more, the longest unused go; None: size removes nothing.
        keep: keys that stay in any case.
        grace_s: results that were used in this time stay in any case.
    """

    max_age_s: float | None = None
    max_size_bytes: int | None = None
    keep: frozenset[str] = frozenset()
    grace_s: float = HOUR_S


@dataclass
class Collected:
    """What collection did, or would do."""

    removed: list[str] = field(default_factory=list)
    removed_bytes: int = 0
    left: int = 0
    left_bytes: int = 0
    reachable: int = 0
    """How many of those left are kept because something refers to them."""
    in_use: int = 0
    """How many of those left are used by a living run."""
    leftovers: int = 0
    """Pieces of dead runs, damaged results and stale locks that were removed as well."""


def total_bytes(stored: Iterable[Stored]) -> int:
    """Return the bytes of all results, each content counted once."""
    return sum({name: size for one in stored for name, size in one.contents.items()}.values())


def choose(stored: Iterable[Stored], policy: Policy) -> list[Stored]:
    """Return what to remove: first what is too old, then the longest unused until the rest fits."""
    stored = list(stored)
    holders = Counter(name for one in stored for name in one.contents)
    total = total_bytes(stored)
    max_age_s = math.inf if policy.max_age_s is None else policy.max_age_s
    max_size = math.inf if policy.max_size_bytes is None else policy.max_size_bytes
    chosen = []
    for one in sorted(stored, key=lambda one: (-one.seconds_unused, one.key)):
        too_old = one.seconds_unused > max_age_s
        if not too_old and total <= max_size:
            break
        if one.key in policy.keep or one.seconds_unused < policy.grace_s:
            continue
        chosen.append(one)
        holders.subtract(one.contents.keys())
        total -= sum(size for name, size in one.contents.items() if not holders[name])
    return chosen
