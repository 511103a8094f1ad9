"""Which files a card's code reads while it runs."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

_local = threading.local()


@contextmanager
def files_read(folder: Path) -> Iterator[set[Path]]:
    """Collect the files below a folder that this thread opens for reading, code left out."""
    _listen()
    found: set[Path] = set()
    before = getattr(_local, "listeners", [])
    _local.listeners = [*before, (str(folder.resolve()) + os.sep, found)]
    try:
        yield found
    finally:
        _local.listeners = before


@cache
def _listen() -> None:
    """Hear of opened files from now on; such a hook stays for the life of the process."""
    sys.addaudithook(_hear)


def _hear(event: str, arguments: tuple[Any, ...]) -> None:
    if event != "open" or not getattr(_local, "listeners", None):
        return
    path, mode = arguments[0], arguments[1]
    if not isinstance(path, (str, bytes)) or (isinstance(mode, str) and mode[:1] in "wax"):
        return
    name = os.path.abspath(os.fsdecode(path))
    hidden = any(part.startswith((".", "__pycache__")) for part in Path(name).parts[1:])
    if name.endswith((".py", ".pyc", ".so", ".pyd")) or not os.path.isfile(name):
        return
    for folder, found in _local.listeners:
        if name.startswith(folder) and not (hidden and "/." in name.removeprefix(folder[:-1])):
            found.add(Path(name))
