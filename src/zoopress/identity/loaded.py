"""Whether this process runs what the files of its modules now say.

A key tells the code that computes a result. A module that was edited after it was imported would
compute by the old code what is stored under the new one's key, so that is refused.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType

from zoopress.errors import PluginError
from zoopress.store import file_digest


class _Witness(MetaPathFinder):
    """Finds nothing; notes when modules are about to be imported, anew ones too."""

    def __init__(self) -> None:
        self.started = time.time_ns()
        self.imported: dict[str, int] = {}

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        self.imported[name] = time.time_ns()
        return None

    def time_of(self, name: str) -> int:
        """Return when a module was imported; those from before count as imported at the start."""
        return self.imported.get(name, self.started)


_witness = _Witness()
sys.meta_path.insert(0, _witness)

_seen: dict[tuple[str, int], str] = {}
"""The digest that a module's file had while it was known to be what runs, by name and time."""


def comes_from(module: ModuleType, file: Path) -> bool:
    """Tell whether a module was imported from a file."""
    path = getattr(module, "__file__", None)
    return path is not None and os.path.realpath(path) == os.path.realpath(file)


def is_edited(name: str, file: Path, digest: str | None = None) -> bool:
    """Tell whether an imported module's file has changed since it was imported.

    Args:
        name: the module's.
        file: what importing it would run now.
        digest: the file's, if that is known.
    """
    module = sys.modules.get(name)
    if module is None:
        return False
    if not comes_from(module, file):
        return True
    now = digest or file_digest(file)
    imported = _witness.time_of(name)
    changed = file.stat().st_mtime_ns
    # A time to come, as archives without a time zone leave it, tells nothing.
    if changed <= imported or changed > time.time_ns():
        _seen.setdefault((name, imported), now)
    return _seen.get((name, imported)) != now


def note_imported(name: str, digest: str) -> None:
    """Note the digest of the file that a module was just imported from."""
    _seen.setdefault((name, _witness.time_of(name)), digest)


def check_current(name: str, file: Path, digest: str) -> None:
    """Refuse a module whose file was edited after this process imported it.

    Raises:
        PluginError: if so.
    """
    if is_edited(name, file, digest):
        raise PluginError(
            f"{file} was edited after this process imported {name!r} from it, so what it would "
            "compute is not what the file says. Start a new process; in a notebook, restart its "
            "kernel."
        )
