"""What datasets share: tables in memory, and the place that a card names."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from zoopress.cards import Card
from zoopress.errors import CardError
from zoopress.tasks import File, Table
from zoopress.tasks.splits import KNOWN_PARTS


class Columns(Table):
    """Columns in memory: lists, or numpy arrays whose first axis are the rows."""

    def __init__(self, columns: Mapping[str, Any]) -> None:
        self._columns = dict(columns)

    @property
    def columns(self) -> Sequence[str]:
        return tuple(self._columns)

    def __len__(self) -> int:
        return len(next(iter(self._columns.values()), ()))

    def values(self, column: str, rows: Sequence[int]) -> Sequence[Any]:
        values = self._columns[column]
        return [values[row] for row in rows]


def locate(card: Card) -> Path:
    """Return the file or folder that `data.dataset` names after the colon, relative to the card.

    Raises:
        CardError: if there is none.
    """
    assert card.data is not None, "a dataset is opened of a card with data"
    location = (card.data.dataset or "").partition(":")[2]
    path = card.root / Path(location).expanduser()
    if not path.exists():
        raise unreadable(card, f"there is nothing at {path}.")
    return path


def unreadable(card: Card, reason: str) -> CardError:
    """Return the error that a card's dataset cannot be read."""
    dataset = card.data.dataset if card.data else None
    return CardError(f"Card {card.name!r}: 'data.dataset': {dataset!r}: {reason}")


def known_part(names: Iterable[str]) -> str | None:
    """Return the first of some names that a part of a dataset is usually called."""
    usual = {name for known in KNOWN_PARTS.values() for name in known}
    return next((name for name in names if name.lower() in usual), None)


def as_file(value: Any) -> Any:
    """Return an image or sound as Parquet files of the Hub hold it, bytes and a path, as a `File`.

    A path alone is left as it is: a file of data must not make us open others.
    """
    if isinstance(value, dict) and isinstance(value.get("bytes"), bytes):
        return File(value["bytes"], str(value.get("path") or ""))
    return value
