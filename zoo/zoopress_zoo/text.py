"""Sentences to calibrate and compare on."""

from __future__ import annotations

import ast
import hashlib
import re
import sysconfig
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

from zoopress.errors import CardError

DOCSTRINGS = "python-docstrings"


def read_sentences(reference: str, root: Path) -> tuple[str, ...]:
    """Return distinct sentences: lines of a text file, or docstrings of the standard library.

    Args:
        reference: a file relative to `root`, or "python-docstrings".
        root: the card's folder.

    Raises:
        CardError: if the file is missing or empty.
    """
    if reference == DOCSTRINGS:
        return docstring_sentences()
    path = root / reference
    lines = _read_text(path).splitlines()
    sentences = tuple(dict.fromkeys(line.strip() for line in lines if line.strip()))
    if not sentences:
        raise CardError(f"'data.text': {path} has no line of text.")
    return sentences


def read_documents(reference: str, root: Path) -> tuple[str, ...]:
    """Return distinct documents: what blank lines divide in a text file, or whole docstrings.

    In a file without blank lines every line is one.

    Args:
        reference: a file relative to `root`, or "python-docstrings".
        root: the card's folder.

    Raises:
        CardError: if the file is missing or empty.
    """
    if reference == DOCSTRINGS:
        return tuple(sorted(set(_docstrings())))
    text = _read_text(root / reference)
    blocks = [block.strip() for block in re.split(r"\n\s*\n", text)]
    documents = [block for block in blocks if block]
    return (
        tuple(dict.fromkeys(documents)) if len(documents) > 1 else read_sentences(reference, root)
    )


@lru_cache(maxsize=1)
def docstring_sentences() -> tuple[str, ...]:
    """Return sentences of 30 to 300 characters from the standard library's docstrings.

    They are in an order that depends on their content alone, so that nearby ones are unrelated.
    """
    sentences = {
        sentence
        for text in _docstrings()
        for paragraph in re.split(r"\n\s*\n", text)
        for sentence in re.split(r"(?<=[.!?])\s+", " ".join(paragraph.split()))
        if 30 <= len(sentence) <= 300 and sentence[0].isupper()
    }
    return tuple(sorted(sentences, key=lambda s: hashlib.sha256(s.encode()).digest()))


@lru_cache(maxsize=1)
def _docstrings() -> tuple[str, ...]:
    """Return the docstrings of the standard library's modules, classes and functions."""
    library = Path(sysconfig.get_paths()["stdlib"])
    found = []
    for path in sorted(library.glob("*.py")):
        try:
            tree = ast.parse(path.read_text(encoding="utf-8"))
        except (OSError, SyntaxError, UnicodeDecodeError):  # some are damaged on purpose
            continue
        found += [
            ast.get_docstring(node) or ""
            for node in _statements(tree)
            if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef))
        ]
    return tuple(text for text in found if text)


def _statements(node: ast.AST) -> Iterator[ast.AST]:
    """Yield a node and all statements in it; expressions are most of a tree, and hold none."""
    yield node
    for block in ("body", "orelse", "finalbody", "handlers", "cases"):
        for inner in getattr(node, block, ()):
            yield from _statements(inner)


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise CardError(f"'data.text': {path} cannot be read as UTF-8 text: {error}.") from error
