"""Whether a module in memory still is what its file says: nobody has put other code into it.

In a session, methods and functions are replaced by hand (`Net.forward = mine`), constants set. What
such code computes would be stored under the key of the file, which tells nothing of it.
"""

from __future__ import annotations

import ast
import inspect
from collections.abc import Iterable, Iterator, Set
from pathlib import Path
from types import CodeType, FunctionType, ModuleType
from typing import Any

from zoopress.identity.modules import is_installed

_TYPED = ("<ipython", "<stdin", "<python-input", "<input", "<console")


def changed_in_memory(module: ModuleType, file: Path, known: Iterable[Path]) -> str | None:
    """Return what of a module is not what its file says, None if all is.

    Args:
        module: imported from `file`.
        file: as it says now.
        known: files whose code is known, besides.
    """
    try:
        tree = ast.parse(file.read_bytes())
        own = set(_codes(compile(tree, module.__file__ or str(file), "exec")))
    except (OSError, SyntaxError, ValueError, RecursionError):
        return None  # told where it is imported
    trusted = {str(each.resolve()) for each in (file, *known)}
    for name, function in _functions(module, _defined(tree)):
        written = function.__code__.co_filename
        if written == module.__file__ and not any(_alike(function.__code__, c) for c in own):
            return f"{name} is of another version of the file"
        if written != module.__file__ and _is_foreign(written, trusted):
            return f"{name} was replaced by code from {written}"
    for name, value in _constants(tree).items():
        now = vars(module).get(name, value)
        if type(now) is not type(value) or now != value:
            return f"{name} was set to {now!r:.60}; the file says {value!r:.60}"
    return None


def _defined(tree: ast.Module) -> set[str]:
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    return {node.name for node in tree.body if isinstance(node, kinds)}


def _functions(module: ModuleType, defined: Set[str]) -> Iterator[tuple[str, FunctionType]]:
    """Yield what stands now for the functions that a file defines, and for its classes' methods."""
    for name in sorted(defined & vars(module).keys()):
        value = vars(module)[name]
        if isinstance(value, FunctionType):
            yield name, value
        elif inspect.isclass(value):
            for inner, member in list(vars(value).items()):
                function = getattr(member, "__func__", getattr(member, "fget", member))
                if isinstance(function, FunctionType):
                    yield f"{name}.{inner}", function


def _codes(code: CodeType) -> Iterator[CodeType]:
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield constant
            yield from _codes(constant)


def _alike(one: CodeType, other: CodeType) -> bool:
    """Tell whether two codes do the same, wherever they stand in their file."""
    return one.co_code == other.co_code and one.co_name == other.co_name


def _is_foreign(file: str, trusted: Set[str]) -> bool:
    if file.startswith(_TYPED) or "/ipykernel_" in file:
        return True
    path = Path(file)
    if not path.is_file():  # made by a library, as a dataclass's methods are
        return False
    return str(path.resolve()) not in trusted and not is_installed(path.resolve())


def _constants(tree: ast.Module) -> dict[str, Any]:
    """Return the numbers, strings and the like that a file gives names at its top, each once."""
    found: dict[str, Any] = {}
    several: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Global):
            several.update(node.names)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, (ast.Store, ast.Del)):
            if node.id in found:
                several.add(node.id)
            found.setdefault(node.id, None)
    once = found.keys() - several
    constants = {}
    for node in tree.body:
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant):
            for target in node.targets:
                if isinstance(target, ast.Name) and target.id in once:
                    constants[target.id] = node.value.value
    return constants
