"""Many dotted names as one short pattern, as a shell expands braces, and back, exactly.

    layer.{0..5}.attention.{self.{query,key,value},output.dense}

names 24 modules. `{a,b}` stands for each of its alternatives, which may be empty and may hold
braces; `{2..5}` for the numbers 2 to 5. A backslash before `\\`, `{`, `}` or `,` takes it as it is.
The rightmost braces run fastest.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, groupby, product, takewhile
from typing import TypeAlias

_DEPTH = 32
_MANY = 1 << 60  # counting goes no further: a short pattern may stand for 10 to the millions
_RANGE = re.compile(r"\{(0|[1-9][0-9]{0,8})\.\.([1-9][0-9]{0,8})\}")
_TOKEN = re.compile(r"\\(?P<escaped>[\\{},])|(?P<plain>[^\\{},]+)|(?P<special>[{},])")


def to_pattern(names: Iterable[str]) -> str:
    """Return the pattern that expands to these names, in their order.

    Raises:
        ValueError: if there are none.
    """
    # Cut at most so often, since a pattern may nest no deeper.
    split = [tuple(name.split(".", _DEPTH - 1)) for name in names]
    if not split:
        raise ValueError("no names to write as a pattern")
    return _alternatives(_heads(split))


def expand(pattern: str, max_names: int, max_characters: int) -> list[str]:
    """Return the names that a pattern stands for.

    The pattern need not be trusted: how much it stands for is known before anything is built.

    Raises:
        ValueError: if it is no pattern, or stands for more than allowed.
    """
    # Each brace and each comma stands for a name more, at least.
    if max(pattern.count("{"), pattern.count(",")) >= max_names:
        raise ValueError(f"pattern {_shown(pattern)} stands for more than {max_names:,} names")
    sequence, end = _parse(pattern, 0, 0)
    if end != len(pattern):
        raise ValueError(f"pattern {_shown(pattern)}: {pattern[end]!r} stands outside of braces")
    size = _size_of_sequence(sequence)
    if size.names > max_names or size.characters > max_characters:
        raise ValueError(
            f"pattern {_shown(pattern)} stands for more than {max_names:,} names or for more "
            f"than {max_characters:,} characters"
        )
    return list(_expand(sequence))


def _heads(names: Sequence[tuple[str, ...]]) -> list[str]:
    """Return patterns for names without a dot before them, a name's parts each."""
    heads: list[tuple[str, str]] = []
    for head, members in groupby(names, key=lambda parts: parts[0]):
        heads.append((head, _alternatives(_tails([parts[1:] for parts in members]))))
    merged = []
    for tail, group in groupby(heads, key=lambda pair: pair[1]):
        merged.append(_labels([head for head, _ in group]) + tail)
    return merged


def _tails(rests: Sequence[tuple[str, ...]]) -> list[str]:
    """Return patterns for what follows a part: nothing, or a dot and more parts."""
    tails: list[str] = []
    for ends, group in groupby(rests, key=lambda parts: not parts):
        members = list(group)
        tails += [""] * len(members) if ends else ["." + _alternatives(_heads(members))]
    return tails


def _labels(labels: list[str]) -> str:
    first = int(labels[0]) if re.fullmatch("[0-9]{1,6}", labels[0]) else None
    if first is not None and len(labels) > 2:
        last = first + len(labels) - 1
        if labels == [str(number) for number in range(first, last + 1)]:
            return f"{{{first}..{last}}}"
    return _alternatives([re.sub(r"([\\{},])", r"\\\1", label) for label in labels])


def _alternatives(patterns: list[str]) -> str:
    if len(patterns) == 1:
        return patterns[0]
    tail = _common_tail(patterns)
    heads = [pattern.removesuffix(tail) for pattern in patterns]
    return "{" + ",".join(heads) + "}" + tail


def _common_tail(patterns: list[str]) -> str:
    """Return the longest end, from a dot outside of braces on, that all patterns have."""
    columns = zip(*(reversed(pattern) for pattern in patterns), strict=False)
    same = takewhile(lambda characters: len(set(characters)) == 1, columns)
    tail = "".join(characters[0] for characters in same)[::-1]
    while tail and (tail[0] != "." or not _is_balanced(tail)):
        tail = tail[tail.find(".", 1) :] if "." in tail[1:] else ""
    return tail


def _is_balanced(text: str) -> bool:
    depths = list(accumulate((c == "{") - (c == "}") for c in text))
    return "\\" not in text and min(depths) >= 0 and depths[-1] == 0


@dataclass(frozen=True)
class _Choice:
    alternatives: tuple[_Sequence, ...]


@dataclass(frozen=True)
class _Range:
    first: int
    last: int


_Sequence: TypeAlias = "tuple[str | _Choice | _Range, ...]"


@dataclass(frozen=True)
class _Size:
    """How many names, and their characters together."""

    names: int
    characters: int


def _parse(pattern: str, start: int, depth: int) -> tuple[_Sequence, int]:
    """Parse up to the end or to a `,` or `}` of the braces around; return where that is."""
    if depth > _DEPTH:
        raise ValueError(f"pattern {_shown(pattern)}: its braces are nested too deep")
    parts: list[str | _Choice | _Range] = []
    while start < len(pattern):
        if numbers := _RANGE.match(pattern, start):
            first, last = int(numbers[1]), int(numbers[2])
            if first >= last:
                raise ValueError(f"pattern {_shown(pattern)}: {numbers[0]} does not rise")
            parts.append(_Range(first, last))
            start = numbers.end()
            continue
        token = _TOKEN.match(pattern, start)
        if token is None:
            raise ValueError(f"pattern {_shown(pattern)}: a backslash with nothing to take")
        if token["special"] in (",", "}"):
            break
        start = token.end()
        if token["special"]:
            alternatives: list[_Sequence] = []
            while not alternatives or pattern[start - 1 : start] == ",":
                alternative, end = _parse(pattern, start, depth + 1)
                alternatives.append(alternative)
                start = end + 1
            if pattern[start - 1 : start] != "}":
                raise ValueError(f"pattern {_shown(pattern)}: its braces are not closed")
            if len(alternatives) < 2:
                raise ValueError(f"pattern {_shown(pattern)}: braces around one alternative")
            parts.append(_Choice(tuple(alternatives)))
        else:
            parts.append(token["escaped"] or token["plain"])
    return tuple(parts), start


def _size_of_sequence(sequence: _Sequence) -> _Size:
    size = _Size(1, 0)
    for part in sequence:
        more = _size(part)
        characters = size.characters * more.names + more.characters * size.names
        size = _Size(min(size.names * more.names, _MANY), min(characters, _MANY))
    return size


def _size(part: str | _Choice | _Range) -> _Size:
    if isinstance(part, str):
        return _Size(1, len(part))
    if isinstance(part, _Range):
        count = part.last - part.first + 1
        return _Size(count, count * len(str(part.last)))
    sizes = [_size_of_sequence(each) for each in part.alternatives]
    return _Size(sum(s.names for s in sizes), sum(s.characters for s in sizes))


def _expand(sequence: _Sequence) -> Iterator[str]:
    return map("".join, product(*map(_words, sequence)))


def _words(part: str | _Choice | _Range) -> list[str]:
    if isinstance(part, str):
        return [part]
    if isinstance(part, _Range):
        return [str(number) for number in range(part.first, part.last + 1)]
    return [word for sequence in part.alternatives for word in _expand(sequence)]


def _shown(pattern: str) -> str:
    return repr(pattern if len(pattern) <= 80 else pattern[:77] + "...")
