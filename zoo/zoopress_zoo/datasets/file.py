"""`file:PATH`: rows in a .csv, .tsv, .jsonl, .json, .parquet, .npz or .txt file, or several.

A folder holds one file a part, called train, validation or test. An .npz file may hold its parts
itself, as x_train, y_train, x_test and y_test, or train_images, train_labels and so on.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path

from zoopress.cards import Card
from zoopress.store import digest, file_digest
from zoopress.tasks import Dataset, Table
from zoopress_zoo.datasets import readers
from zoopress_zoo.datasets.tables import known_part, locate, unreadable

Reader = Callable[[Path], dict[str, Table]]

READERS: dict[str, Reader] = {
    ".csv": readers.read_csv,
    ".tsv": readers.read_csv,
    ".json": readers.read_json,
    ".jsonl": readers.read_json_lines,
    ".npz": readers.read_npz,
    ".parquet": readers.read_parquet,
    ".txt": readers.read_text,
}
"""What reads a file, by its suffix; a file without parts of its own is one part called "all"."""


def file(card: Card) -> Dataset:
    """Find `file:PATH`.

    Raises:
        CardError: if there is no file of a known form, or there are several of one part.
    """
    path = locate(card)
    if path.is_file():
        if path.suffix.lower() not in READERS:
            raise unreadable(card, f"files must end in one of {', '.join(READERS)}.")
        return _Files(card, {"all": path})
    found: dict[str, Path] = {}
    for each in sorted(path.iterdir()):
        part = known_part([each.stem])
        if part is None or each.suffix.lower() not in READERS or not each.is_file():
            continue
        if part in found:
            raise unreadable(card, f"{found[part].name} and {each.name} are both there.")
        found[part] = each
    if not found:
        raise unreadable(
            card, f"{path} has no file such as train.csv or test.parquet ({', '.join(READERS)})."
        )
    return _Files(card, found)


class _Files(Dataset):
    def __init__(self, card: Card, files: Mapping[str, Path]) -> None:
        self._card, self._files = card, files

    def fingerprint(self) -> str:
        return digest([[part, p.suffix, file_digest(p)] for part, p in self._files.items()])

    def parts(self) -> Mapping[str, Table]:
        return self._parts

    @cached_property
    def _parts(self) -> dict[str, Table]:
        found: dict[str, Table] = {}
        for part, path in self._files.items():
            try:
                tables = READERS[path.suffix.lower()](path)
            except (OSError, ValueError) as error:
                reason = " ".join(str(error).split())
                raise unreadable(self._card, f"{path} cannot be read: {reason}.") from error
            if len(self._files) > 1 and len(tables) > 1:
                raise unreadable(self._card, f"{path} has parts of its own, {', '.join(tables)}.")
            whole = len(tables) == 1
            found.update({part if whole else name: table for name, table in tables.items()})
        return found
