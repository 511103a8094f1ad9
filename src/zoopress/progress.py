"""Telling people what is going on: a live bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console


class Reporter:
    """Prints one line a finished step, and shows the running step while it lasts.

    Args:
        console: where to print; None for silence.
    """

    def __init__(self, console: Console | None = None) -> None:
        self.console = console

    def line(self, text: str) -> None:
        """Print a line."""
        if self.console is not None:
            self.console.print(text, highlight=False, soft_wrap=True)

    @contextmanager
    def step(self, title: str) -> Iterator[Callable[[str], None]]:
        """Show that something is under way; call what it yields with each finished item."""
        if self.console is None or not self.console.is_terminal:
            if self.console is not None:
                self.line(f"{title} …")
            yield lambda item: None
            return
        with self.console.status(title) as status:

            def show(item: str) -> None:
                status.update(f"{title}  [dim]{item}[/dim]")

            yield show


def terminal(quiet: bool = False) -> Reporter:
    """Return a reporter that writes to standard error, so that results can be piped."""
    if quiet:
        return Reporter()
    from rich.console import Console

    return Reporter(Console(file=sys.stderr))
