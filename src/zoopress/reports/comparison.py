"""Compressed models side by side: which is best in what, and which are on the Pareto front."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from zoopress.errors import InputError
from zoopress.reports.drawing import Chart
from zoopress.reports.first_original import first_original_name, source_name
from zoopress.reports.leaderboard import Leaderboard
from zoopress.reports.leaderboard_table import Column, columns_of, is_unlike
from zoopress.reports.markdown import one_line, table, text
from zoopress.reports.quality_words import MEANING
from zoopress.reports.standing import Figures, Latency, Standing, figures_of
from zoopress.results.figures import mapping, metric_of_figures, number

if TYPE_CHECKING:
    from rich.table import Table

    from zoopress.publishing.lineage import Lineage
    from zoopress.publishing.reading import Found

_NAME_WIDTH, _MODEL_WIDTH = 18, 22
"""Of columns on a terminal."""


@dataclass(frozen=True)
class Cell:
    """What one model has in a row."""

    text: str
    best: bool


@dataclass(frozen=True)
class Row:
    """One measure of all models.

    Attributes:
        title: its name.
        meaning: its definition.
        cells: one a model.
    """

    title: str
    meaning: str
    cells: list[Cell]


@dataclass(frozen=True)
class Comparison:
    """Models side by side, those on the Pareto front first.

    Attributes:
        board: ranks them.
        names: of the models, no two alike, in the order of all cells.
        rows: what was measured.
        notes: what keeps the figures from being compared.
    """

    board: Leaderboard
    names: list[str]
    rows: list[Row]
    notes: list[str]

    def charts(self) -> list[Chart]:
        """Draw size against fidelity and speed.

        Raises:
            ChartsMissingError: if what draws them is not installed.
        """
        from zoopress.reports.leaderboard_charts import charts

        return charts(self.board)

    def as_dict(self) -> dict[str, Any]:
        """Return plain JSON data."""
        models = [
            {
                "name": name,
                "place": cell.folder,
                "card": cell.card,
                "recipe": cell.recipe,
                "on_front": cell.on_front,
                "compression_ratio": figures.compression_ratio,
                **asdict(figures),
            }
            for name, (cell, figures) in zip(self.names, self.board.done, strict=True)
        ]
        best = {
            row.title: [name for name, cell in zip(self.names, row.cells, strict=True) if cell.best]
            for row in self.rows
        }
        return {"schema": 1, "notes": self.notes, "models": models, "best": best}

    def markdown(self) -> str:
        """Return the table as Markdown, the best of each row bold."""
        header = ["", *map(text, self.names)]
        rows = [
            [row.title, *(f"**{cell.text}**" if cell.best else cell.text for cell in row.cells)]
            for row in self.rows
        ]
        return "\n\n".join([table(header, rows), *map(text, self.notes)]) + "\n"

    def tables(self, width: int) -> Iterator[Table]:
        """Yield what rich prints: as many models side by side as there is room for; * is best."""
        from rich import box
        from rich.table import Table
        from rich.text import Text

        many = max(1, (width - _NAME_WIDTH) // _MODEL_WIDTH)
        for start in range(0, len(self.names), many):
            shown = Table(box=box.SIMPLE, show_edge=False, pad_edge=False)
            shown.add_column("", no_wrap=True)
            for name in self.names[start : start + many]:
                shown.add_column(Text(name), justify="right", overflow="fold")
            for row in self.rows:
                cells = [
                    Text(f"{cell.text} *", "bold green") if cell.best else Text(f"{cell.text}  ")
                    for cell in row.cells[start : start + many]
                ]
                shown.add_row(row.title, *cells)
            yield shown


def compare(found: Sequence[Found]) -> Comparison:
    """Put models side by side.

    Raises:
        InputError: if a model does not even say how large it is.
    """
    standings = [_standing(item) for item in found]
    board = Leaderboard(standings)
    plain = [f"{cell.card} × {cell.recipe}" for cell, _ in board.done]
    names = [
        one_line(name if plain.count(name) == 1 else cell.folder)
        for name, (cell, _) in zip(plain, board.done, strict=True)
    ]
    figures = [one for _, one in board.done]
    same_card = len({cell.card for cell, _ in board.done}) == 1
    front = [Cell("★" if cell.on_front else "", False) for cell, _ in board.done]
    rows = [Row("Pareto front", "no other is at least as good in all, and better in one", front)]
    rows += [_row(column, figures, same_card) for column in columns_of(board)]
    notes = [
        f"{name}: {MEANING}." for name, one in zip(names, figures, strict=True) if is_unlike(one)
    ]
    return Comparison(board, names, rows, notes + _notes(found))


def _row(column: Column, figures: Sequence[Figures], same_card: bool) -> Row:
    values = [column.value(one) for one in figures]
    texts = [column.text(one) for one in figures]
    known = [(value, text) for value, text in zip(values, texts, strict=True) if value is not None]
    best = None
    # The smallest file of different originals is no achievement; what looks equal is equal.
    if len({text for _, text in known}) > 1 and (same_card or not column.lower_is_better):
        choose = min if column.lower_is_better else max
        best = choose(known, key=lambda pair: pair[0])[1]
    return Row(column.header, column.meaning, [Cell(shown, shown == best) for shown in texts])


def _standing(item: Found) -> Standing:
    if item.report is not None:
        card, recipe = str(item.report.card["name"]), str(item.report.recipe["name"])
        figures = figures_of(item.report)
    else:
        assert item.lineage is not None
        card = str(item.lineage.source["name"])
        recipe = str(item.lineage.recipe or "unknown recipe")
        figures = _published_figures(item.lineage, item.size_bytes)
    return Standing(card, recipe, "done", folder=item.place, figures=figures)


def _published_figures(lineage: Lineage, size_bytes: int | None) -> Figures:
    """Return what an artifact says of itself; strangers may have written it."""
    known = mapping(lineage.metrics)
    size = size_bytes or number(known.get("size_bytes"))
    if not size or size < 1:
        raise InputError(
            f"{lineage.place} does not say how large it is: its page has no figures of this "
            "artifact. Fetch it with `zoopress pull` and compare the folder."
        )
    latency: dict[int, Latency] = {}
    for prefix in ("speed_up_batch_", "fastest_speed_up_batch_"):  # the latter says more
        for key, value in known.items():
            batch = str(key).removeprefix(prefix)
            if str(key).startswith(prefix) and batch.isdecimal():
                named = known.get(f"fastest_runtime_batch_{batch}", "")
                runtime = one_line(named) if prefix.startswith("fastest") else ""
                latency[int(batch)] = Latency(int(batch), None, None, number(value), runtime)
    original, ratio = int(lineage.source["size_bytes"]), number(known.get("compression_ratio"))
    if ratio and number(known.get("first_original_ratio")):
        original = round(ratio * size)  # its original was a compressed model
    return Figures(
        original_size_bytes=original,
        size_bytes=int(size),
        bits_per_weight=number(known.get("bits_per_weight")),
        cosine=number(known.get("cosine")),
        label_loyalty=number(known.get("label_loyalty")),
        probability_loyalty=number(known.get("probability_loyalty")),
        latency=tuple(latency[batch] for batch in sorted(latency)),
        metric=metric_of_figures(known),
        macs_reduction=number(known.get("macs_reduction")),
        like_original=like if isinstance(like := known.get("like_original"), bool) else None,
    )


def _notes(found: Sequence[Found]) -> list[str]:
    """Say what keeps figures from being compared."""
    reports = [item.report for item in found if item.report is not None]
    notes = []

    def differ(values: Sequence[Any]) -> bool:
        return any(value != values[0] for value in values[1:])

    cards = [item.report.card["name"] if item.report else _source(item)["name"] for item in found]
    if differ(cards):
        notes.append(
            "Different originals: compare ratios, speed-ups and fidelity, which are relative to "
            "each one's own; bytes and milliseconds say nothing here."
        )
    elif differ([report.revision for report in reports]):
        notes.append("Different revisions of the original.")
    for report in reports:
        if report.first_original:
            notes.append(
                f"{one_line(report.name)}: its original, {source_name(report)}, is itself a "
                f"compressed model of {first_original_name(report)}; figures are beside that."
            )
    data = [(r.card.get("data"), r.card.get("task"), r.last.fidelity.samples) for r in reports]
    if differ(data):
        notes.append("Different test data: fidelity and task metrics are not comparable.")
    if differ([{**r.machine, "beside": None} for r in reports]):
        notes.append("Measured on different machines or versions: compare speed-ups with care.")
    unknown = [item.place for item in found if item.report is None]
    if unknown:
        notes.append(
            f"Without a report, so figures are those that were published, if any, and the data "
            f"and machine are unknown: {', '.join(map(one_line, unknown))}."
        )
    return notes


def _source(item: Found) -> Mapping[str, Any]:
    return item.lineage.source if item.lineage else {}
