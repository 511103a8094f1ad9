"""A leaderboard as a table: which columns there are, for terminals, Markdown and HTML."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from zoopress.reports.leaderboard import Leaderboard
from zoopress.reports.markdown import one_line, table, text
from zoopress.reports.quality_words import MARK, MEANING
from zoopress.reports.standing import Figures, Latency, Standing
from zoopress.units import show_bytes, show_seconds

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderableType

MARKS = f"★ on the Pareto front of the whole zoo, ☆ on that of its card, {MEANING}"
MARKDOWN_ROWS = 500
"""GitHub's summaries hold 1 MiB, so longer leaderboards are cut there."""


@dataclass(frozen=True)
class Column:
    """One measure of cells that are done.

    Attributes:
        header: its name.
        meaning: its definition, in a few words.
        value: what it is sorted by; None where it was not measured.
        show: how its value is written.
        width: the narrowest terminal that has room for it.
        lower_is_better: whether a smaller value is.
        optional: whether it is left out where no cell has it.
        words: what stands in its cells instead of the value alone.
    """

    header: str
    meaning: str
    value: Callable[[Figures], float | None]
    show: Callable[[float], str]
    width: int = 0
    lower_is_better: bool = False
    optional: bool = False
    words: Callable[[Figures], str] | None = None

    def text(self, figures: Figures) -> str:
        """Return what stands in a cell of this column."""
        value = self.value(figures)
        if value is None:
            return "–"
        return self.words(figures) if self.words else self.show(value)


def _speed_up(row: Latency | None) -> float | None:
    return row.speed_up if row else None


def _speed_words(row: Latency | None) -> str:
    if row is None or row.speed_up is None:
        return "–"
    return f"{_times(row.speed_up)} {row.runtime}".rstrip()


def _milliseconds(row: Latency | None) -> float | None:
    return row.compressed_ms_p50 if row else None


def _metric_gain(figures: Figures) -> float | None:
    drop = figures.metric.drop if figures.metric else None
    return None if drop is None else 0.0 - drop


def _metric_words(figures: Figures) -> str:
    metric = figures.metric
    if metric is None:
        return "–"
    return f"{metric.title} {metric.show(metric.compressed)} ({metric.difference_text})"


def _times(value: float) -> str:
    return f"{value:.2f}×"


def _fixed(places: int) -> Callable[[float], str]:
    return lambda value: f"{value:.{places}f}"


COLUMNS = (
    Column("ratio", "original bytes ÷ compressed bytes", lambda f: f.compression_ratio, _times),
    Column(
        "size",
        "bytes of all files",
        lambda f: f.size_bytes,
        lambda v: show_bytes(int(v)),
        80,
        lower_is_better=True,
    ),
    Column(
        "bits/weight",
        "bits of the tensor files ÷ parameters of the original",
        lambda f: f.bits_per_weight,
        _fixed(2),
        180,
        lower_is_better=True,
    ),
    Column(
        "task metric",
        "what the task is judged by, and how far that is from the original's, with 95 % confidence",
        _metric_gain,
        _fixed(4),
        100,
        optional=True,
        words=_metric_words,
    ),
    Column("cosine", "mean similarity of outputs to the original's", lambda f: f.cosine, _fixed(4)),
    Column(
        "label loyalty",
        "share of samples with the same label",
        lambda f: f.label_loyalty,
        _fixed(4),
        100,
    ),
    Column(
        "prob. loyalty",
        "1 − √(Jensen–Shannon divergence) of the labels' distributions",
        lambda f: f.probability_loyalty,
        _fixed(4),
        180,
    ),
    Column(
        "speed-up",
        "median latency of the original ÷ that of the compressed model, batch size 1; each in its "
        "fastest runtime, which is named, where runtimes were timed, else in eager PyTorch",
        lambda f: _speed_up(f.single),
        _times,
        50,
        words=lambda f: _speed_words(f.single),
    ),
    Column(
        "speed-up, batch",
        "the same for the largest batch that was measured",
        lambda f: _speed_up(f.largest),
        _times,
        130,
        words=lambda f: _speed_words(f.largest),
    ),
    Column(
        "ms",
        "median latency in milliseconds, batch size 1",
        lambda f: _milliseconds(f.single),
        _fixed(2),
        120,
        lower_is_better=True,
    ),
    Column(
        "ms, batch",
        "the same for the largest batch that was measured",
        lambda f: _milliseconds(f.largest),
        _fixed(2),
        180,
        lower_is_better=True,
    ),
    Column(
        "MACs reduction",
        "MACs of the original ÷ those of the compressed model",
        lambda f: f.macs_reduction,
        _times,
        130,
        optional=True,
    ),
)


def columns_of(leaderboard: Leaderboard) -> list[Column]:
    """Return the columns without those that no cell has anything in."""
    return [
        column
        for column in COLUMNS
        if not column.optional or any(column.value(f) is not None for _, f in leaderboard.done)
    ]


def stages_text(figures: Figures) -> str:
    """Say how many stages were computed in this run."""
    computed = sum(stage.computed for stage in figures.stages)
    if not computed:
        return "from the store"
    return f"{computed} of {len(figures.stages)} computed"


def mark(cell: Standing) -> str:
    """Return the signs of a cell: on a front, and unlike its original."""
    front = "★" if cell.on_front else "☆" if cell.on_card_front else ""
    return front + (MARK if cell.figures is not None and is_unlike(cell.figures) else "")


def is_unlike(figures: Figures) -> bool:
    """Tell whether the guard on quality found the model unlike its original."""
    return figures.like_original is False


class LeaderboardTable:
    """What rich prints of a leaderboard; the columns are those that the terminal has room for."""

    def __init__(self, leaderboard: Leaderboard) -> None:
        self.leaderboard = leaderboard

    def __rich_console__(
        self, console: Console, options: ConsoleOptions
    ) -> Iterator[RenderableType]:
        """Yield the table of what is done, the list of what is not, and a summary."""
        from rich.text import Text

        board = self.leaderboard
        if board.done:
            yield self._done(options.max_width)
            yield Text(MARKS, style="dim")
        for cell in board.unfinished:
            line = Text(f"{cell.state} ", style="red" if cell.state == "failed" else "yellow")
            line.append(one_line(cell.name), style="bold")
            yield line.append(f": {one_line(cell.reason_line)}", style="not bold default")
        yield Text(board.summary)

    def _done(self, width: int) -> RenderableType:
        from rich import box
        from rich.table import Table
        from rich.text import Text

        columns = [column for column in columns_of(self.leaderboard) if column.width <= width]
        wide = width >= 100
        shown = Table(box=box.SIMPLE, show_edge=False, pad_edge=False)
        shown.add_column("")
        for header in ("card", "recipe"):
            shown.add_column(header, overflow="fold")
        for column in columns:
            longest = max(map(len, column.header.split()))
            shown.add_column(column.header, justify="right", overflow="fold", min_width=longest)
        if wide:
            shown.add_column("stages", overflow="fold")
            shown.add_column("time", justify="right", no_wrap=True)
        card = None
        for cell, figures in self.leaderboard.done:
            if card not in (None, cell.card):
                shown.add_section()
            card = cell.card
            row = [mark(cell), one_line(cell.card), one_line(cell.recipe)]
            row += [column.text(figures) for column in columns]
            if wide:
                row += [stages_text(figures), show_seconds(cell.seconds)]
            # Names come from others and hold no markup.
            shown.add_row(*map(Text, row), style="bold" if cell.on_front else "")
        return shown


def leaderboard_markdown(leaderboard: Leaderboard) -> str:
    """Return a leaderboard as Markdown; all that others wrote in it is plain text."""
    parts = ["# Leaderboard", text(leaderboard.summary) + "."]
    if leaderboard.done:
        columns = columns_of(leaderboard)
        header = ["", "card", "recipe", *(column.header for column in columns), "stages", "time"]
        rows = [
            [
                mark(cell),
                text(cell.card),
                text(cell.recipe),
                *(column.text(figures) for column in columns),
                stages_text(figures),
                show_seconds(cell.seconds),
            ]
            for cell, figures in leaderboard.done[:MARKDOWN_ROWS]
        ]
        parts += [table(header, rows), f"{MARKS}."]
        if (left := len(leaderboard.done) - len(rows)) > 0:
            parts.append(f"{left} more are in the JSON and HTML forms.")
    if leaderboard.unfinished:
        bad = [
            [text(cell.card), text(cell.recipe), cell.state, text(cell.reason_line)]
            for cell in leaderboard.unfinished[:MARKDOWN_ROWS]
        ]
        parts += ["## Not done", table(["card", "recipe", "", "reason"], bad)]
    return "\n\n".join(parts) + "\n"
