"""Sentences to calibrate and compare on."""

from __future__ import annotations

import ast
import hashlib
import re
import sysconfig
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
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise CardError(f"'data.text': {path} cannot be read as UTF-8 text: {error}.") from error
    sentences = tuple(dict.fromkeys(line.strip() for line in lines if line.strip()))
    if not sentences:
        raise CardError(f"'data.text': {path} has no line of text.")
    return sentences


@lru_cache(maxsize=1)
def docstring_sentences() -> tuple[str, ...]:
    """Return sentences of 30 to 300 characters from the standard library's docstrings.

    They are in an order that depends on their content alone, so that nearby ones are unrelated.
    """
    library = Path(sysconfig.get_paths()["stdlib"])
    sentences: set[str] = set()
    for path in sorted(library.glob("*.py")):
        try:
            tree = ast.parse(path.read_text(encoding="utf-8"))
        except (OSError, SyntaxError, UnicodeDecodeError):  # some are damaged on purpose
            continue
        for node in ast.walk(tree):
            if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)):
                text = ast.get_docstring(node) or ""
                for paragraph in re.split(r"\n\s*\n", text):
                    for sentence in re.split(r"(?<=[.!?])\s+", " ".join(paragraph.split())):
                        if 30 <= len(sentence) <= 300 and sentence[0].isupper():
                            sentences.add(sentence)
    return tuple(sorted(sentences, key=lambda s: hashlib.sha256(s.encode()).digest()))
