"""Labelled samples: a dataset's parts as tables, and how their rows are split.

A row's split follows from its content and the seed alone, not from its place in a file. So equal
rows always end up in one split, whatever the order, and a row of the test split that is also in
the training part is taken out there.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from zoopress.errors import CardError
from zoopress.plugins import Plugins, load_plugins

if TYPE_CHECKING:
    from zoopress.cards import Card

Part = Literal["training", "validation", "test"]


class Table(ABC):
    """Rows of named columns, read when they are asked for."""

    @property
    @abstractmethod
    def columns(self) -> Sequence[str]:
        """The names of the columns."""

    @abstractmethod
    def __len__(self) -> int:
        """Return the number of rows."""

    @abstractmethod
    def values(self, column: str, rows: Sequence[int]) -> Sequence[Any]:
        """Return a column's values in some rows.

        They are numbers, strings, lists, numpy arrays (images as [height, width, channels] uint8)
        or `File`s.
        """


@dataclass(frozen=True)
class File:
    """A value as the bytes of a file, such as an encoded image, decoded when it is needed."""

    content: bytes
    name: str = ""


class Dataset(ABC):
    """A dataset in the parts that it comes in."""

    @abstractmethod
    def fingerprint(self) -> str:
        """Return a digest of the data, without importing anything heavy."""

    @abstractmethod
    def parts(self) -> Mapping[str, Table]:
        """Return its parts by their own names; one that has no parts calls all of it "all".

        They are opened once: later calls return the same tables.

        Raises:
            CardError: if it cannot be read.
        """

    def label_names(self, column: str) -> Sequence[str]:
        """Return the names of the classes that a column's integers count, if it tells them."""
        return ()


def row_digest(values: Sequence[Any], seed: int = 0) -> bytes:
    """Return 16 bytes that tell a row's content, of equal values always the same ones."""
    state = hashlib.blake2b(digest_size=16, key=seed.to_bytes(8, "little"))
    for value in values:
        _feed(state, value)
    return state.digest()


def _feed(state: Any, value: Any) -> None:
    if isinstance(value, File):
        kind, content = "file", value.content
    elif isinstance(value, bytes):
        kind, content = "bytes", value
    elif isinstance(value, str):
        kind, content = "text", value.encode("utf-8", "surrogatepass")
    elif isinstance(value, (list, tuple)):
        state.update(f"list {len(value)}\n".encode())
        for item in value:
            _feed(state, item)
        return
    elif hasattr(value, "tobytes") and getattr(value, "ndim", 0) > 0:
        kind, content = f"{value.dtype.str} {value.shape}", value.tobytes()
    else:  # a number, which numpy may hold as a scalar of its own
        plain = value.item() if hasattr(value, "item") else value
        if isinstance(plain, float) and plain.is_integer():
            plain = int(plain)  # one file may write 3 and another 3.0
        kind, content = "value", repr(int(plain) if isinstance(plain, bool) else plain).encode()
    state.update(f"{kind} {len(content)}\n".encode())
    state.update(content)


def open_dataset(card: Card, plugins: Plugins | None = None) -> Dataset:
    """Open the dataset that a card names, by the function that a plugin registers for its scheme.

    Args:
        card: which names it.
        plugins: what is registered; everything installed by default.

    Raises:
        CardError: if the card names none, or it is not there.
        PluginError: if no plugin registers the scheme, or what does returns no `Dataset`.
    """
    if card.data is None or card.data.dataset is None:
        raise CardError(f"Card {card.name!r} has no 'data.dataset'.")
    scheme = card.data.dataset.partition(":")[0]
    dataset: Dataset = (plugins or load_plugins()).ask("datasets", scheme, card)
    return dataset
