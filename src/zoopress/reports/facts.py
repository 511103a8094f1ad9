"""Any measure's plain data as tables: a page shows also what it has never heard of."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from zoopress.reports.markdown import one_line
from zoopress.units import show_bytes, show_number

_ABBREVIATIONS = {"macs": "MACs", "fgsm": "FGSM", "pgd": "PGD"}

MAX_ROWS = 20
"""Of one list of records."""


@dataclass(frozen=True)
class Records:
    """A list of records that have the same keys.

    Attributes:
        title: what it lists.
        header: the keys.
        rows: the values, in the header's order.
        left_out: how many rows are not shown.
    """

    title: str
    header: list[str]
    rows: list[list[str]]
    left_out: int = 0


@dataclass(frozen=True)
class Facts:
    """A measure in rows.

    Attributes:
        title: the measure's name.
        skipped: why it was not measured; "" if it was.
        pairs: what, of the original, of the compressed model.
        single: what and its value, of neither or of both.
        lists: records.
    """

    title: str
    skipped: str = ""
    pairs: list[tuple[str, str, str]] = field(default_factory=list)
    single: list[tuple[str, str]] = field(default_factory=list)
    lists: list[Records] = field(default_factory=list)


def facts(name: str, data: Any) -> Facts:
    """Return a measure's data as tables."""
    found = Facts(one_line(name).replace("_", " "))
    if isinstance(data, Mapping) and data.get("skipped"):
        return Facts(found.title, skipped=one_line(data["skipped"]))
    if isinstance(data, Mapping) and data.get("measured") is False:
        found = Facts(f"{found.title} (estimated, not measured)")
    _collect(found, "", data if isinstance(data, Mapping) else {"value": data})
    return found


def _collect(found: Facts, path: str, data: Mapping[Any, Any]) -> None:
    left = dict(data)
    for title, before, after in list(_pairs(left)):
        both = (left.pop(before), left.pop(after))
        name = _join(path, title)
        if all(_is_plain(value) for value in both):
            before_text, after_text = (show(value, name) for value in both)
            found.pairs.append((name or "value", before_text, after_text))
        elif all(isinstance(value, Mapping) and not _names_models(value) for value in both):
            _collect(found, name, {key: _both(both, key) for key in [*both[0], *both[1]]})
        else:
            left.update({f"{title or 'value'}, original": both[0]})
            left.update({f"{title or 'value'}, compressed": both[1]})
    for key, value in left.items():
        name = _join(path, _words(key))
        if isinstance(value, Mapping):
            _collect(found, name, value)
        elif _is_plain(value):
            found.single.append((name, show(value, str(key))))
        elif isinstance(value, Sequence) and all(isinstance(item, Mapping) for item in value):
            if value:
                found.lists.append(_records(name, value))
        else:
            found.single.append((name, ", ".join(show(item, str(key)) for item in value)))


def _names_models(data: Mapping[Any, Any]) -> bool:
    """Tell whether keys name the models once more, so that theirs cannot be told from ours."""
    return any({"original", "compressed"} & set(str(key).split("_")) for key in data)


def _both(both: tuple[Any, Any], key: Any) -> dict[str, Any]:
    return {"original": both[0].get(key), "compressed": both[1].get(key)}


def _pairs(data: Mapping[Any, Any]) -> Iterator[tuple[str, Any, Any]]:
    """Yield the keys that are of the original and of the compressed model, with what they tell."""
    for key in data:
        words = str(key).split("_")
        if "original" in words:
            at = words.index("original")
            other = "_".join([*words[:at], "compressed", *words[at + 1 :]])
            if other in data:
                yield _words("_".join([*words[:at], *words[at + 1 :]])), key, other


def _records(title: str, items: Sequence[Mapping[Any, Any]]) -> Records:
    keys = list(dict.fromkeys(key for item in items for key in item))
    rows = [[_cell(item.get(key), str(key)) for key in keys] for item in items[:MAX_ROWS]]
    header = [_words(key) for key in keys]
    return Records(title, header, rows, max(0, len(items) - MAX_ROWS))


def _cell(value: Any, key: str) -> str:
    if _is_plain(value):
        return show(value, key)
    if isinstance(value, Mapping):
        return ", ".join(f"{_words(k)} {_cell(v, str(k))}" for k, v in value.items())
    return ", ".join(_cell(item, key) for item in value)


def _is_plain(value: Any) -> bool:
    return value is None or isinstance(value, (str, int, float))


def show(value: Any, name: str = "") -> str:
    """Write a value; whole numbers with thousands apart, bytes in their unit."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return show_bytes(value) if "bytes" in name and value >= 0 else f"{value:,}"
    if isinstance(value, float):
        return show_number(value, 4)
    return one_line(value)


def _words(key: Any) -> str:
    words = one_line(key).replace("_", " ").split(" ")
    return " ".join(_ABBREVIATIONS.get(word, word) for word in words)


def _join(path: str, name: str) -> str:
    return f"{path}: {name}" if path and name else path or name
