"""Progress: what people see on a terminal and in a log, and what machines are told."""

from __future__ import annotations

import json
import os
import pty
import re
import subprocess
import sys
import threading
import time
from collections import Counter
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, strategies as st
from rich.console import Console

from small_zoo import write_zoo
from zoopress.errors import InputError
from zoopress.progress import Event, Reporter, terminal, zoo_board
from zoopress.progress.boards import Board, LiveBoard, PlainBoard
from zoopress.progress.displays import JsonDisplay, LiveDisplay, PlainDisplay, Row


def console(stream: StringIO) -> Console:
    return Console(file=stream, width=200)


def test_a_step_is_told_from_its_beginning_to_its_end() -> None:
    events: list[Event] = []
    reporter = Reporter([events.append], cell="net × small")
    with reporter.step("outer") as outer:
        outer("a", 0.5)
        with reporter.step("inner"):
            pass
        outer("b")
    assert [(e["event"], e["text"]) for e in events] == [
        ("stage", "outer"),
        ("progress", "a"),
        ("stage", "inner"),
        ("stage_ended", "inner"),
        ("progress", "b"),
        ("stage_ended", "outer"),
    ]
    assert [e["fraction"] for e in events if e["event"] == "progress"] == [0.5, None]
    assert {e["cell"] for e in events} == {"net × small"}
    first, second = events[0]["step"], events[2]["step"]
    assert first != second
    assert [e["step"] for e in events] == [first, first, second, second, first, first]


def test_a_step_that_fails_is_told_as_failed() -> None:
    events: list[Event] = []
    with pytest.raises(RuntimeError), Reporter([events.append]).step("work"):
        raise RuntimeError
    assert events[-1]["failed"] is True


def test_a_listener_that_fails_is_left_out_and_the_work_goes_on() -> None:
    heard: list[Event] = []

    def broken(event: Event) -> None:
        raise OSError("no connection")

    reporter = Reporter([broken, heard.append])
    with reporter.step("work") as progress:
        progress("item")
    kinds = [e["event"] for e in heard]
    assert kinds.count("warning") == 1
    assert "no connection" in heard[0]["text"]
    assert [kind for kind in kinds if kind != "warning"] == ["stage", "progress", "stage_ended"]


def in_threads(work: Any, count: int = 8) -> None:
    threads = [threading.Thread(target=work, args=(i,)) for i in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def test_threads_share_a_reporter_and_no_line_is_lost_or_mixed() -> None:
    stream, events = StringIO(), []
    lines = StringIO()
    reporter = Reporter([PlainDisplay(console(stream)), events.append, JsonDisplay(lines)])

    def work(number: int) -> None:
        for i in range(20):
            with reporter.step(f"step {number}.{i}") as progress:
                progress("item", 1.0)

    in_threads(work)
    texts = stream.getvalue().splitlines()
    expected = [f"step {n}.{i}" for n in range(8) for i in range(20)]
    assert Counter(re.sub(r" …|: 0\.\d s", "", text) for text in texts) == dict.fromkeys(
        expected, 2
    )
    assert max(Counter(e["step"] for e in events if e["event"] == "stage").values()) == 1
    assert len([json.loads(line) for line in lines.getvalue().splitlines()]) == len(events)


def test_a_log_gets_a_line_at_the_beginning_at_the_end_and_now_and_then_between() -> None:
    stream = StringIO()
    reporter = Reporter([PlainDisplay(console(stream), first=0.05, every=0.05)])
    with reporter.step("pruning") as progress:
        progress("layer.3", 0.63)
        deadline = time.monotonic() + 10
        while stream.getvalue().count("layer.3") < 2:
            assert time.monotonic() < deadline
            time.sleep(0.01)
    with reporter.step("coding", closing_line=False):
        pass
    lines = stream.getvalue().splitlines()
    assert lines[0] == "pruning …"
    assert re.fullmatch(r"pruning: 0\.\d s, 63%, layer\.3", lines[1])
    assert lines[-1] == "coding …"
    assert re.fullmatch(r"pruning: \d+\.\d s", lines[-2])


def test_a_log_tells_of_a_step_that_failed() -> None:
    stream = StringIO()
    with pytest.raises(KeyError), Reporter([PlainDisplay(console(stream))]).step("pruning"):
        raise KeyError
    assert re.search(r"^pruning: failed after 0\.\d s$", stream.getvalue(), re.M)


@pytest.mark.parametrize("text", ["[/red] [bold]x", "a[0] {b} %s", "layers[1].weight"])
def test_names_are_never_taken_for_markup(text: str) -> None:
    stream = StringIO()
    for display in (PlainDisplay(console(stream)), LiveDisplay(console(stream))):
        reporter = Reporter([display])
        reporter.line(text)
        reporter.warn(text)
        with reporter.step(text) as progress:
            progress(text)
    board = PlainBoard(1, console(stream))
    board.tell({"event": "done", "cell": text, "text": text})
    assert stream.getvalue().count(text) >= 8


def test_an_unknown_mode_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZOOPRESS_PROGRESS", "jsn")
    for make in (terminal, lambda: zoo_board(1)):
        with pytest.raises(InputError, match=r"'jsn'\. Did you mean 'json'\?"):
            make()


KINDS = ["started", "stage", "progress", "stage_ended", "line", "warning", "retry", "ended"]
KINDS += ["done", "failed", "stopped", "of a later version", None]


@given(
    st.lists(
        st.fixed_dictionaries(
            {"event": st.sampled_from(KINDS)},
            optional={
                "cell": st.sampled_from("abc"),
                "text": st.text(max_size=5),
                "fraction": st.none() | st.floats(0, 1),
                "step": st.integers(1, 3),
            },
        ),
        max_size=30,
    )
)
def test_a_board_counts_every_cell_that_ends_and_ignores_what_it_does_not_know(
    events: list[Event],
) -> None:
    for board in (Board(9), PlainBoard(9, console(StringIO())), LiveBoard(9, console(StringIO()))):
        for event in events:
            board.tell(event)
        counts = Counter(event["event"] for event in events)
        assert board.ended == {kind: counts[kind] for kind in ("done", "failed", "stopped")}
        over = {"ended", "done", "failed", "stopped"}
        for name in "abc":
            own = [e["event"] for e in events if e.get("cell") == name]
            begun = [i for i, kind in enumerate(own) if kind in ("started", "stage")]
            ended = [i for i, kind in enumerate(own) if kind in over]
            assert (name in board.running) == (max(begun, default=-1) > max(ended, default=-1))


def test_a_log_of_a_zoo_has_one_line_for_each_cell_that_ends() -> None:
    stream = StringIO()
    with PlainBoard(3, console(stream)) as board:
        board.tell({"event": "started", "cell": "a × r", "text": "open"})
        board.tell({"event": "stage", "cell": "a × r", "step": 1, "text": "stage 1/2  svd"})
        board.tell({"event": "line", "cell": "a × r", "text": "stage 1/2 is done"})
        board.tell({"event": "done", "cell": "a × r", "text": "4.00× smaller, cosine 0.99"})
        board.tell({"event": "retry", "cell": "b × r", "text": "its worker died.\nmore"})
        board.tell({"event": "failed", "cell": "b × r", "text": "no memory\nTraceback: deep"})
        board.tell({"event": "stopped", "cell": "c × r", "text": ""})
    assert stream.getvalue().splitlines() == [
        "[1/3] ✓ a × r  4.00× smaller, cosine 0.99",
        "warning: b × r is tried again: its worker died.",
        "[2/3] ✗ b × r  no memory",
        "[3/3] – c × r",
    ]


def test_a_log_of_a_zoo_says_now_and_then_what_is_running() -> None:
    stream = StringIO()
    with PlainBoard(9, console(stream), every=0.05) as board:
        for i in range(5):
            board.tell({"event": "started", "cell": f"net × r{i}"})
        board.tell({"event": "stage", "cell": "net × r0", "step": 1, "text": "stage 2/4  svd"})
        board.tell({"event": "progress", "cell": "net × r0", "text": "layer", "fraction": 0.25})
        deadline = time.monotonic() + 10
        while "25%" not in stream.getvalue():
            assert time.monotonic() < deadline
            time.sleep(0.01)
    line = next(line for line in stream.getvalue().splitlines() if "25%" in line)
    assert re.search(
        r"^0 of 9 cells, 5 running, 0\.\d s: net × r0 \(stage 2/4  svd, 25%, layer\), "
        r"net × r1 \(starting\), net × r2 \(starting\) and 2 more$",
        line,
    )


SCRIPT = """
import sys, threading, time
from zoopress.progress import terminal, zoo_board
reporter = terminal()
with reporter.step("stage 1/2  pruning") as progress:
    progress("layers[0] × →", 0.5)
    time.sleep(0.4)
reporter.line("stage 1/2  0.9 → 0.5 MB ✓")
reporter.warn("an observer failed")
with zoo_board(40) as board:
    def work(n):
        for i in range(10):
            name = f"net{n} × r{i}"
            board.tell({"event": "started", "cell": name})
            board.tell({"event": "stage", "cell": name, "step": i, "text": "stage 1/1  svd"})
            for k in range(20):
                board.tell({"event": "progress", "cell": name, "text": "x", "fraction": k / 20})
                time.sleep(0.002)
            board.tell({"event": "done", "cell": name, "text": "4.00× smaller"})
    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    [t.start() for t in threads], [t.join() for t in threads]
"""


def on_a_terminal(**environment: str) -> str:
    """Run the script on a terminal of its own, and return all that it wrote there."""
    parent, child = pty.openpty()
    settings = {k: v for k, v in os.environ.items() if k not in ("NO_COLOR", "FORCE_COLOR", "CI")}
    settings |= {"TERM": "xterm-256color", "COLUMNS": "90", "LINES": "30", **environment}
    with subprocess.Popen(
        [sys.executable, "-c", SCRIPT], stdin=child, stdout=child, stderr=child, env=settings
    ) as process:
        os.close(child)
        written = b""
        try:
            while part := os.read(parent, 65536):
                written += part
        except OSError:  # the other end is closed
            pass
        assert process.wait(timeout=60) == 0, written.decode()
    os.close(parent)
    return written.decode()


COLOUR = re.compile(r"\x1b\[[0-9;]*(?:3[0-8]|9[0-7])(?:;[0-9;]*)?m")
CURSOR_UP = "\x1b[1A"


def test_a_terminal_shows_a_moving_picture_and_keeps_the_lines() -> None:
    written = on_a_terminal()
    plain = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", written)
    assert CURSOR_UP in written
    assert COLOUR.search(written)
    assert "50%" in plain
    assert "layers[0] × →" in plain
    assert len(re.findall(r"\[ ?\d+/40\] ✓ net\d × r\d  4\.00× smaller", plain)) == 40
    assert re.search(r"\d+ of 40 cells, \d running", plain)
    assert "\x1b[?25h" in written[written.rindex("\x1b[?25l") :]  # the cursor is there again


def test_no_color_leaves_the_picture_and_takes_the_colours() -> None:
    written = on_a_terminal(NO_COLOR="1")
    assert CURSOR_UP in written
    assert COLOUR.search(written) is None


@pytest.mark.parametrize(
    "environment", [{"ZOOPRESS_PROGRESS": "plain"}, {"TERM": "dumb"}], ids=["plain", "dumb"]
)
def test_a_terminal_that_cannot_or_shall_not_move_gets_lines(environment: dict[str, str]) -> None:
    written = on_a_terminal(**environment)
    assert CURSOR_UP not in written
    plain = re.sub(r"\x1b\[[0-9;]*m", "", written)
    assert "\x1b" not in plain
    assert "stage 1/2  pruning …" in plain
    assert len(re.findall(r"\[ ?\d+/40\] ✓ ", plain)) == 40


@pytest.mark.parametrize("setting", [{}, {"ZOOPRESS_PROGRESS": "plain"}], ids=["log", "plain"])
def test_an_encoding_without_our_signs_gets_lookalikes(setting: dict[str, str]) -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        capture_output=True,
        env={**os.environ, "PYTHONIOENCODING": "ascii", **setting},
        check=True,
    )
    text = done.stderr.decode("ascii")
    assert "stage 1/2  pruning ..." in text
    assert "0.9 -> 0.5 MB ok" in text
    assert "net0 x r0  4.00x smaller" in text
    assert "\\x" not in text
    assert "\\u" not in text


def test_a_terminal_without_our_signs_gets_a_picture_of_lookalikes() -> None:
    written = on_a_terminal(PYTHONIOENCODING="ascii")
    assert CURSOR_UP in written
    assert written.isascii()
    assert "layers[0] x ->" in written


def test_machines_get_events_as_json_beside_the_result(tmp_path: Path) -> None:
    write_zoo(tmp_path, recipe="stages: [{technique: magnitude_pruning, sparsity: 0.5}]")
    done = subprocess.run(
        [sys.executable, "-m", "zoopress", "run", "card.yaml", "recipe.yaml", "--json", "-q"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env={**os.environ, "ZOOPRESS_PROGRESS": "json"},
    )
    assert done.returncode == 0, done.stderr
    events = [json.loads(line) for line in done.stderr.splitlines()]
    titles = [event["text"] for event in events if event["event"] == "stage"]
    assert "stage 1/1  magnitude_pruning" in titles
    items = [(event["text"], event["fraction"]) for event in events if event["event"] == "progress"]
    tracked = [(f"{2 * i}.weight", (i + 1) / 3) for i in range(3)]  # the technique's own
    start = items.index(tracked[0])
    assert items[start : start + 3] == tracked
    fractions = [event["fraction"] for event in events if event.get("fraction") is not None]
    assert 1.0 in fractions
    assert all(0 <= fraction <= 1 for fraction in fractions)
    assert json.loads(done.stdout)["compression_ratio"] > 1


def test_commands_write_lookalikes_where_signs_cannot_be_written(tmp_path: Path) -> None:
    write_zoo(tmp_path)
    done = subprocess.run(
        [sys.executable, "-m", "zoopress", "zoo", "check", "card.yaml"],
        cwd=tmp_path,
        capture_output=True,
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
    )
    assert done.stderr == b""
    assert re.search(r"^\W*ok\W+source", done.stdout.decode("ascii"), re.M)


def test_a_loud_warning_cannot_be_missed() -> None:
    events: list[Event] = []
    reporter = Reporter([events.append])
    reporter.warn("mind")
    reporter.warn("stop", loud=True)
    assert [event.get("loud") for event in events] == [None, True]
    for display in (PlainDisplay, LiveDisplay):
        stream = StringIO()
        shown = display(Console(file=stream, width=200, force_terminal=True))
        for event in events:
            shown(event)
        mild, loud = stream.getvalue().splitlines()
        assert "warning: " in mild
        assert "\x1b[1;31mWARNING: stop" in loud
    stream = StringIO()
    PlainBoard(1, console(stream)).tell({**events[1], "cell": "net × small"})
    assert stream.getvalue() == "WARNING: net × small: stop\n"


def test_who_asked_for_silence_hears_what_is_loud_all_the_same(
    capsys: pytest.CaptureFixture[str],
) -> None:
    reporter = terminal(quiet=True)
    reporter.line("line")
    reporter.warn("mind")
    reporter.warn("stop", loud=True)
    assert capsys.readouterr().err == "WARNING: stop\n"


def test_time_left_is_told_from_the_items_of_late(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("zoopress.progress.displays.time.monotonic", lambda: now[0])
    row = Row("stage", started=0.0)
    for done in range(1, 51):  # what an earlier run had done
        row.advance({"text": f"weight {done}", "fraction": done / 200})
    assert row.left == ""
    for done in range(51, 101):
        now[0] += 10.0
        row.advance({"text": f"weight {done}", "fraction": done / 200})
    assert row.left == "about 16 min 40 s left"  # a hundred of ten seconds each
    assert str(row) == "stage: 8 min 20 s, 50%, about 16 min 40 s left, weight 100"
    row.advance({"text": "evaluating", "fraction": None})
    assert row.left == ""
