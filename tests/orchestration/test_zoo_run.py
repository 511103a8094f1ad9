"""A whole zoo: cells side by side, each failing alone, shared work once, nothing lost."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, Future
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import psutil
import pytest

from small_zoo import write_zoo
from warm import WarmProcess
from zoopress.cells.selection import select_cells
from zoopress.errors import StoreError
from zoopress.estimates.budget import MemoryBudget
from zoopress.observers.watch import Observers
from zoopress.orchestration.executors import LocalExecutor, run_here, share_cores
from zoopress.orchestration.jobs import Job
from zoopress.orchestration.workers import StoppedError, WorkerPool
from zoopress.orchestration.zoo_run import ZooOptions, ZooRun, write_leaderboard
from zoopress.pipeline.compress import compress
from zoopress.plugins import Plugins, load_plugins
from zoopress.reports.leaderboard import Leaderboard
from zoopress.store import Store

OBSERVERS = Observers(load_plugins(), print)
pytestmark = pytest.mark.usefixtures("brief_latency")

Command: TypeAlias = Callable[..., "subprocess.Popen[str]"]
PARAMS = """
recipes:
  grid:
    stages: &grid
      - {technique: magnitude_pruning, sparsity: 0.5}
      - {technique: weight_quantization, bits: 4}
  coded:
    stages:
      - {technique: magnitude_pruning, sparsity: 0.5}
      - {technique: weight_quantization, bits: 4}
      - {technique: entropy_coding}
  coarse:
    stages:
      - {technique: magnitude_pruning, sparsity: 0.5}
      - {technique: weight_quantization, bits: 3}
  harsh:
    stages: *grid
    targets: {min_cosine: 0.99999}
"""
WITH_TRAPS = """
import os, signal, time
from pathlib import Path
from torch import nn

HERE = Path(__file__).parent

def build(width=96):
    (HERE / "asleep").touch()
    for _ in range(300):
        if (HERE / "sleep").exists():
            time.sleep(0.1)
    if (HERE / "die").exists():
        os.kill(os.getpid(), signal.SIGKILL)
    if (HERE / "die-once").exists():
        (HERE / "die-once").unlink()
        os.kill(os.getpid(), signal.SIGKILL)
    return nn.Sequential(
        nn.Linear(32, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 10)
    )
"""


@pytest.fixture
def zoo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two cards, `small` and `large`, in folders of their own, and four recipes."""
    for name, width in (("small", 32), ("large", 96)):
        write_zoo(tmp_path / name, width)
        card = (tmp_path / name / "card.yaml").read_text()
        (tmp_path / name / "card.yaml").write_text(card.replace("perceptron", name))
        (tmp_path / name / "networks.py").write_text(WITH_TRAPS)
    (tmp_path / "params.yaml").write_text(PARAMS)
    monkeypatch.chdir(tmp_path)
    return tmp_path


class Here:
    """Does jobs at once, in this process, and keeps what they were and what they computed."""

    def __init__(self, folder: Path) -> None:
        self.budget = MemoryBudget(None, folder)
        self.jobs: list[Job] = []
        self.computed: list[str] = []

    def submit(self, job: Job) -> Future[dict[str, Any]]:
        future: Future[dict[str, Any]] = Future()
        self.jobs.append(job)
        try:
            answer = run_here(job, self.budget, lambda event: None)
            self.computed += answer.get("computed", [])
            future.set_result(answer)
        except Exception as error:
            future.set_exception(error)
        return future


def run(
    zoo: Path, executor: Any, plugins: Plugins, recipes: str = "params.yaml#recipes"
) -> tuple[Leaderboard, list[dict[str, Any]]]:
    events: list[dict[str, Any]] = []
    selection = select_cells(["small/card.yaml", "large/card.yaml"], [recipes], None, plugins)
    options = ZooOptions(Path("out"), str(zoo / "store"), patience_s=1000)
    return ZooRun(selection, options, executor.submit, events.append, OBSERVERS).run(), events


def states(board: Leaderboard) -> dict[str, str]:
    return {f"{cell.card} {cell.recipe}": cell.state for cell in board.cells}


EXPECTED = {
    f"{card} {recipe}": "failed" if recipe == "harsh" else "done"
    for card in ("small", "large")
    for recipe in ("grid", "coded", "coarse", "harsh")
}


def test_shared_stages_are_computed_once_and_targets_are_each_recipes_own(
    zoo: Path, plugins: Plugins
) -> None:
    executor = Here(zoo / "budget")
    board, events = run(zoo, executor, plugins)
    assert states(board) == EXPECTED
    # For each card: one pruning, two quantizations, one coding.
    assert sorted(executor.computed) == 2 * ["entropy_coding"] + 2 * ["magnitude_pruning"] + 4 * [
        "weight_quantization"
    ]
    failed = [event["text"] for event in events if event["event"] == "failed"]
    assert len(failed) == 2
    assert all("fidelity_kept" in text for text in failed)
    # Comparing comes when nothing else is left, each alone on the machine.
    kinds = [job.kind for job in executor.jobs]
    assert kinds[-6:] == ["finish"] * 6
    assert {job.quiet for job in executor.jobs if job.kind == "finish"} == {True}
    assert {(cell.cpu_seconds or 0) > 0 for cell, _ in board.done} == {True}

    again = Here(zoo / "budget")
    board, _ = run(zoo, again, plugins)
    assert states(board) == EXPECTED
    assert again.computed == []
    assert [job.kind for job in again.jobs] == ["open", "open"]


def test_a_zoo_run_gives_what_single_runs_give(zoo: Path, plugins: Plugins) -> None:
    run(zoo, Here(zoo / "budget"), plugins)
    for card, recipe in select_cells(
        ["small/card.yaml"], ["params.yaml#recipes.coded"], None, plugins
    ).cells():
        assert card.item is not None
        assert recipe.item is not None
        single = compress(
            card.item, recipe.item, zoo / "single", Store(zoo / "other"), plugins
        ).artifact
    files = {path.name: path.read_bytes() for path in (zoo / "out/small/coded/artifact").iterdir()}
    assert files.keys() == {path.name for path in single.iterdir()}
    for name in files.keys() - {"README.md"}:  # which names the seconds that it took
        assert files[name] == (single / name).read_bytes()


def test_what_is_malformed_fails_alone(zoo: Path, plugins: Plugins) -> None:
    (zoo / "small" / "card.yaml").write_text("name: small\nsauce: nowhere\n")
    board, _ = run(zoo, Here(zoo / "budget"), plugins)
    assert [cell.state for cell in board.cells].count("done") == 3
    (reason,) = {cell.reason for cell in board.cells if cell.card == "card"}
    assert "Did you mean 'source'" in str(reason)


def test_weights_that_are_missing_fail_their_card_alone(zoo: Path, plugins: Plugins) -> None:
    (zoo / "small" / "weights.safetensors").unlink()
    board, _ = run(zoo, Here(zoo / "budget"), plugins)
    assert {cell.card for cell in board.cells if cell.state == "done"} == {"large"}


@pytest.mark.usefixtures("warm_workers")
@pytest.mark.parametrize(("trap", "state"), [("die", "failed"), ("die-once", "done")])
def test_a_worker_that_dies_takes_nothing_with_it_and_gets_a_second_chance(
    zoo: Path, plugins: Plugins, trap: str, state: str
) -> None:
    (zoo / "small" / trap).touch()
    events: list[dict[str, Any]] = []
    with LocalExecutor(2, MemoryBudget(None, zoo / "budget"), events.append) as executor:
        board, _ = run(zoo, executor, plugins, "params.yaml#recipes.coded")
    assert states(board) == {"small coded": state, "large coded": "done"}
    retries = [event for event in events if event["event"] == "retry"]
    assert {event["cell"] for event in retries} == {"small × coded"}
    assert "SIGKILL" in retries[0]["text"]
    if state == "failed":
        (reason,) = [cell.reason for cell in board.cells if cell.card == "small"]
        assert "larger machine" in str(reason)


@pytest.mark.usefixtures("warm_workers")
@pytest.mark.parametrize("memory", [None, 100_000_000])
def test_jobs_run_at_once_only_as_far_as_memory_goes(
    zoo: Path, plugins: Plugins, memory: int | None
) -> None:
    class Counting(MemoryBudget):
        now = most = 0
        guard = threading.Lock()

        @contextmanager
        def claim(self, *given: Any) -> Iterator[list[str]]:
            with super().claim(*given) as beside:
                with self.guard:
                    self.now += 1
                    self.most = max(self.most, self.now)
                try:
                    yield beside
                finally:
                    with self.guard:
                        self.now -= 1

    budget = Counting(memory, zoo / "budget")
    with LocalExecutor(4, budget, lambda event: None) as executor:
        board, _ = run(zoo, executor, plugins)
    assert states(board) == EXPECTED
    assert (budget.most > 1) == (memory is None)


def test_stopping_does_not_wait_for_memory_that_another_run_holds(zoo: Path) -> None:
    holder = MemoryBudget(None, zoo / "budget")
    job = Job("open", "small", "small/card.yaml", (), (), memory_bytes=None)
    executor = LocalExecutor(1, MemoryBudget(None, zoo / "budget"), lambda event: None)
    with holder.claim(None):
        future = executor.submit(job)
        time.sleep(0.2)
        executor.close()
        with pytest.raises((StoppedError, CancelledError)):
            future.result(timeout=10)


@pytest.mark.usefixtures("warm_workers")
def test_a_job_whose_listener_fails_does_not_leave_its_answer_to_the_next(zoo: Path) -> None:
    pool = WorkerPool()

    def broken(event: dict[str, Any]) -> None:
        raise RuntimeError("a display broke")

    job = Job("stages", "t", "small/card.yaml", ("params.yaml#recipes.grid",), ("out",), "store")
    opened = Job("open", "t", "small/card.yaml", job.recipes, job.folders, "store")
    try:
        with pytest.raises(RuntimeError, match="a display broke"):
            pool.run(job.as_dict(), broken)
        assert "cells" in pool.run(opened.as_dict(), lambda event: None)
    finally:
        pool.close()


@pytest.mark.parametrize("where", ["run", "leaderboard"])
def test_an_output_folder_that_cannot_be_written_is_told_before_any_work(
    zoo: Path, plugins: Plugins, where: str
) -> None:
    selection = select_cells(["small/card.yaml"], ["params.yaml#recipes.grid"], None, plugins)
    (zoo / "file").touch()
    executor = Here(zoo / "budget")
    options = ZooOptions(zoo / "file", str(zoo / "store"))
    works = {
        "run": ZooRun(selection, options, executor.submit, lambda event: None, OBSERVERS).run,
        "leaderboard": lambda: write_leaderboard(Leaderboard([]), zoo / "file"),
    }
    with pytest.raises(StoreError, match="Choose another --out"):
        works[where]()
    assert executor.jobs == []


def test_a_store_is_the_same_one_in_every_working_folder(zoo: Path, plugins: Plugins) -> None:
    selection = select_cells(["small/card.yaml"], ["params.yaml#recipes.grid"], None, plugins)
    executor = Here(zoo / "budget")
    ZooRun(
        selection, ZooOptions(Path("out"), "store"), executor.submit, lambda event: None, OBSERVERS
    ).run()
    assert {job.store for job in executor.jobs} == {str(zoo / "store")}


# The command's own process is one like a user's; its workers need not import torch.
MAIN = (
    "import sys; from zoopress.commands.cli import main\n"
    "sys.argv[0], sys.executable = 'zoopress', sys.argv.pop(1)\n"
    "main()"
)


@pytest.fixture
def command(zoo: Path, warm: WarmProcess) -> Command:
    """Start the command line in a zoo, with a memory budget of its own."""
    return partial(_command, zoo, warm.python)


def _command(zoo: Path, python: str, *more: str) -> subprocess.Popen[str]:
    (zoo / "temporary").mkdir(exist_ok=True)
    kept = {key: value for key, value in os.environ.items() if key != "PREFECT_API_URL"}
    cards = ("--cards", "small/card.yaml", "--cards", "large/card.yaml")
    return subprocess.Popen(
        [
            *(sys.executable, "-c", MAIN, python, "zoo", "run", *cards),
            *("--recipes", "params.yaml#recipes", "--store", "store", *more),
        ],
        cwd=zoo,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**kept, "TMPDIR": str(zoo / "temporary")},
    )


def wait_for(path: Path) -> None:
    until = time.monotonic() + 60
    while not path.exists():
        assert time.monotonic() < until, f"{path} did not appear"
        time.sleep(0.05)


def test_an_interrupt_keeps_what_is_finished_and_the_next_run_goes_on(
    zoo: Path, command: Command
) -> None:
    (zoo / "large" / "sleep").touch()
    process = command("--workers", "2")
    wait_for(zoo / "large" / "asleep")
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130, said
    assert "the same command goes on from there" in said
    cells = json.loads((zoo / "out" / "leaderboard.json").read_text())["cells"]
    assert {cell["state"] for cell in cells if cell["card"] == "large"} == {"stopped"}

    (zoo / "large" / "sleep").unlink()
    again = command("--json")
    printed, said = again.communicate(timeout=120)
    assert again.returncode == 1, said  # `harsh` misses its target
    board = Leaderboard.from_dict(json.loads(printed))
    assert states(board) == EXPECTED


@pytest.mark.parametrize("victim", ["run", "worker"])
def test_kill_9_loses_nothing(zoo: Path, command: Command, victim: str) -> None:
    (zoo / "large" / "sleep").touch()
    process = command("--workers", "2")
    wait_for(zoo / "large" / "asleep")
    workers = psutil.Process(process.pid).children(recursive=True)
    assert workers
    (zoo / "large" / "sleep").unlink()
    if victim == "worker":
        for worker in workers:
            worker.kill()
        _, said = process.communicate(timeout=120)
        assert process.returncode == 1, said
    else:
        process.kill()
        process.communicate()
        _, alive = psutil.wait_procs(workers, timeout=20)
        assert not alive, "workers outlive the run that started them"
        process = command()
        _, said = process.communicate(timeout=120)
        assert process.returncode == 1, said
    cells = json.loads((zoo / "out" / "leaderboard.json").read_text())["cells"]
    assert {f"{cell['card']} {cell['recipe']}": cell["state"] for cell in cells} == EXPECTED


def test_two_runs_at_once_share_the_work(zoo: Path, command: Command) -> None:
    first, second = command("--out", "one"), command("--out", "two")
    for process in (first, second):
        _, said = process.communicate(timeout=240)
        assert process.returncode == 1, said
    for name in ("small/coded", "large/grid"):
        one, two = (
            (zoo / out / name / "artifact" / "zoopress.json").read_bytes() for out in ("one", "two")
        )
        assert one == two
    assert len(list((zoo / "store" / "entries").glob("*/*"))) == 2 * (4 + 3)


@pytest.mark.parametrize(
    ("workers", "cells", "cores", "expected"),
    [
        (None, 100, 4, (4, 1)),
        (None, 1, 4, (1, None)),
        (None, 100, 64, (8, 8)),
        (2, 100, 16, (2, 8)),
        (16, 4, 8, (4, 2)),
        (16, 100, 8, (16, 1)),
    ],
)
def test_cores_are_shared_among_workers(
    monkeypatch: pytest.MonkeyPatch,
    workers: int | None,
    cells: int,
    cores: int,
    expected: tuple[int, int | None],
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(cores)))
    assert share_cores(workers, cells) == expected
