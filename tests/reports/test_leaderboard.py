"""The leaderboard: what it says, in which order, and that nothing in it can do harm."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import sys
from collections.abc import Iterator
from dataclasses import replace
from html.parser import HTMLParser
from io import StringIO
from pathlib import Path
from urllib.parse import unquote
from xml.etree import ElementTree

import pytest
from hypothesis import HealthCheck, given, settings, strategies as st
from rich.cells import cell_len
from rich.console import Console

from reports.samples import labelled, runtimes
from zoopress.cards import Card
from zoopress.errors import InputError
from zoopress.pipeline.compress import Result, compress
from zoopress.plugins import Plugins
from zoopress.recipes import load_recipe
from zoopress.reports.leaderboard import CellOutcome, Leaderboard
from zoopress.reports.leaderboard_charts import pareto_png, pareto_svg
from zoopress.reports.leaderboard_page import leaderboard_page
from zoopress.reports.leaderboard_table import COLUMNS, LeaderboardTable, leaderboard_markdown
from zoopress.reports.pareto import pareto_front
from zoopress.reports.standing import Figures, Latency, StageGain, Standing, figures_of
from zoopress.results.figures import TaskMetric

HOSTILE = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "</style></svg><b onclick=alert(1)>",
    "javascript:alert(1)",
    "</pre></details>|`[x](http://evil.test)",
    "INK & {{ 7 * 7 }} {% raw %}",
    "line\nbreak\x1b[31m\x00end",
]


def cell(
    card: str = "net",
    recipe: str = "small",
    ratio: float = 4.0,
    speed_up: float | None = 1.5,
    cosine: float | None = 0.99,
    folder: str | None = None,
) -> Standing:
    """A cell that is done."""
    latency = (Latency(1, 3.0, 2.0, speed_up), Latency(32, 30.0, 25.0, 1.2))
    gains = (
        StageGain("magnitude_pruning", False, 0.5, 4_000_000, 4_000_000, cosine),
        StageGain("weight_quantization", True, 1.5, 4_000_000, int(4_000_000 / ratio), cosine),
    )
    size = int(4_000_000 / ratio)
    figures = Figures(4_000_000, size, 32 / ratio, cosine, 0.97, 0.98, latency, gains, "CPU")
    return Standing(card, recipe, "done", None, folder, 12.5, figures)


FAILED = Standing("net", "harsh", "failed", "Stage 1 failed.\nTraceback: deep inside")

TEXT = st.text(st.characters(exclude_categories=("Cs",)), max_size=12)
NUMBER = st.none() | st.floats(0, 100)
STANDINGS = st.builds(
    Standing,
    card=TEXT,
    recipe=TEXT,
    state=st.sampled_from(["failed", "stopped"]),
    reason=st.none() | TEXT,
    folder=st.none() | TEXT,
    seconds=st.floats(0, 1e6),
) | st.builds(
    Standing,
    card=TEXT,
    recipe=TEXT,
    state=st.just("done"),
    folder=st.none() | TEXT,
    seconds=st.floats(0, 1e6),
    figures=st.builds(
        Figures,
        original_size_bytes=st.integers(1, 10**12),
        size_bytes=st.integers(1, 10**12),
        bits_per_weight=NUMBER,
        cosine=NUMBER,
        label_loyalty=NUMBER,
        probability_loyalty=NUMBER,
        latency=st.lists(st.builds(Latency, st.integers(1, 64), NUMBER, NUMBER, NUMBER)).map(tuple),
        stages=st.lists(
            st.builds(
                StageGain,
                technique=TEXT,
                computed=st.booleans(),
                seconds=st.floats(0, 1e6),
                weight_bytes_before=st.integers(0, 10**12),
                weight_bytes=st.integers(0, 10**12),
                cosine=NUMBER,
            ),
            max_size=3,
        ).map(tuple),
        processor=TEXT,
    ),
)


LABELLED = st.builds(
    TaskMetric,
    name=st.sampled_from(["accuracy", "perplexity"]),
    original=NUMBER,
    compressed=NUMBER,
    difference_interval=st.none() | st.tuples(st.floats(-1, 0), st.floats(0, 1)),
    higher_is_better=st.sampled_from([True, False, None]),
)


def labelled_cell(recipe: str, compressed: float, original: float = 0.9) -> Standing:
    """A cell of a task with labels."""
    made = cell(recipe=recipe)
    assert made.figures is not None
    metric = TaskMetric("accuracy", original, compressed, higher_is_better=True, primary=True)
    return replace(made, figures=replace(made.figures, metric=metric, macs_reduction=2.0))


@given(LABELLED)
def test_json_gives_the_task_metric_again(metric: TaskMetric) -> None:
    made = labelled_cell("small", 0.8)
    assert made.figures is not None
    board = Leaderboard([replace(made, figures=replace(made.figures, metric=metric))])
    text = json.dumps(board.as_dict(), allow_nan=False)
    assert Leaderboard.from_dict(json.loads(text)) == board


def test_columns_that_no_cell_has_are_left_out() -> None:
    with_labels = Leaderboard([labelled_cell("small", 0.8), cell(recipe="bare")])
    assert "task metric" in leaderboard_markdown(with_labels)
    assert "accuracy 80.0 % (−10.0 points)" in leaderboard_page(with_labels)
    assert "2.00×" in leaderboard_page(with_labels)
    assert "task metric" not in leaderboard_markdown(Leaderboard([cell()]))


def test_the_task_metric_is_drawn_where_one_card_is_judged_by_it() -> None:
    one = Leaderboard([labelled_cell("a", 0.8), labelled_cell("b", 0.7)])
    assert "Accuracy against compression ratio" in leaderboard_page(one)
    assert "Accuracy against" not in leaderboard_page(Leaderboard([cell()]))


@given(st.lists(STANDINGS, max_size=8))
def test_json_gives_the_same_leaderboard_again(cells: list[Standing]) -> None:
    board = Leaderboard(cells)
    text = json.dumps(board.as_dict(), allow_nan=False)
    again = Leaderboard.from_dict(json.loads(text))
    assert again == board
    assert json.dumps(again.as_dict()) == text


@given(st.lists(STANDINGS, max_size=8))
def test_the_fronts_are_those_of_the_measures(cells: list[Standing]) -> None:
    board = Leaderboard(cells)
    flags = pareto_front([figures.measures for _, figures in board.done])
    assert [cell.on_front for cell, _ in board.done] == flags
    for card in {cell.card for cell in board.cells}:
        own = [(cell, figures) for cell, figures in board.done if cell.card == card]
        flags = pareto_front([figures.measures for _, figures in own])
        assert [cell.on_card_front for cell, _ in own] == flags
    assert all(cell.on_card_front for cell in board.front)
    assert not any(cell.on_front or cell.on_card_front for cell in board.unfinished)


@given(st.lists(STANDINGS, max_size=8))
def test_best_first_within_each_card_and_the_unfinished_last(cells: list[Standing]) -> None:
    board = Leaderboard(cells)
    assert [cell.figures is None for cell in board.cells] == sorted(
        cell.figures is None for cell in board.cells
    )
    places = [
        (cell.card, not cell.on_front, not cell.on_card_front, -figures.compression_ratio)
        for cell, figures in board.done
    ]
    assert places == sorted(places)


def test_another_schema_is_refused_with_the_remedy() -> None:
    with pytest.raises(InputError, match=r"schema 99.*Make it again"):
        Leaderboard.from_dict({"schema": 99, "cells": []})


def test_a_cell_that_is_done_has_a_report() -> None:
    with pytest.raises(ValueError, match="no report"):
        CellOutcome("net", "small", "done")


RECIPE = """
stages:
  - {technique: magnitude_pruning, sparsity: 0.5}
  - {technique: entropy_coding}
"""


@pytest.fixture
def finished(tiny_card: Card, tmp_path: Path, plugins: Plugins) -> Result:
    """A cell that was really run."""
    (tmp_path / "pruned.yaml").write_text(RECIPE)
    recipe = load_recipe(str(tmp_path / "pruned.yaml"), plugins)
    return compress(tiny_card, recipe, tmp_path / "out" / "run 1:#", plugins=plugins)


def test_figures_are_those_of_the_report(finished: Result) -> None:
    outcome = CellOutcome(
        "tiny",
        "pruned",
        "done",
        folder=str(finished.folder),
        report=finished.report,
        computed=("entropy_coding",),
        seconds=2.0,
    )
    board = Leaderboard([outcome, FAILED])
    (standing, figures), metrics = board.done[0], finished.report.metrics()
    assert figures.size_bytes == metrics["size_bytes"]
    assert round(figures.compression_ratio, 4) == metrics["compression_ratio"]
    assert figures.single is not None
    assert round(figures.single.speed_up or 0, 3) == metrics["speed_up_batch_1"]
    assert figures.largest == figures.latency[-1]
    assert [stage.computed for stage in figures.stages] == [False, True]
    shown = [stage.technique for stage in figures.stages]
    assert shown == ["magnitude_pruning", "entropy_coding"]
    assert standing.on_front
    assert board.summary == "2 cells: 1 done, 1 failed, 1 on the Pareto front"


class Page(HTMLParser):
    """The elements of a page, and the texts of its scripts."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.texts: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag == "script":
            self.scripts.append("")

    def handle_data(self, data: str) -> None:
        if self.elements and self.elements[-1][0] == "script" and not self.scripts[-1]:
            self.scripts[-1] = data
        self.texts.append(data)

    def all(self, tag: str) -> Iterator[dict[str, str | None]]:
        return (attributes for name, attributes in self.elements if name == tag)

    @property
    def addresses(self) -> list[str]:
        names = ("href", "src", "xlink:href", "action", "data", "srcset")
        return [str(a[name]) for _, a in self.elements for name in names if name in a]


def hostile_board() -> Leaderboard:
    done = [
        cell(card, recipe, 2.0 + i, folder=f"out/{recipe}")
        for i, (card, recipe) in enumerate(zip(HOSTILE, reversed(HOSTILE), strict=True))
    ]
    return Leaderboard([*done, *(Standing(text, text, "failed", text) for text in HOSTILE)])


def test_what_others_wrote_is_only_text_in_the_page() -> None:
    text = leaderboard_page(hostile_board())
    page = Page(text)
    assert len(page.scripts) == 1
    assert not list(page.all("img"))
    assert not list(page.all("b"))
    assert not [a for _, a in page.elements for name in a if name.startswith("on")]
    assert all(not re.match(r"[a-z]+:|//", address, re.I) for address in page.addresses)
    shown = "".join(page.texts)
    assert "<script>alert(1)</script>" in shown
    assert "{{ 7 * 7 }}" in shown


def test_the_page_allows_its_own_script_alone_and_no_network() -> None:
    page = Page(leaderboard_page(hostile_board()))
    policy = next(a["content"] for a in page.all("meta") if "http-equiv" in a)
    digest = base64.b64encode(hashlib.sha256(page.scripts[0].encode()).digest()).decode()
    assert policy is not None
    assert policy.startswith("default-src 'none'")
    assert f"script-src 'sha256-{digest}';" in policy
    assert not list(page.all("link"))
    assert not [address for address in page.addresses if not address.startswith("out/")]


def test_what_others_wrote_is_only_text_in_markdown() -> None:
    text = leaderboard_markdown(hostile_board())
    assert "<script>" not in text
    assert "<img" not in text
    assert re.search(r"(?<!\\)\]\(", text) is None
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert {line.count("|") for line in rows} == {16, 5}  # no name opens a cell of its own


def test_the_page_links_to_reports_wherever_it_lies(finished: Result, tmp_path: Path) -> None:
    board = Leaderboard(
        [CellOutcome("tiny", "pruned", "done", None, str(finished.folder), finished.report)]
    )
    for folder in (tmp_path / "out", tmp_path, tmp_path / "elsewhere" / "deep"):
        folder.mkdir(parents=True, exist_ok=True)
        (address,) = Page(leaderboard_page(board, folder)).addresses
        assert (folder / unquote(address)).samefile(finished.folder / "report.md")


def test_every_cell_is_in_the_page_with_its_figures_or_its_reason() -> None:
    board = Leaderboard([cell("net", f"r{i}", 1.5 + i) for i in range(12)] + [FAILED])
    page = Page(leaderboard_page(board))
    assert len([a for a in page.all("tr") if "data-place" in a]) == 12
    assert "Traceback: deep inside" in "".join(page.texts)
    labels = [
        a["aria-label"] for a in page.all("path") if (a.get("aria-label") or "").startswith("#")
    ]
    for place in range(1, 13):
        assert sum(str(label).startswith(f"#{place} net × r") for label in labels) >= 2


def test_the_same_leaderboard_gives_the_same_page() -> None:
    board = Leaderboard([cell(), FAILED])
    assert leaderboard_page(board) == leaderboard_page(board)


def test_without_what_draws_charts_the_page_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "vl_convert", None)
    text = leaderboard_page(Leaderboard([cell(), FAILED]))
    assert "pip install &#39;zoopress[reports]&#39;" in text
    assert "<svg" not in text
    assert "4.00×" in text


@pytest.mark.parametrize("cells", [[], [FAILED], [cell()], [cell(cosine=None, speed_up=None)]])
def test_a_page_of_few_cells_is_whole(cells: list[Standing]) -> None:
    board = Leaderboard(cells)
    assert "</html>" in leaderboard_page(board)
    assert board.summary in leaderboard_markdown(board)


def test_charts_are_well_formed_whatever_the_names_are() -> None:
    svg = pareto_svg(hostile_board())
    root = ElementTree.fromstring(svg)
    assert not [e for e in root.iter() if e.tag.rpartition("}")[2] in ("script", "image", "a")]
    labels = {e.get("aria-label") or "" for e in root.iter()}
    assert sum(label.startswith("#") for label in labels) == len(HOSTILE)


def test_the_picture_is_a_png_of_readable_size() -> None:
    picture = pareto_png(Leaderboard([cell(), cell(recipe="other", ratio=8.0)]))
    assert picture.startswith(b"\x89PNG\r\n")
    assert int.from_bytes(picture[16:20], "big") > 600


@pytest.mark.parametrize("draw", [pareto_svg, pareto_png])
def test_nothing_done_cannot_be_drawn(draw: object) -> None:
    assert callable(draw)
    with pytest.raises(ValueError, match="no cell is done"):
        draw(Leaderboard([FAILED]))


@settings(suppress_health_check=[HealthCheck.too_slow], max_examples=30)
@given(st.integers(36, 220), st.lists(STANDINGS, max_size=5))
def test_the_table_fits_any_terminal(width: int, cells: list[Standing]) -> None:
    stream = StringIO()
    Console(file=stream, width=width).print(LeaderboardTable(Leaderboard(cells)))
    assert all(cell_len(line) <= width for line in stream.getvalue().splitlines())


def test_a_narrow_terminal_still_shows_ratio_and_fidelity_and_a_wide_one_all() -> None:
    board = Leaderboard([cell(), FAILED])
    narrow, wide = StringIO(), StringIO()
    Console(file=narrow, width=40).print(LeaderboardTable(board))
    Console(file=wide, width=200).print(LeaderboardTable(board))
    assert "4.00×" in narrow.getvalue()
    assert "0.9900" in narrow.getvalue()
    assert "prob." not in narrow.getvalue()
    for text in (
        "prob. loyalty",
        "1.50×",
        "1 of 2 computed",
        "12 s",
        "net × harsh: Stage 1 failed.",
    ):
        assert text in wide.getvalue()
    assert "deep inside" not in wide.getvalue()


def test_a_cell_is_ranked_by_its_fastest_runtime() -> None:
    figures = figures_of(labelled(evaluation={"runtimes": runtimes()}))
    assert figures.single == Latency(1, 3.0, 1.0, 3.0, "openvino")
    assert figures.measures[1] == 3.0
    shown = {column.header: column.text(figures) for column in COLUMNS}
    assert shown["speed-up"] == "3.00× openvino"
    assert shown["speed-up, batch"] == "3.00× openvino"
    again = Standing.from_dict(Standing("c", "r", "done", figures=figures).as_dict())
    assert again.figures == figures
    assert figures_of(labelled()).single == Latency(1, 0.2, 0.2 / 1.14, pytest.approx(1.14))
