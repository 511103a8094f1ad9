"""Every file that a module leads to by its imports, and the digest of them all."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from zoopress.identity.facts import Facts, facts_of
from zoopress.identity.loaded import check_current
from zoopress.identity.modules import Found, find_below, find_module
from zoopress.moved import MOVED
from zoopress.store import digest, file_digest

Follow = Callable[[str, Path], bool]
"""Tells of a module's name and file whether it belongs to what is asked about; hashable."""

DATA = frozenset(
    {
        *(".json", ".jsonl", ".yaml", ".yml", ".toml", ".ini", ".cfg", ".txt", ".csv", ".tsv"),
        *(".npy", ".npz", ".pt", ".pth", ".bin", ".ckpt", ".pkl", ".safetensors", ".parquet"),
    }
)
"""Suffixes of files that a card's code may read: what it names becomes part of its digest."""

_RACY_NS = 100_000_000
"""A file that changed just now may change once more without a sign."""


@dataclass
class Reached:
    """What was found.

    Attributes:
        digests: of each file, by the name of its module.
        files: by the name of the module.
        words: what the files outside of the core may ask a registry for.
        asks: which services of a context any of those mentions.
    """

    digests: dict[str, str] = field(default_factory=dict)
    files: dict[str, Path] = field(default_factory=dict)
    words: set[str] = field(default_factory=set)
    asks: set[str] = field(default_factory=set)

    @property
    def digest(self) -> str:
        """The digest of all files, wherever they lie."""
        return digest(sorted(self.digests.items()))


def reach(
    modules: Iterable[str],
    follow: Follow,
    folders: Sequence[Path] = (),
    file: Path | None = None,
    check: bool = True,
) -> Reached:
    """Find all files that modules lead to by import statements, those inside functions too.

    Args:
        modules: where to start, by dotted names; they belong without being asked about.
        follow: tells what else belongs.
        folders: where modules are looked for before Python's own path.
        file: one more to start from, that is no module: a card's.
        check: whether to refuse modules that were edited after this process imported them.

    Raises:
        PluginError: if one was.
    """
    asked = (tuple(modules), follow, tuple(folders), file, check)
    known = _known.get(asked)
    if known is not None and known.signs == _signs(known.reached):
        return known.reached
    before = time.time_ns()
    reached = _Walk(follow, folders, check).run(asked[0], file)
    signs = _signs(reached)
    if all(sign is None or sign[0] < before - _RACY_NS for sign in signs):
        _known[asked] = _Known(reached, signs)
    return reached


class _Known(NamedTuple):
    reached: Reached
    signs: list[tuple[int, ...] | None]


_known: dict[tuple[object, ...], _Known] = {}


def _signs(reached: Reached) -> list[tuple[int, ...] | None]:
    """Return what changes when files, or which of them there are, do."""
    files = list(reached.files.values())
    signs: list[tuple[int, ...] | None] = []
    for path in (*files, *sorted({file.parent for file in files})):
        try:
            stat = path.stat()
            signs.append((stat.st_mtime_ns, stat.st_ctime_ns, stat.st_size, stat.st_ino))
        except OSError:
            signs.append(None)
    return signs


class _Walk:
    def __init__(self, follow: Follow, folders: Sequence[Path], check: bool) -> None:
        self.follow, self.folders, self.check = follow, folders, check
        self.reached = Reached()
        self.todo: list[tuple[str, Path, bool]] = []
        self.asked: dict[str, Found | None] = {}
        self.further: list[Path] = []

    def run(self, modules: Iterable[str], file: Path | None) -> Reached:
        for name in modules:
            self._add(name, always=True)
        if file is not None and file.is_file():
            # Named after its place, for it has no name that others import it by.
            self._take(f"./{file.name}", file, package=False)
        while self.todo:
            name, path, package = self.todo.pop()
            if path.suffix in DATA:
                self.reached.digests[name] = file_digest(path)
                continue
            content = path.read_bytes()
            sha = hashlib.sha256(content).hexdigest()
            if self.check and not name.startswith("./"):
                check_current(name, path, sha)
            self.reached.digests[name] = sha
            if path.suffix == ".py":
                self._enter(name, package, facts_of(content, sha))
        return self.reached

    def _enter(self, name: str, package: bool, facts: Facts) -> None:
        own = [] if name.startswith("./") else name.split(".")
        if own[:1] != ["zoopress"]:  # the core asks for nothing by name
            self.reached.words |= facts.words
            self.reached.asks |= facts.asks
        if self.folders:  # a card's
            self._look_around(self.reached.files[name], facts.words)
        for level, module, names in facts.imports:
            base = module
            if level:
                around = own if package else own[:-1]
                kept = around[: len(around) - level + 1]
                base = ".".join([*kept, *([module] if module else [])])
            if base:
                self._add(base)
                for each in names:
                    self._add(f"{base}.{each}")
        for word in facts.words:
            module, colon, _ = word.partition(":")
            if colon and "." in module and self._around(module):
                self._add(module)  # "module:attribute", as hooks take it
        if facts.computed and own:
            # Of the core just the room: what plugins register has its own place in keys.
            package_name = ".".join(own[:2]) if own[0] == "zoopress" else own[0]
            if facts.computed & {"", own[0]}:
                self._add_all(package_name)
        elif "" in facts.computed:
            self._add_beside(self.reached.files[name].parent)

    def _look_around(self, file: Path, words: Iterable[str]) -> None:
        """Take the data files that code names, and note the folders that it may import from."""
        bases = dict.fromkeys((*self.folders, file.parent))
        above = list(file.parents)[1:3]
        for word in sorted(words):
            if Path(word).suffix in DATA:
                for base in bases:
                    for found in (base / word, *base.glob(f"*/{Path(word).name}")):
                        if found.is_file():
                            self._take(f"data:{os.path.relpath(found, base)}", found, False)
            elif not word.startswith("/"):
                self.further.extend(p for b in (*bases, *above) if (p := b / word).is_dir())
        self.further.extend(above)

    def _around(self, module: str) -> bool:
        return any(
            each.partition(".")[0] == module.partition(".")[0] for each in self.reached.files
        )

    def _add(self, name: str, always: bool = False) -> None:
        """Take a module and the packages around it, whose files run first."""
        parts = MOVED.get(name, name).split(".")
        found: Found | None = None
        for depth in range(1, len(parts) + 1):
            full = ".".join(parts[:depth])
            if full not in self.asked:
                place = find_below(found, full, self.folders)
                if place is None and found is None and self.further:
                    # What it puts on Python's path before it imports.
                    place = find_below(None, full, self.further)
                self.asked[full] = place
            found = self.asked[full]
            if found is None:
                return  # an attribute, or Python's own
            if found.file is None:
                continue
            if (always and depth == len(parts)) or self.follow(full, found.file):
                self._take(full, found.file, package=bool(found.folders))
            elif depth == 1 and full != "zoopress" and not always:
                return  # another's distribution

    def _take(self, name: str, file: Path, package: bool) -> None:
        if name not in self.reached.files:
            self.reached.files[name] = file
            self.todo.append((name, file, package))

    def _add_all(self, top: str) -> None:
        """Take all of a package, since only running it tells what of it is imported."""
        found = self.asked.get(top) or find_module(top, self.folders)
        for folder in found.folders if found else ():
            for file in sorted(folder.rglob("*.py")):
                parts = [*top.split("."), *file.relative_to(folder).with_suffix("").parts]
                package = parts[-1] == "__init__"
                name = ".".join(parts[:-1] if package else parts)
                if self.follow(name, file):
                    self._take(name, file, package)

    def _add_beside(self, folder: Path) -> None:
        for file in sorted(folder.glob("*.py")):
            self._take(f"./{file.name}", file, package=False)
