"""`folder:FOLDER`: images in one folder a class, perhaps below one folder a part.

FOLDER/CLASS/….png
FOLDER/train/CLASS/….png, FOLDER/test/CLASS/….png
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from zoopress.cards import Card
from zoopress.store import digest, file_digest
from zoopress.tasks import Dataset, File, Table
from zoopress_zoo.datasets.tables import known_part, locate, unreadable

SUFFIXES = (
    *(".bmp", ".gif", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"),
)
log = logging.getLogger("zoopress.tasks")


def folder(card: Card) -> Dataset:
    """Find `folder:FOLDER`.

    Raises:
        CardError: if no class folder has an image.
    """
    top = locate(card)
    names = _folders(top)
    parts = [name for name in names if known_part([name])]
    found = {name: _images(top / name) for name in parts} if parts else {"all": _images(top)}
    if parts and len(parts) < len(names):
        others = ", ".join(sorted(set(names) - set(parts))[:5])
        log.warning("%s: %s are left out beside the parts %s.", top, others, ", ".join(parts))
    if not any(found.values()):
        raise unreadable(
            card,
            f"{top} has no images ({', '.join(SUFFIXES)}) in class folders, such as "
            f"{top / 'cat' / '1.png'} or {top / 'train' / 'cat' / '1.png'}.",
        )
    return _Folder(top, found)


class _Folder(Dataset):
    def __init__(self, top: Path, parts: Mapping[str, Sequence[tuple[str, Path]]]) -> None:
        self._top, self._images = top, parts

    def fingerprint(self) -> str:
        return digest(
            [
                [part, path.relative_to(self._top).as_posix(), file_digest(path)]
                for part, images in self._images.items()
                for _, path in images
            ]
        )

    def parts(self) -> Mapping[str, Table]:
        return {part: _Images(images) for part, images in self._images.items()}

    def label_names(self, column: str) -> Sequence[str]:
        return self._classes if column == "label" else ()

    @cached_property
    def _classes(self) -> tuple[str, ...]:
        return tuple(sorted({name for images in self._images.values() for name, _ in images}))


class _Images(Table):
    """Files by class, read when they are asked for."""

    def __init__(self, images: Sequence[tuple[str, Path]]) -> None:
        self._images = images

    @property
    def columns(self) -> Sequence[str]:
        return ("image", "label")

    def __len__(self) -> int:
        return len(self._images)

    def values(self, column: str, rows: Sequence[int]) -> Sequence[Any]:
        if column == "label":
            return [self._images[row][0] for row in rows]
        paths = [self._images[row][1] for row in rows]
        return [File(path.read_bytes(), str(path)) for path in paths]


def _folders(top: Path) -> list[str]:
    if not top.is_dir():
        return []
    return sorted(p.name for p in top.iterdir() if p.is_dir() and not p.name.startswith("."))


def _images(top: Path) -> list[tuple[str, Path]]:
    """Return class and path of each image below a folder of class folders.

    Links that lead out of it are not followed: what is published of a dataset is what is in it.
    """
    inside = top.resolve()
    found: list[tuple[str, Path]] = []
    skipped: list[Path] = []
    for name in _folders(top):
        for where, folders, files in os.walk(top / name):
            folders.sort()
            for path in (Path(where) / file for file in sorted(files)):
                is_image = path.suffix.lower() in SUFFIXES and path.is_file()
                if is_image and path.resolve().is_relative_to(inside):
                    found.append((name, path))
                elif not path.name.startswith("."):
                    skipped.append(path)
    if skipped:
        log.warning(
            "%s: %d files are left out that are no images, or links to elsewhere: %s",
            *(top, len(skipped), ", ".join(str(path.relative_to(top)) for path in skipped[:3])),
        )
    return found
