"""Displays of many cells at once; `zoopress.progress.zoo_board` decides which."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from types import TracebackType
from typing import TYPE_CHECKING, TextIO

from zoopress.progress.displays import Heartbeat, JsonDisplay, Row, live_picture, rows_table, styled
from zoopress.progress.reporter import Event
from zoopress.units import show_seconds

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from typing_extensions import Self

SIGNS = {"done": ("✓", "green"), "failed": ("✗", "red"), "stopped": ("–", "yellow")}
BEAT_SECONDS = 60.0
"""How often plain lines say what is running."""


@dataclass
class CellRow(Row):
    """A cell under way; its steps may stand within one another."""

    steps: dict[object, str] = field(default_factory=dict)

    def begin(self, event: Event) -> None:
        """Take in an event "stage"."""
        self.steps[event.get("step")] = str(event.get("text", ""))
        self.item, self.fraction = "", None

    def end(self, event: Event) -> None:
        """Take in an event "stage_ended"."""
        self.steps.pop(event.get("step"), None)
        self.item, self.fraction = "", None

    @property
    def step(self) -> str:
        """The innermost step."""
        return next(reversed(self.steps.values()), "")

    def __str__(self) -> str:
        parts = (self.step, self.percent, self.item)
        return f"{self.title} ({', '.join(part for part in parts if part) or 'starting'})"


class Board:
    """Keeps count of cells, and shows nothing; any number of threads may tell it events.

    Args:
        total: how many cells there are.
    """

    def __init__(self, total: int) -> None:
        self.total = total
        self.ended = dict.fromkeys(SIGNS, 0)
        self.running: dict[str, CellRow] = {}
        self.clock = Row("")
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        pass

    def tell(self, event: Event) -> None:
        """Take in an event; one that is not known is ignored."""
        kind, name = event.get("event"), str(event.get("cell", ""))
        with self._lock:
            row = self.running.get(name)
            if kind in ("started", "stage") and row is None:
                row = self.running[name] = CellRow(name, str(event.get("text", "")))
            if kind in (*SIGNS, "ended"):
                self.running.pop(name, None)
            if kind in SIGNS:
                self.ended[kind] += 1
            if row is not None and kind == "stage":
                row.begin(event)
            elif row is not None and kind == "stage_ended":
                row.end(event)
            elif row is not None and kind == "progress":
                row.advance(event)
            elif row is not None and kind == "line":
                row.item = str(event.get("text", ""))
            count = sum(self.ended.values())
        # Not under the lock: what prints takes locks of its own, under which it may draw.
        self._show(str(kind), name, str(event.get("text", "")), count, loud=bool(event.get("loud")))

    @property
    def summary(self) -> str:
        """How many cells have ended how, and how many are running."""
        parts = [f"{sum(self.ended.values())} of {self.total} cells"]
        parts += [
            f"{self.ended[kind]} {kind}" for kind in ("failed", "stopped") if self.ended[kind]
        ]
        return ", ".join([*parts, f"{len(self.running)} running", show_seconds(self.clock.seconds)])

    def _show(self, kind: str, name: str, text: str, count: int, loud: bool) -> None:
        """Show what is worth a line that stays."""


class JsonBoard(Board):
    """Writes each event as a line of JSON, after one that says how many cells there are."""

    def __init__(self, total: int, stream: TextIO) -> None:
        super().__init__(total)
        self._write = JsonDisplay(stream)

    def __enter__(self) -> Self:
        self._write({"event": "zoo", "total": self.total})
        return self

    def tell(self, event: Event) -> None:
        self._write(event)


class PlainBoard(Board):
    """A line for each cell that ends, and now and then one on those that run.

    Args:
        total: how many cells there are.
        console: where to print.
        every: seconds between the lines on what runs.
    """

    def __init__(self, total: int, console: Console, every: float = BEAT_SECONDS) -> None:
        super().__init__(total)
        self._console, self._every = console, every

    def __enter__(self) -> Self:
        self._beat = Heartbeat(self._every, self._every, self._say_what_runs)
        return self

    def __exit__(self, *_: object) -> None:
        self._beat.stop()

    def _show(self, kind: str, name: str, text: str, count: int, loud: bool) -> None:
        first = next(iter(text.strip().splitlines()), "")
        if kind in SIGNS:
            sign, colour = SIGNS[kind]
            place = f"[{count:{len(str(self.total))}}/{self.total}]"
            line = styled("line", f"{place} {sign} {name}" + (f"  {first}" if first else ""))
            line.stylize(colour, len(place) + 1, len(place) + 2)
        elif kind == "retry":
            line = styled("warning", f"{name} is tried again: {first}")
        elif kind == "warning":
            line = styled("warning", f"{name}: {text}" if name else text, loud)
        else:
            return
        self._console.print(line, soft_wrap=True)

    def _say_what_runs(self) -> None:
        with self._lock:
            named = [str(row) for row in list(self.running.values())[:3]]
            more = len(self.running) - len(named)
        if named:
            rest = f" and {more} more" if more > 0 else ""
            self._console.print(
                styled("line", f"{self.summary}: {', '.join(named)}{rest}"), soft_wrap=True
            )


class LiveBoard(PlainBoard):
    """An overall bar and a moving row for each running cell, below the lines of those that ended.

    Args:
        total: how many cells there are.
        console: a terminal.
    """

    def __enter__(self) -> Self:
        self._live = live_picture(self._console, self._draw)
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def _draw(self) -> RenderableType:
        from rich.console import Group
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        with self._lock:
            rows = [
                Row(
                    row.title,
                    " ".join(filter(None, (row.step, row.item))),
                    row.fraction,
                    row.started,
                )
                for row in self.running.values()
            ]
        overall = Table.grid(padding=(0, 1))
        overall.add_column(width=30)
        overall.add_column(no_wrap=True, overflow="ellipsis")
        overall.add_row(
            ProgressBar(total=max(1, self.total), completed=sum(self.ended.values())),
            Text(self.summary),
        )
        return Group(rows_table(rows), overall)
