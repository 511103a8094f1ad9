"""Displays of one run's progress; each is a listener of a `Reporter`."""

from __future__ import annotations

import json
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TextIO

from zoopress.progress.reporter import Event
from zoopress.units import show_seconds

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.live import Live
    from rich.text import Text

FIRST_BEAT_SECONDS, BEAT_SECONDS = 10.0, 30.0
"""When a step that goes on gets a plain line of its own, and how often after that."""
_LATELY, _FEWEST, _LEAST_LEFT = 32, 4, 30.0
"""Of how many items, and how few, time left is told, and how many seconds are worth a word."""


@dataclass
class Row:
    """Something under way."""

    title: str
    item: str = ""
    fraction: float | None = None
    started: float = field(default_factory=time.monotonic)
    _lately: deque[tuple[float, float]] = field(
        default_factory=lambda: deque(maxlen=_LATELY), repr=False
    )

    def advance(self, event: Event) -> None:
        """Take in an event "progress"."""
        self.item, self.fraction = str(event.get("text", "")), event.get("fraction")
        if self.fraction is None or (self._lately and self.fraction < self._lately[-1][1]):
            self._lately.clear()  # another part of the step
        if self.fraction is not None:
            self._lately.append((time.monotonic(), self.fraction))

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.started

    @property
    def percent(self) -> str:
        """How much is done; empty if that is not known."""
        return "" if self.fraction is None else f"{self.fraction:.0%}"

    @property
    def left(self) -> str:
        """About how much time is left, as things went lately; empty if it is little or unknown.

        What a killed run had done goes by in a moment, and tells nothing of the rest.
        """
        if len(self._lately) < _FEWEST:
            return ""
        (start, before), (now, fraction) = self._lately[0], self._lately[-1]
        gone = fraction - before
        seconds = (1 - fraction) * (now - start) / gone - (time.monotonic() - now) if gone else 0.0
        return f"about {show_seconds(seconds)} left" if seconds >= _LEAST_LEFT else ""

    def __str__(self) -> str:
        parts = (show_seconds(self.seconds), self.percent, self.left, self.item)
        return f"{self.title}: {', '.join(part for part in parts if part)}"


class Heartbeat:
    """Calls a function from a thread of its own, now and then, until it is stopped."""

    def __init__(self, first: float, every: float, beat: Callable[[], None]) -> None:
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(first, every, beat), daemon=True)
        self._thread.start()

    def _run(self, wait: float, every: float, beat: Callable[[], None]) -> None:
        while not self._stopped.wait(wait):
            beat()
            wait = every

    def stop(self) -> None:
        """Stop; no call is under way any more on return."""
        self._stopped.set()
        self._thread.join()


class JsonDisplay:
    """Writes each event as a line of JSON, with the time in seconds since 1970."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._lock = threading.Lock()

    def __call__(self, event: Event) -> None:
        line = json.dumps({"time": round(time.time(), 3), **event}, default=str)
        with self._lock:
            self._stream.write(line + "\n")
            self._stream.flush()


class PlainDisplay:
    """A line when a step begins, now and then while it lasts, and when it ends.

    Args:
        console: where to print.
        first: seconds until a step that goes on gets another line.
        every: seconds from then to the next.
    """

    def __init__(
        self, console: Console, first: float = FIRST_BEAT_SECONDS, every: float = BEAT_SECONDS
    ) -> None:
        self._console, self._first, self._every = console, first, every
        self._open: dict[int, tuple[Row, Heartbeat]] = {}

    def __call__(self, event: Event) -> None:
        kind, text = event["event"], str(event.get("text", ""))
        if kind in ("line", "warning"):
            print_line(self._console, kind, text, bool(event.get("loud")))
        elif kind == "stage":
            row = Row(text)
            print_line(self._console, kind, f"{text} …")
            beat = Heartbeat(
                self._first, self._every, lambda: print_line(self._console, kind, str(row))
            )
            self._open[event["step"]] = row, beat
        elif kind == "progress":
            self._open[event["step"]][0].advance(event)
        elif kind == "stage_ended":
            _, beat = self._open.pop(event["step"])
            beat.stop()
            if event["failed"]:
                print_line(
                    self._console, kind, f"{text}: failed after {show_seconds(event['seconds'])}"
                )
            elif event["closing_line"]:
                print_line(self._console, kind, f"{text}: {show_seconds(event['seconds'])}")


class LiveDisplay:
    """A moving row for each step under way; lines stay above them.

    Args:
        console: a terminal.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._rows: dict[int, Row] = {}
        # Held while the picture appears or goes, which is never from the thread that draws it.
        self._switching = threading.Lock()
        self._live: Live | None = None

    def __call__(self, event: Event) -> None:
        kind, text = event["event"], str(event.get("text", ""))
        if kind in ("line", "warning"):
            print_line(self._console, kind, text, bool(event.get("loud")))
        elif kind == "stage":
            self._rows[event["step"]] = Row(text)
            self._switch()
        elif kind == "progress":
            self._rows[event["step"]].advance(event)
        elif kind == "stage_ended":
            del self._rows[event["step"]]
            self._switch()

    def _switch(self) -> None:
        """Show a picture as long as there is something in it: between steps others may print."""
        with self._switching:
            if self._rows and self._live is None:
                self._live = live_picture(self._console, lambda: rows_table(self._rows.values()))
                self._live.start()
            elif not self._rows and self._live is not None:
                self._live.stop()
                self._live = None


def live_picture(console: Console, draw: Callable[[], RenderableType]) -> Live:
    """Return a picture that is drawn again eight times a second, and leaves nothing behind."""
    from rich.live import Live

    return Live(console=console, get_renderable=draw, refresh_per_second=8, transient=True)


def rows_table(rows: Iterable[Row]) -> RenderableType:
    """Return a table with a line for each row: title, bar, per cent, time and item."""
    from rich.progress_bar import ProgressBar
    from rich.table import Table
    from rich.text import Text

    table = Table.grid(padding=(0, 1))
    table.add_column(no_wrap=True, overflow="ellipsis")
    table.add_column(width=16, no_wrap=True)
    table.add_column(width=4, min_width=4, no_wrap=True, justify="right")
    table.add_column(min_width=6, no_wrap=True)
    table.add_column()  # the only one that may wrap, so the first to get narrower
    for row in tuple(rows):  # other threads add and remove rows
        bar = ProgressBar(
            total=None if row.fraction is None else 1.0,
            completed=row.fraction or 0.0,
            pulse=row.fraction is None,
            animation_time=time.monotonic(),
        )
        item = Text(row.item, style="dim", no_wrap=True, overflow="ellipsis")
        taken = ", ".join(filter(None, (show_seconds(row.seconds), row.left)))
        texts = (Text(row.percent), Text(taken), item)
        table.add_row(Text(row.title), bar, *texts)
    return table


def print_line(console: Console, kind: str, text: str, loud: bool = False) -> None:
    """Print a line; it comes from anywhere and holds no markup."""
    console.print(styled(kind, text, loud), soft_wrap=True)


def styled(kind: str, text: str, loud: bool = False) -> Text:
    """Return a line as it looks on a terminal."""
    from rich.text import Text

    if kind == "warning" and loud:
        return Text(f"WARNING: {text}", "bold red")
    if kind == "warning":
        return Text.assemble(("warning: ", "yellow"), text)
    line = Text(text)
    line.highlight_regex(r"^stage \d+/\d+", "bold")
    return line
