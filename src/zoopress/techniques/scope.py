"""Which weights a stage is about: told from names and kinds alone, before there is a model."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase


@dataclass(frozen=True)
class Scope:
    """Weights by kind and by name.

    Patterns alone do not always tell what two scopes have in common: the questions below are
    answered by yes only where it is sure.

    Attributes:
        kinds: kinds of weights; None for all.
        include: shell patterns; a weight's name must match one.
        exclude: shell patterns; a weight's name must match none.
    """

    kinds: tuple[str, ...] | None = None
    include: tuple[str, ...] = ("*",)
    exclude: tuple[str, ...] = ()

    def has(self, kind: str, name: str) -> bool:
        """Return whether a weight is in it."""
        return (
            (self.kinds is None or kind in self.kinds)
            and any(fnmatchcase(name, pattern) for pattern in self.include)
            and not any(fnmatchcase(name, pattern) for pattern in self.exclude)
        )

    def surely_covers(self, other: Scope) -> bool:
        """Return whether every weight of `other` surely is in this one, whatever their kinds."""
        included = all(
            any(_is_within(theirs, ours) for ours in self.include) for theirs in other.include
        )
        excluded = all(
            any(_is_within(ours, theirs) for theirs in other.exclude)
            or all(_are_apart(ours, theirs) for theirs in other.include)
            for ours in self.exclude
        )
        return included and excluded

    def surely_misses(self, other: Scope) -> bool:
        """Return whether surely no weight is in both."""
        mine, theirs_too = self.kinds, other.kinds
        if mine is not None and theirs_too is not None and not set(mine) & set(theirs_too):
            return True
        return all(
            _are_apart(ours, theirs)
            or any(_is_within(ours, pattern) for pattern in other.exclude)
            or any(_is_within(theirs, pattern) for pattern in self.exclude)
            for ours in self.include
            for theirs in other.include
        )

    def __str__(self) -> str:
        parts = []
        if self.kinds is not None:
            parts.append(f"kinds {list(self.kinds)}")
        if self.include != ("*",):
            parts.append(f"include {list(self.include)}")
        if self.exclude:
            parts.append(f"exclude {list(self.exclude)}")
        return ", ".join(parts) or "all weights"


EVERYTHING = Scope()


def weights_below(include: Sequence[str], exclude: Sequence[str] = ()) -> Scope:
    """Return the weights of the modules that patterns over modules' names select."""

    def below(patterns: Sequence[str]) -> tuple[str, ...]:
        return tuple(each if each.endswith("*") else f"{each}.*" for each in patterns)

    return Scope(None, below(include), below(exclude))


_WILD = re.compile(r"[*?\[]")


def _is_within(inner: str, outer: str) -> bool:
    """Return whether all names of one pattern surely match another."""
    if inner == outer or outer == "*":
        return True
    # Read as a name, the inner pattern stands for all its names if only stars take in its wild
    # cards; a set's letters could be taken for a name's.
    return not set(outer) & set("?[") and "[" not in inner and fnmatchcase(inner, outer)


def _are_apart(one: str, other: str) -> bool:
    """Return whether surely no name matches both patterns."""
    heads = [_WILD.split(pattern)[0] for pattern in (one, other)]
    tails = [_WILD.split(pattern)[-1].rpartition("]")[2] for pattern in (one, other)]
    exact = [not _WILD.search(pattern) for pattern in (one, other)]
    if exact[0]:
        return not fnmatchcase(one, other)
    if exact[1]:
        return not fnmatchcase(other, one)
    return not (
        (heads[0].startswith(heads[1]) or heads[1].startswith(heads[0]))
        and (tails[0].endswith(tails[1]) or tails[1].endswith(tails[0]))
    )
