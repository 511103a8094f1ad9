"""Text for streams whose encoding has only some characters: others are written by lookalikes."""

from __future__ import annotations

import codecs
from io import TextIOWrapper
from typing import TextIO

LOOKALIKES = {
    **{"×": "x", "→": "->", "…": "...", "–": "-", "—": "-", "−": "-", "÷": "/", "√": "sqrt "},
    **{
        "✓": "ok",
        "✗": "no",
        "★": "*",
        "☆": "o",
        "⚠": "!",
        "≥": ">=",
        "≤": "<=",
        "≈": "~",
        "·": ".",
    },
    **{"“": '"', "”": '"', "‘": "'", "’": "'", "\N{NO-BREAK SPACE}": " "},
}
_HANDLER = "zoopress_lookalikes"


def write_any_text(stream: TextIO) -> None:
    """Make a stream write what its encoding cannot by lookalikes, or else by escapes."""
    if isinstance(stream, TextIOWrapper):
        codecs.register_error(_HANDLER, _replace)
        stream.reconfigure(errors=_HANDLER)


def _replace(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    text = error.object[error.start : error.end]
    shown = (LOOKALIKES.get(c) or c.encode("ascii", "backslashreplace").decode() for c in text)
    return "".join(shown), error.end
