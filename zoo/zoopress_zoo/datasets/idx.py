"""`idx:FOLDER`: images and labels in IDX files, as MNIST comes.

    train-images-idx3-ubyte, train-labels-idx1-ubyte      part "train"
    t10k-images-idx3-ubyte, t10k-labels-idx1-ubyte        part "t10k"
    images-idx3-ubyte, labels-idx1-ubyte                  part "all"

Each may have a prefix (`emnist-letters-train-images-…`), a dot for the dash, and `.gz`.

An IDX file: two zero bytes, the type of the values (8: unsigned bytes), the number of axes, the
size of each axis as 4 bytes, the most significant first, then the values.

Source: LeCun, Cortes, Burges: The MNIST database, "File formats".
"""

from __future__ import annotations

import gzip
import math
import re
import struct
import zlib
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, cast

from zoopress.cards import Card
from zoopress.store import digest, file_digest
from zoopress.tasks import Dataset, Table
from zoopress_zoo.datasets.tables import Columns, locate, unreadable

if TYPE_CHECKING:
    import numpy as np

_NAME = re.compile(r"(?P<part>.*?)[-_.]?(?P<what>images|labels)[-.]idx(?P<axes>[0-9])-ubyte(\.gz)?")
_MOST_DEFLATED = 1100
"""Deflate makes data at most about 1032 times smaller."""


def idx(card: Card) -> Dataset:
    """Find `idx:FOLDER`.

    Raises:
        CardError: if there are no pairs of files in it.
    """
    folder = locate(card)
    files: dict[str, dict[str, Path]] = {}
    # A plain file goes before its compressed twin, which comes later in this order.
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        match = _NAME.fullmatch(path.name)
        if match and path.is_file():
            files.setdefault(match["part"], {}).setdefault(match["what"], path)
    if not files:
        raise unreadable(
            card,
            f"{folder} has no IDX files, such as train-images-idx3-ubyte and "
            "train-labels-idx1-ubyte.",
        )
    for pair in files.values():
        missing = {"images", "labels"} - pair.keys()
        if missing:
            have = next(iter(pair.values())).name
            raise unreadable(card, f"{have} is there, but no {missing.pop()} to go with it.")
    return _Idx(card, {_part_name(part, list(files)): pair for part, pair in files.items()})


class _Idx(Dataset):
    def __init__(self, card: Card, files: Mapping[str, Mapping[str, Path]]) -> None:
        self._card, self._files = card, files

    def fingerprint(self) -> str:
        return digest(
            {
                part: [file_digest(pair[what]) for what in ("images", "labels")]
                for part, pair in self._files.items()
            }
        )

    def parts(self) -> Mapping[str, Table]:
        return self._parts

    @cached_property
    def _parts(self) -> dict[str, Table]:
        return {part: self._table(pair) for part, pair in self._files.items()}

    def _table(self, pair: Mapping[str, Path]) -> Table:
        images, labels = self._read(pair["images"], (3, 4)), self._read(pair["labels"], (1,))
        if len(images) != len(labels):
            raise unreadable(
                self._card,
                f"{pair['images'].name} has {len(images)} images, but {pair['labels'].name} "
                f"{len(labels)} labels.",
            )
        return Columns(
            {"image": images[..., None] if images.ndim == 3 else images, "label": labels}
        )

    def _read(self, path: Path, axes: tuple[int, ...]) -> np.ndarray[Any, Any]:
        try:
            return read_idx(path, axes)
        except (OSError, EOFError, ValueError, zlib.error) as error:
            raise unreadable(self._card, f"{path}: {error}.") from error


def read_idx(path: Path, axes: tuple[int, ...]) -> np.ndarray[Any, Any]:
    """Read an IDX file of unsigned bytes, perhaps compressed by gzip.

    Args:
        path: the file.
        axes: how many axes the array may have.

    Raises:
        ValueError: if it is something else, or damaged.
        OSError: if it cannot be read.
    """
    import numpy as np

    compressed = path.suffix == ".gz"
    on_disk = path.stat().st_size
    with cast(BinaryIO, gzip.open(path, "rb")) if compressed else path.open("rb") as stream:
        start = stream.read(4)
        if len(start) < 4 or start[:2] != b"\0\0":
            raise ValueError(f"is no IDX file: it begins with {start.hex(' ') or 'nothing'}")
        if start[2] != 8 or start[3] not in axes:
            raise ValueError(
                f"has the magic number 0x{start.hex()}; expected "
                + " or ".join(f"0x000008{count:02x}" for count in axes)
            )
        sizes = stream.read(4 * start[3])
        if len(sizes) < 4 * start[3]:
            raise ValueError("ends within its header")
        shape = struct.unpack(f">{start[3]}I", sizes)
        expected = math.prod(shape)
        # Before anything is allocated: a header can ask for any size.
        if expected > on_disk * (_MOST_DEFLATED if compressed else 1):
            raise ValueError(f"is cut off: {expected} values {list(shape)} do not fit into it")
        content = stream.read(expected + 1)
    if len(content) != expected:
        state = "cut off" if len(content) < expected else "too long"
        raise ValueError(f"is {state}: its header tells of {expected} values {list(shape)}")
    return np.frombuffer(content, np.uint8).reshape(shape)


def _part_name(stem: str, others: list[str]) -> str:
    """Return a part's name without what all names begin with: "train" of "emnist-letters-train"."""
    return re.split(r"[-_.]", stem)[-1] or "all" if len(others) > 1 else stem or "all"
