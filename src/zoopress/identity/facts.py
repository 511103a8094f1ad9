"""What a Python file imports and names, by parsing it; remembered by its content.

CACHE/zoopress/imports/VERSION/DIGEST.json    a file's facts, so that a process need not parse
"""

from __future__ import annotations

import ast
import json
import re
import warnings
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from zoopress.store import write_atomic

_VERSION = 2
_WORD = re.compile(r"[\w.:@/+-]{1,100}")
_BY_NAME = frozenset({"import_module", "__import__"})
_BY_SEARCH = frozenset({"spec_from_file_location", "walk_packages", "iter_modules"})


SERVICES = frozenset({"train", "statistics"})
"""What a context offers that has a room of its own in the core."""


@dataclass(frozen=True)
class Facts:
    """What matters of a file.

    Attributes:
        imports: of each import statement its level (dots), its module and the names it takes.
        words: strings without blanks: what it may ask a registry for.
        computed: packages out of which it imports what only running it tells; "" for any.
        asks: which of `SERVICES` it mentions as attributes.
    """

    imports: tuple[tuple[int, str, tuple[str, ...]], ...] = ()
    words: frozenset[str] = frozenset()
    computed: frozenset[str] = frozenset()
    asks: frozenset[str] = frozenset()


_known: dict[str, Facts] = {}


def facts_of(content: bytes, digest: str) -> Facts:
    """Return the facts of a file.

    Args:
        content: of the file; one that is not Python has none.
        digest: its SHA-256.
    """
    if digest not in _known:
        path = _folder() / f"{digest}.json"
        _known[digest] = _read(path) or _write(path, _parse(content))
    return _known[digest]


def _parse(content: bytes) -> Facts:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of another's code, such as invalid escapes
            tree = ast.parse(content)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return Facts()
    visitor = _Visitor()
    try:
        visitor.visit(tree)
    except RecursionError:
        return Facts(computed=frozenset({""}))
    return Facts(
        tuple(dict.fromkeys(visitor.imports)),
        frozenset(visitor.words),
        frozenset(visitor.computed),
        frozenset(visitor.asks),
    )


class _Visitor(ast.NodeVisitor):
    def __init__(self) -> None:
        self.imports: list[tuple[int, str, tuple[str, ...]]] = []
        self.words: set[str] = set()
        self.computed: set[str] = set()
        self.asks: set[str] = set()

    def visit_Import(self, node: ast.Import) -> None:
        self.imports.extend((0, alias.name, ()) for alias in node.names)

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        names = tuple(alias.name for alias in node.names if alias.name != "*")
        self.imports.append((node.level, node.module or "", names))

    def visit_If(self, node: ast.If) -> None:
        if isinstance(node.test, (ast.Name, ast.Attribute)) and (
            getattr(node.test, "id", getattr(node.test, "attr", "")) == "TYPE_CHECKING"
        ):
            for each in node.orelse:  # the rest is never run
                self.visit(each)
            return
        self.generic_visit(node)

    def visit_Call(self, node: ast.Call) -> None:
        name = getattr(node.func, "id", getattr(node.func, "attr", ""))
        owner = getattr(getattr(node.func, "value", None), "id", "")
        if name in _BY_NAME:
            self._import_by_name(node.args[0] if node.args else None)
        elif name in _BY_SEARCH or owner == "runpy" or (name == "exec" and not owner):
            self.computed.add("")
        self.generic_visit(node)

    def _import_by_name(self, given: ast.expr | None) -> None:
        if isinstance(given, ast.Constant) and isinstance(given.value, str):
            dots = len(given.value) - len(given.value.lstrip("."))
            self.imports.append((dots, given.value[dots:], ()))
            return
        start: Any = given.values[0] if isinstance(given, ast.JoinedStr) and given.values else None
        spelled = str(start.value) if isinstance(start, ast.Constant) else ""
        self.computed.add(spelled.partition(".")[0] if "." in spelled else "")

    def visit_Attribute(self, node: ast.Attribute) -> None:
        if node.attr in SERVICES:
            self.asks.add(node.attr)
        self.generic_visit(node)

    def visit_Constant(self, node: ast.Constant) -> None:
        if isinstance(node.value, str) and _WORD.fullmatch(node.value):
            self.words.add(node.value)


@cache
def _folder() -> Path:
    from platformdirs import user_cache_path

    return user_cache_path("zoopress") / "imports" / str(_VERSION)


def _read(path: Path) -> Facts | None:
    try:
        data = json.loads(path.read_bytes())
        imports = tuple((int(level), str(m), tuple(names)) for level, m, names in data["imports"])
        return Facts(
            imports, frozenset(data["words"]), frozenset(data["computed"]), frozenset(data["asks"])
        )
    except (OSError, ValueError, LookupError, TypeError):
        return None  # never parsed, or damaged


def _write(path: Path, facts: Facts) -> Facts:
    data = {
        "imports": facts.imports,
        "words": sorted(facts.words),
        "computed": sorted(facts.computed),
        "asks": sorted(facts.asks),
    }
    with suppress(OSError):  # a cache that cannot be written only costs time
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, json.dumps(data))
    return facts
