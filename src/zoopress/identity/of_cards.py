"""The code of a user that a card names: its identity, and importing it as its files now say."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

from zoopress.errors import CardError
from zoopress.identity.in_memory import changed_in_memory
from zoopress.identity.loaded import check_current, comes_from, is_edited, note_imported
from zoopress.identity.modules import is_installed, version_of
from zoopress.identity.of_parts import Belongs
from zoopress.identity.opened_files import files_read
from zoopress.identity.reach import DATA, Reached, reach
from zoopress.store import digest, file_digest

_OURS = frozenset({"zoopress", "zoopress_plugins", "zoopress_zoo", "zoopress_flows"})
_loaded: dict[tuple[str, Path], tuple[str, ModuleType]] = {}
"""The digest that a card's code had when it was imported, and the module."""


def callable_code(reference: str, root: Path) -> str:
    """Return the digest of the code that `load_callable` would import.

    That is the file and what its import statements lead to, but for what is installed.

    Args:
        reference: as `load_callable` takes it.
        root: the card's folder.

    Returns:
        "" if there is none, which `load_callable` reports.

    Raises:
        CardError: if this process has changed some of it in memory.
    """
    _check_has_file(reference)
    location = reference.rpartition(":")[0]
    reached = _reach(location, root)
    if not reached.files:
        return ""
    _check_in_memory(reference, None, reached)  # what is stored is of the files
    file = reached.files.get(location)
    if file is not None and is_installed(file):
        return digest([reached.digest, version_of(location.partition(".")[0])])
    return reached.digest


def load_callable(reference: str, root: Path, code: str | None = None) -> Callable[..., Any]:
    """Import `file.py:function` or `package.module:function` that the user's own card names.

    What was edited since it was imported is imported anew, with all that leads to it.

    Args:
        reference: the reference; a file's path is relative to `root`.
        root: the card's folder, importable while the module is imported.
        code: what `callable_code` gave when the run began, if that must still hold.

    Raises:
        CardError: if there is no such function, or it was edited since.
    """
    location, _, attribute = reference.rpartition(":")
    _check_has_file(reference)
    before = _reach(location, root)
    try:
        with files_read(root) as read:
            module = _module(location, root)
    except FileNotFoundError as error:
        raise CardError(f"{reference!r}: there is no file {root / location}.") from error
    except Exception as error:
        hint = ""
        if "relative import" in str(error):
            package = location.removesuffix(".py").replace("/", ".")
            hint = f" Name it as a part of its package: '{package}:{attribute}'."
        raise CardError(
            f"{reference!r} cannot be imported: {type(error).__name__}: {error}.{hint}"
        ) from error
    if code is not None and callable_code(reference, root) != code:
        files = _reach(location, root).files
        if new := sorted(files.keys() - before.files.keys()):
            raise CardError(
                f"{reference!r} imports {new[0]!r} from {files[new[0]]}, which only running it "
                "tells, so no result's key would have it. Put that file beside the card, or "
                "install it as a package."
            )
        raise CardError(
            f"{reference!r} was edited while this run went on, so its results would be of neither "
            "version. Run again."
        )
    found = getattr(module, attribute, None)
    if not callable(found):
        raise CardError(f"{reference!r}: {location} has no function {attribute!r}.")
    function: Callable[..., Any] = found
    reached = _reach(location, root)
    _check_known(reference, root, reached, read)

    @functools.wraps(function)
    def call(*args: Any, **options: Any) -> Any:
        # What it imports when it is called lies beside it, too.
        with _importable(root), files_read(root) as read:
            made = function(*args, **options)
        _note(reached)
        _check_known(reference, root, reached, read)
        _check_in_memory(reference, module, reached)
        return made

    return call


def _check_has_file(reference: str) -> None:
    if reference.rpartition(":")[0] == "__main__":
        raise CardError(
            f"{reference!r} is of the notebook or script that runs now, and no file tells what it "
            "was when a result was computed. Write it into a file beside the card, and name it as "
            "'file.py:function'."
        )


def _check_known(reference: str, root: Path, reached: Reached, read: Iterable[Path]) -> None:
    """Refuse code that reads files beside the card which its text does not name.

    Raises:
        CardError: naming one.
    """
    known = {file.resolve() for file in reached.files.values()}
    for file in sorted({each.resolve() for each in read} - known):
        if file.suffix in DATA:
            raise CardError(
                f"{reference!r} reads {file}, a name that its code puts together, so results would "
                "not be computed anew when that file changes. Spell the name as one string there: "
                f"{os.path.relpath(file, root.resolve())!r}."
            )


def _check_in_memory(reference: str, module: ModuleType | None, reached: Reached) -> None:
    """Refuse code that was changed in this process and not in its file.

    Raises:
        CardError: naming what.
    """
    for name, file in reached.files.items():
        each = sys.modules.get(name, module if name.endswith(".py") else None)
        ours = name.partition(".")[0] in _OURS
        if each is None or ours or is_installed(file) or not comes_from(each, file):
            continue
        if file_digest(file) != reached.digests[name] or is_edited(name, file):
            continue  # it is imported anew, or was told
        if what := changed_in_memory(each, file, reached.files.values()):
            raise CardError(
                f"{reference!r}: in this process {each.__name__!r} is not what {file} says: "
                f"{what}. Results would be stored as those of the file. Write the change into the "
                "file, or start a new process."
            )


def _reach(location: str, root: Path) -> Reached:
    if location.endswith(".py"):
        file = root / location
        # Of a file in a folder below, the neighbours are imported as from there or from the root.
        return reach((), Belongs(), (root, file.parent), file, check=False)
    return reach((location,), Belongs(), (root,), check=False)


def _module(location: str, root: Path) -> ModuleType:
    place = (location, root.resolve())
    reached = _reach(location, root)
    known = _loaded.get(place)
    if known is not None and known[0] == reached.digest:
        return known[1]
    with _importable(root), _current(reached):
        if location.endswith(".py"):
            module = _import_file((root / location).resolve())
        else:
            module = importlib.import_module(location)
    _note(reached)
    if reached.files:
        _loaded[place] = (reached.digest, module)
    return module


def _note(reached: Reached) -> None:
    """Remember what the files said that were just imported: times alone do not tell of edits."""
    for name, said in reached.digests.items():
        if name in sys.modules and comes_from(sys.modules[name], reached.files[name]):
            note_imported(name, said)


@contextmanager
def _current(reached: Reached) -> Iterator[None]:
    """Let modules be imported as their files now say, and from the places that were found.

    One module that was edited makes all anew, since any may hold what it had. A module of the same
    name from elsewhere is another's; it is back afterwards.
    """
    by_file = {
        os.path.realpath(file): name
        for name, module in list(sys.modules.items())
        if (file := getattr(module, "__file__", None)) and name not in reached.files
    }
    names = {n: f for n, f in reached.files.items() if n in sys.modules and not is_installed(f)}
    digests = dict(reached.digests)
    for name, file in reached.files.items():
        # What only running it tells to be imported has no name of its own yet.
        other = by_file.get(os.path.realpath(file))
        if name.startswith("./") and other and not other.startswith("_zoopress_card_"):
            names[other], digests[other] = file, digests[name]
    others: dict[str, ModuleType] = {}
    edited = False
    for name, file in list(names.items()):
        if name.partition(".")[0] in _OURS:
            check_current(name, file, digests[name])
            del names[name]
        elif not comes_from(sys.modules[name], file):
            others[name] = sys.modules[name]
        else:
            edited = edited or is_edited(name, file, digests[name])
    for name, file in names.items() if edited or others else ():
        del sys.modules[name]
        with suppress(OSError, NotImplementedError):  # it tells edits of one second not apart
            Path(importlib.util.cache_from_source(str(file))).unlink()
    importlib.invalidate_caches()
    try:
        yield
    finally:
        sys.modules.update(others)


class _Source(SourceFileLoader):
    """Compiles the file, and trusts no bytecode, which tells edits of one second not apart."""

    def get_code(self, fullname: str) -> CodeType:
        path = self.get_filename(fullname)
        code: CodeType = self.source_to_code(self.get_data(path), path)
        return code


def _import_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise FileNotFoundError(path)
    name = f"_zoopress_card_{path.stem}_{abs(hash(str(path))):x}"
    spec = importlib.util.spec_from_file_location(name, path, loader=_Source(name, str(path)))
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    before = sys.modules.get(name)
    sys.modules[name] = module  # dataclasses and the like look their module up
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        if before is not None:
            sys.modules[name] = before
        raise
    return module


@contextmanager
def _importable(root: Path) -> Iterator[None]:
    sys.path.insert(0, str(root))
    try:
        yield
    finally:
        sys.path.remove(str(root))
