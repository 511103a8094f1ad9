"""Where a module's file is, found without importing anything: not even the packages around it."""

from __future__ import annotations

import os
import sys
import sysconfig
from collections.abc import Iterable, Sequence
from contextlib import suppress
from functools import cache, lru_cache
from importlib.machinery import EXTENSION_SUFFIXES, ModuleSpec, PathFinder
from importlib.metadata import (
    PackageNotFoundError,
    distribution,
    packages_distributions,
    version,
)
from pathlib import Path
from typing import Any, NamedTuple

from zoopress.moved import MOVED

_SUFFIXES = (".py", *EXTENSION_SUFFIXES)
_INSTALLED = frozenset({"site-packages", "dist-packages"})
_STDLIB = tuple(
    f"{Path(path).resolve()}{os.sep}"
    for name in ("stdlib", "platstdlib")
    if (path := sysconfig.get_paths().get(name))
)


class Found(NamedTuple):
    """A module.

    Attributes:
        file: what importing it runs; None for a namespace package.
        folders: where its submodules are; empty for a module that has none.
    """

    file: Path | None
    folders: tuple[Path, ...]


def find_module(name: str, folders: Sequence[Path] = ()) -> Found | None:
    """Find a module by its dotted name.

    Args:
        name: absolute.
        folders: looked into before Python's own path.

    Returns:
        None if there is none with a file or a folder, as for those built into Python.
    """
    found: Found | None = None
    parts = MOVED.get(name, name).split(".")
    for depth in range(1, len(parts) + 1):
        found = find_below(found, ".".join(parts[:depth]), folders)
        if found is None:
            return None
    return found


def find_below(package: Found | None, name: str, folders: Sequence[Path] = ()) -> Found | None:
    """Find a module in the package around it.

    Args:
        package: the one around it; None for a module that is in none.
        name: absolute.
        folders: as `find_module` takes them.
    """
    if package is None:
        return _find_top(name, folders)
    if not package.folders:
        return None
    return _imported(name, package.folders) or _below(name.rpartition(".")[2], package.folders)


def is_installed(file: Path) -> bool:
    """Tell whether a file came with Python or with a package that is installed, not edited."""
    if _INSTALLED.intersection(file.parts):
        return True
    return str(file).startswith(_STDLIB)


@lru_cache(maxsize=64)
def files_of(distribution_name: str) -> frozenset[Path]:
    """Return the Python files that a distribution installed; none if it does not say."""
    try:
        files = distribution(distribution_name).files or ()
    except (PackageNotFoundError, ValueError):
        return frozenset()
    return frozenset(Path(str(file.locate())).resolve() for file in files if file.suffix == ".py")


def _find_top(name: str, folders: Sequence[Path]) -> Found | None:
    if name in sys.builtin_module_names or name in sys.stdlib_module_names:
        return None
    imported = _imported(name)
    if imported is not None and imported.file is not None and is_installed(imported.file):
        return imported
    below = _below(name, folders)
    return below or imported or _below(name, _path()) or _by_finders(name)


def _imported(name: str, folders: Iterable[Path] | None = None) -> Found | None:
    """Return where an imported module came from, if that is still there.

    Args:
        name: of the module.
        folders: where the package around it is; what was imported from elsewhere does not count.
    """
    module = sys.modules.get(name)
    if module is None:
        return None
    file = getattr(module, "__file__", None)
    below = tuple(Path(str(folder)) for folder in getattr(module, "__path__", ()))
    if file is None:
        # A namespace package grows when a folder is added.
        return None if folders is not None else (Found(None, below) if below else None)
    if folders is not None and not any(file.startswith(f"{folder}{os.sep}") for folder in folders):
        return None
    return Found(Path(file), below) if file.endswith(".py") and os.path.isfile(file) else None


def _below(name: str, folders: Iterable[Path]) -> Found | None:
    portions: list[Path] = []
    for folder in folders:
        package = f"{folder}{os.sep}{name}"
        is_folder = os.path.isdir(package)
        for suffix in _SUFFIXES if is_folder else ():
            if os.path.isfile(file := f"{package}{os.sep}__init__{suffix}"):
                return Found(Path(file), (Path(package),))
        for suffix in _SUFFIXES:
            if os.path.isfile(file := f"{package}{suffix}"):
                return Found(Path(file), ())
        if is_folder:
            portions.append(Path(package))
    return Found(None, tuple(portions)) if portions else None


def _path() -> list[Path]:
    return [Path(entry or ".") for entry in sys.path]


def _by_finders(name: str) -> Found | None:
    """Ask the finders that editable installs put beside Python's own; these import nothing."""
    editable = (f for f in sys.meta_path if getattr(f, "__module__", "").startswith("__editable__"))
    finders: list[Any] = [*editable, PathFinder]
    for finder in finders:
        try:
            spec: ModuleSpec | None = finder.find_spec(name, None)
        except Exception:  # a finder is another's code
            continue
        if spec is not None:
            folders = tuple(Path(str(each)) for each in spec.submodule_search_locations or ())
            file = Path(spec.origin) if spec.has_location and spec.origin else None
            return Found(file, folders) if file or folders else None
    return None


@cache
def version_of(top: str) -> str:
    """Return the version of the distribution that brings a module, "" if nothing tells."""
    with suppress(PackageNotFoundError):
        return version(top)
    names = packages_distributions().get(top, ())  # reads all that is installed: half a second
    return " ".join(f"{name} {version(name)}" for name in sorted(set(names)))
