"""Find names of modules that have moved in a plugin's source, without importing it."""

from __future__ import annotations

import ast
import importlib.util
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from zoopress.moved import MOVED


@dataclass(frozen=True)
class MovedName:
    """Where a file calls a module by a name that it had before."""

    file: Path
    line: int
    old: str
    new: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.old} is now {self.new}"


def source_files(name: str, modules: Sequence[str]) -> list[Path]:
    """Return the Python files of a distribution.

    Args:
        name: the distribution.
        modules: modules of it, the first of which tells where it lies if it does not list its
            files, as editable installations do not.
    """
    try:
        listed = distribution(name).files or []
    except (PackageNotFoundError, ValueError):
        listed = []
    files = [
        Path(str(file.locate()))
        for file in listed
        if file.suffix == ".py" and not file.name.startswith("__editable__")
    ]
    if not files:
        places = [place for place in map(_place, _tops(modules)) if place is not None]
        here = [place for place in places if place.parent == places[0].parent]
        files = [file for p in here for file in (p.rglob("*.py") if p.is_dir() else [p])]
    return sorted({file.resolve() for file in files if file.is_file()})


def _tops(modules: Sequence[str]) -> list[str]:
    return list(dict.fromkeys(module.partition(".")[0] for module in modules))


def _place(top: str) -> Path | None:
    """Return the folder of a package, or the file of a module, without importing either."""
    try:
        spec = importlib.util.find_spec(top)
    except (ImportError, ValueError):
        return None
    if spec is None:
        return None
    if spec.submodule_search_locations:
        return Path(next(iter(spec.submodule_search_locations)))
    return Path(spec.origin) if spec.origin and spec.has_location else None


def moved_names(files: Iterable[Path]) -> list[MovedName]:
    """Return every use of a moved module in files: imports, and names in strings."""
    found = []
    for file in files:
        try:
            tree = ast.parse(file.read_bytes())
        except (OSError, SyntaxError, ValueError):
            continue  # who imports it is told
        names = {(line, old) for line, name in _names(tree) if (old := _moved(name))}
        found += [MovedName(file, line, old, MOVED[old]) for line, old in sorted(names)]
    return found


def _names(tree: ast.AST) -> Iterator[tuple[int, str]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.lineno, node.module
            # `from zoopress import technique` imports a module, too.
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.lineno, node.value.partition(":")[0]


def _moved(name: str) -> str | None:
    """Return which moved module a dotted name names, or something in one."""
    while name.startswith("zoopress."):
        if name in MOVED:
            return name
        name = name.rpartition(".")[0]
    return None
