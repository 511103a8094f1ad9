"""The files of a zoo run's leaderboard."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from zoopress.errors import StoreError, os_words
from zoopress.reports.leaderboard import Leaderboard
from zoopress.reports.leaderboard_page import leaderboard_page
from zoopress.reports.leaderboard_table import leaderboard_markdown
from zoopress.store import write_atomic


def write_leaderboard(board: Leaderboard, out: Path) -> None:
    """Write OUT/leaderboard.json, .md and .html, each in one step.

    Raises:
        StoreError: if they cannot be written.
    """
    with writing(out):
        write_atomic(out / "leaderboard.json", json.dumps(board.as_dict(), indent=2) + "\n")
        write_atomic(out / "leaderboard.md", leaderboard_markdown(board))
        write_atomic(out / "leaderboard.html", leaderboard_page(board, out))


@contextmanager
def writing(out: Path) -> Iterator[None]:
    """Turn an error of the file system into one that says what to do."""
    try:
        yield
    except OSError as error:
        raise StoreError(
            f"Cannot write to {out}: {os_words(error)}. Choose another --out; what was "
            "computed is in the store."
        ) from error
