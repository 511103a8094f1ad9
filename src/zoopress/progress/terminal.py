"""What people see of progress: a reporter and a board on standard error."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from zoopress.errors import InputError, nearest
from zoopress.progress.reporter import Event, Listener, Reporter

if TYPE_CHECKING:
    from rich.console import Console

    from zoopress.progress.boards import Board

MODES = ("auto", "plain", "json", "quiet")
"""What $ZOOPRESS_PROGRESS may be."""


def terminal(quiet: bool = False, also: Sequence[Listener] = ()) -> Reporter:
    """Return a reporter that writes to standard error, so that results can be piped.

    Args:
        quiet: tell people nothing but what nobody may miss; JSON is written all the same where
            $ZOOPRESS_PROGRESS asks.
        also: who else is told.

    Raises:
        InputError: if $ZOOPRESS_PROGRESS is none of `MODES`.
    """
    from zoopress.progress.displays import JsonDisplay, LiveDisplay, PlainDisplay

    mode = _mode(quiet)
    if mode == "quiet":
        return Reporter([_show_if_loud, *also])
    if mode == "json":
        return Reporter([JsonDisplay(sys.stderr), *also])
    console = error_console()
    live = mode == "auto" and console.is_interactive
    return Reporter([LiveDisplay(console) if live else PlainDisplay(console), *also])


def _show_if_loud(event: Event) -> None:
    if event.get("loud"):
        from zoopress.progress.displays import print_line

        print_line(error_console(), "warning", str(event.get("text", "")), loud=True)


def zoo_board(total: int, quiet: bool = False) -> Board:
    """Return a display of many cells at once, on standard error.

    Use it as a context manager, and tell it events: those above with the key `cell`, and

        started      cell, text          work on the cell begins, or goes on; text says which
        ended        cell                work on it ends for now; it is not done
        retry        cell, text          it is tried again; text says why
        done, failed, stopped   cell, text   it is over; text says what came out, or why

    Args:
        total: how many cells there are.
        quiet: see `terminal`.

    Raises:
        InputError: if $ZOOPRESS_PROGRESS is none of `MODES`.
    """
    from zoopress.progress.boards import Board, JsonBoard, LiveBoard, PlainBoard

    mode = _mode(quiet)
    if mode == "quiet":
        return Board(total)
    if mode == "json":
        return JsonBoard(total, sys.stderr)
    console = error_console()
    live = mode == "auto" and console.is_interactive
    return LiveBoard(total, console) if live else PlainBoard(total, console)


def error_console() -> Console:
    """Return a console on standard error that can write whatever it is given."""
    from rich.console import Console

    from zoopress.progress.plain_text import write_any_text

    write_any_text(sys.stderr)
    return Console(file=sys.stderr)


def _mode(quiet: bool) -> str:
    mode = os.environ.get("ZOOPRESS_PROGRESS") or "auto"
    if mode not in MODES:
        raise InputError(f"ZOOPRESS_PROGRESS is {mode!r}.{nearest(mode, MODES)}")
    return "quiet" if quiet and mode != "json" else mode
