"""A cell that hangs, and what it must not take with it: results, other zoos, the run's end."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from small_zoo import write_zoo
from zoopress.cells.selection import select_cells
from zoopress.errors import InputError
from zoopress.estimates.budget import MemoryBudget
from zoopress.observers.watch import Observers
from zoopress.orchestration.executors import LocalExecutor
from zoopress.orchestration.limits import Limits, read_limits
from zoopress.orchestration.zoo_run import ZooOptions, ZooRun
from zoopress.plugins import Plugins
from zoopress.reports.leaderboard import Leaderboard

pytestmark = pytest.mark.usefixtures("warm_workers")
PARAMS = """
matrix: {cards: [quick/card.yaml, hung/card.yaml], recipes: [small]}
recipes:
  small:
    stages: [{technique: weight_quantization, bits: 4}]
"""
FACTORY = """
import os, sys, time
from pathlib import Path
from torch import nn

HERE = Path(__file__).parent

def build(width=96):
    print("building", file=sys.stderr, flush=True)
    (HERE / "building").touch()
    while (HERE / "hang").exists():
        time.sleep(0.05)
    if (HERE / "die").exists():
        os.abort()
    return nn.Sequential(
        nn.Linear(32, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 10)
    )
"""


@pytest.fixture
def zoo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("quick", "hung"):
        write_zoo(tmp_path / name, 32)
        card = (tmp_path / name / "card.yaml").read_text()
        (tmp_path / name / "card.yaml").write_text(card.replace("perceptron", name))
        (tmp_path / name / "networks.py").write_text(FACTORY)
    (tmp_path / "params.yaml").write_text(PARAMS)
    (tmp_path / "hung" / "hang").touch()
    monkeypatch.chdir(tmp_path)
    return tmp_path


class Running:
    """A zoo run in a thread, whose patience is short."""

    def __init__(
        self,
        zoo: Path,
        plugins: Plugins,
        limits: Limits | None = None,
        cards: tuple[str, ...] = (),
        workers: int = 1,
        out: str = "out",
    ) -> None:
        self.events: list[dict[str, Any]] = []
        self.board: Leaderboard | None = None
        selection = select_cells(cards, (), "params.yaml", plugins)
        options = ZooOptions(
            zoo / out,
            str(zoo / f"store-{out}"),
            at_once=workers,
            limits=limits or Limits(),
            patience_s=0.2,
        )
        budget = MemoryBudget(None, zoo / "budget", patience_s=0.2)
        self.executor = LocalExecutor(workers, budget, self._tell)
        observers = Observers(plugins, print)
        self.run = ZooRun(selection, options, self.executor.submit, self.events.append, observers)
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _tell(self, event: dict[str, Any]) -> None:
        self.events.append(event)
        self.run.hear(event)

    def _run(self) -> None:
        self.board = self.run.run()

    def end(self) -> dict[str, str]:
        self._thread.join(60)
        self.executor.close()
        assert self.board is not None
        return {cell.card: cell.state for cell in self.board.cells}


def wait_for(condition: Callable[[], Any]) -> None:
    until = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.05)


@pytest.mark.parametrize("workers", [1, 2])
def test_finished_cells_are_delivered_while_another_hangs_and_compared_again_after(
    zoo: Path, plugins: Plugins, workers: int
) -> None:
    report = zoo / "out" / "quick" / "small" / "report.json"
    running = Running(zoo, plugins, workers=workers)
    wait_for(report.exists)
    wait_for((zoo / "out" / "leaderboard.json").exists)
    early = json.loads(report.read_text())
    assert early["machine"]["beside"] == ["stages hung × small"]
    assert "Other work ran" in (report.parent / "report.md").read_text()
    board = json.loads((zoo / "out" / "leaderboard.json").read_text())
    assert [cell["state"] for cell in board["cells"]] == ["done"]
    said = [event["text"] for event in running.events if event["event"] == "warning"]
    assert any("measured again when that has ended" in text for text in said)

    (zoo / "hung" / "hang").unlink()
    assert running.end() == {"quick": "done", "hung": "done"}
    assert "beside" not in json.loads(report.read_text())["machine"]
    # It ended once, for whoever counts.
    assert [event["event"] for event in running.events].count("done") == 2


def test_a_time_limit_ends_a_hung_cell_in_words_and_the_log_says_where_it_was(
    zoo: Path, plugins: Plugins
) -> None:
    limits = Limits(cell_timeout_s=3.0, retries=1)
    running = Running(zoo, plugins, limits, cards=("hung/card.yaml",))
    assert running.end() == {"hung": "failed"}
    assert running.board is not None
    (cell,) = running.board.unfinished
    assert "cell's time limit" in str(cell.reason)
    assert "--cell-timeout" in str(cell.reason)
    assert "Tried twice" in str(cell.reason)
    assert cell.log is not None
    log = Path(cell.log).read_text()
    assert "retry" in log
    assert "building" in log


def test_other_runs_go_on_beside_one_that_hangs(zoo: Path, plugins: Plugins) -> None:
    hung = Running(zoo, plugins, cards=("hung/card.yaml",))
    wait_for((zoo / "hung" / "building").exists)
    other = Running(zoo, plugins, cards=("quick/card.yaml",), out="other")
    assert other.end() == {"quick": "done"}
    report = json.loads((zoo / "other" / "quick" / "small" / "report.json").read_text())
    assert report["machine"]["beside"] == ["stages hung × small"]
    (zoo / "hung" / "hang").unlink()
    assert hung.end() == {"hung": "done"}


def test_a_dead_workers_reason_is_about_its_own_cell(zoo: Path, plugins: Plugins) -> None:
    """With one worker, which did another cell before, whose words are not this one's."""
    (zoo / "hung" / "hang").unlink()
    (zoo / "hung" / "die").touch()
    (zoo / "quick" / "networks.py").write_text(FACTORY.replace('"building"', '"of the quick cell"'))
    running = Running(zoo, plugins)
    assert running.end() == {"quick": "done", "hung": "failed"}
    assert running.board is not None
    (cell,) = running.board.unfinished
    assert "Fatal Python error: Aborted" in str(cell.reason)
    assert "of the quick cell" not in str(cell.reason)
    assert "networks.py" in str(cell.reason), "the stack of the crash"


def test_limits_come_from_the_matrix_file_and_from_options_before_it(zoo: Path) -> None:
    path = zoo / "params.yaml"
    assert read_limits(str(path), None, None) == Limits()
    path.write_text(PARAMS + "limits: {cell_timeout: 2h, retries: 2}\n")
    assert read_limits(str(path), None, None) == Limits(7200.0, 2)
    assert read_limits(str(path), "90s", 0) == Limits(90.0, 0)
    path.write_text(PARAMS + "limits: {cell_timeout: long}\n")
    with pytest.raises(InputError, match=r"params.yaml.*\n?.*'long' is no duration"):
        read_limits(str(path), None, None)
