"""Observers hear of runs, cells and stages, once each, and can stop nothing."""

import json
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from small_zoo import write_zoo
from zoopress.cards import load_card
from zoopress.errors import GateError, SourceError, StageError
from zoopress.observers import CellEnd, CellNews, RunNews, StageNews
from zoopress.observers.watch import Observers, RunWatch
from zoopress.orchestration.executors import LocalExecutor, run_here
from zoopress.orchestration.jobs import Job
from zoopress.orchestration.request import ZooRequest, run_zoo
from zoopress.orchestration.zoo_run import Submit
from zoopress.pipeline.compress import compress
from zoopress.plugins import Plugins, hookimpl, load_plugins
from zoopress.progress import Reporter
from zoopress.recipes import load_recipe
from zoopress.results import Report, StageResult
from zoopress.store import Store

TWO = "stages: [{technique: magnitude_pruning, sparsity: 0.5}, {technique: entropy_coding}]\n"


class Diary:
    """Writes down what it hears."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.heard: list[tuple[str, dict[str, Any]]] = []

    def _note(self, what: str, line: str, **news: Any) -> None:
        self.lines.append(line)
        self.heard.append((what, news))

    def of(self, what: str) -> list[dict[str, Any]]:
        return [news for name, news in self.heard if name == what]

    @hookimpl
    def zoopress_run_started(self, run: RunNews) -> None:
        self._note("run_started", f"run of {len(run.cells)}", run=run)

    @hookimpl
    def zoopress_run_ended(self, run: RunNews, cells: tuple[CellEnd, ...]) -> None:
        states = ", ".join(f"{end.cell.recipe['name']} {end.state}" for end in cells)
        self._note("run_ended", f"run ended: {states}", run=run, cells=cells)

    @hookimpl
    def zoopress_cell_started(self, cell: CellNews) -> None:
        self._note("cell_started", f"{cell.recipe['name']}: started", cell=cell)

    @hookimpl
    def zoopress_cell_ended(
        self, cell: CellNews, state: str, report: Report | None, error: str | None
    ) -> None:
        line = f"{cell.recipe['name']}: {state}"
        self._note("cell_ended", line, cell=cell, report=report, error=error)

    @hookimpl
    def zoopress_stage_started(self, cell: CellNews, stage: StageNews) -> None:
        line = f"{cell.recipe['name']} {stage.position}: started"
        self._note("stage_started", line, cell=cell, stage=stage)

    @hookimpl
    def zoopress_stage_ended(
        self, cell: CellNews, stage: StageNews, result: StageResult, computed: bool, seconds: float
    ) -> None:
        how = "computed" if computed else "stored"
        line = f"{cell.recipe['name']} {stage.position}: {how}"
        self._note("stage_ended", line, cell=cell, stage=stage, result=result, seconds=seconds)

    @hookimpl
    def zoopress_stage_failed(
        self, cell: CellNews, stage: StageNews, error: str, result: StageResult | None
    ) -> None:
        line = f"{cell.recipe['name']} {stage.position}: failed"
        self._note("stage_failed", line, cell=cell, stage=stage, error=error, result=result)


@pytest.fixture
def diary() -> Diary:
    return Diary()


@pytest.fixture
def with_diary(diary: Diary) -> Plugins:
    return load_plugins(extra={"diary": diary})


@pytest.fixture
def run(tmp_path: Path, brief_evaluation: None) -> Callable[..., Any]:
    write_zoo(tmp_path)

    def run(plugins: Plugins, recipe: str = TWO, name: str = "r", **more: Any) -> Any:
        (tmp_path / f"{name}.yaml").write_text(recipe)
        card = load_card(str(tmp_path / "card.yaml"), plugins)
        read = load_recipe(str(tmp_path / f"{name}.yaml"), plugins)
        out = tmp_path / "out" / name
        return compress(card, read, out, Store(tmp_path / "store"), plugins, **more)

    return run


def test_a_run_is_heard_from_start_to_end_and_stored_stages_too(
    run: Callable[..., Any], with_diary: Plugins, diary: Diary, tmp_path: Path
) -> None:
    made = run(with_diary)
    assert diary.lines == [
        *("run of 1", "r: started", "r 1: started", "r 1: computed", "r 2: started"),
        *("r 2: computed", "r: done", "run ended: r done"),
    ]
    [cell] = [news["cell"] for news in diary.of("cell_started")]
    assert [*cell.keys, cell.report_key] == made.report.store_keys
    assert cell.card == made.report.card
    assert cell.recipe == made.report.recipe
    assert cell.folder == str(tmp_path / "out" / "r")
    assert diary.of("cell_ended")[0]["report"] == made.report
    first, second = (news["stage"] for news in diary.of("stage_ended"))
    assert (first.technique, first.config["sparsity"]) == ("magnitude_pruning", 0.5)
    assert (second.position, second.count, second.key) == (2, 2, cell.keys[1])
    assert [news["result"] for news in diary.of("stage_ended")] == made.report.stages

    diary.lines.clear()
    run(with_diary)
    assert diary.lines[2:-2] == ["r 1: stored", "r 2: stored"]
    diary.lines.clear()
    run(with_diary, TWO.replace("{technique: entropy_coding}", "{technique: float_precision}"), "s")
    assert diary.lines[2:-2] == ["s 1: stored", "s 2: started", "s 2: computed"]


def test_failures_are_heard_with_what_was_measured(
    run: Callable[..., Any], with_diary: Plugins, diary: Diary, tmp_path: Path
) -> None:
    with pytest.raises(GateError, match="min_cosine"):
        run(with_diary, TWO + "targets: {min_cosine: 0.99999}\n")
    assert diary.lines[2:] == ["r 1: started", "r 1: failed", "r: failed", "run ended: r failed"]
    [failed], [ended] = diary.of("stage_failed"), diary.of("cell_ended")
    assert failed["result"].fidelity.cosine < 0.99999
    assert ended["error"] == failed["error"]
    assert "min_cosine" in failed["error"]

    diary.lines.clear()
    with pytest.raises(StageError):
        run(with_diary, "stages: [{technique: weight_quantization, include: [nothing]}]\n", "none")
    assert diary.lines[2:4] == ["none 1: started", "none 1: failed"]
    assert diary.of("stage_failed")[-1]["result"] is None

    (tmp_path / "weights.safetensors").unlink()
    diary.lines.clear()
    with pytest.raises(SourceError):
        run(with_diary)
    assert diary.lines == ["run of 1", "r: started", "r: failed", "run ended: r failed"]
    assert diary.of("cell_started")[-1]["cell"].keys == ()


def test_an_interrupted_run_says_so(
    run: Callable[..., Any], with_diary: Plugins, diary: Diary
) -> None:
    def interrupt(name: str, work: Any) -> Any:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(with_diary, execute=interrupt)
    assert diary.lines[-3:] == ["r 1: failed", "r: stopped", "run ended: r stopped"]


class Broken:
    @hookimpl
    def zoopress_run_started(self) -> None:
        sys.exit(3)

    @hookimpl
    def zoopress_stage_ended(self, result: StageResult) -> None:
        raise ZeroDivisionError("oh")

    @hookimpl
    def zoopress_before_stage(self) -> None:
        raise ValueError("old")


def test_an_observer_that_fails_is_warned_about_and_others_hear_all(
    run: Callable[..., Any], diary: Diary
) -> None:
    events: list[dict[str, Any]] = []
    around = {"first": Broken(), "diary": diary, "last": Broken()}
    run(load_plugins(extra=around), reporter=Reporter([events.append]))
    assert len(diary.lines) == 8
    warnings = [event["text"] for event in events if event["event"] == "warning"]
    for hook, problem, times in (
        ("run_started", "SystemExit: 3", 1),
        ("stage_ended", "ZeroDivisionError: oh", 2),
        ("before_stage", "ValueError: old", 2),
    ):
        for plugin in ("first", "last"):
            told = f"an observer failed: zoopress_{hook} of plugin {plugin!r}: {problem}"
            assert warnings.count(told) == times


def test_the_hooks_of_before_still_hear_of_what_is_computed(run: Callable[..., Any]) -> None:
    heard: list[Any] = []
    before = hookimpl(
        lambda technique, position, key: heard.append((technique, position)),
        specname="zoopress_before_stage",
    )
    after = hookimpl(
        lambda position, result: heard.append((position, result.result.technique)),
        specname="zoopress_after_stage",
    )
    plugins = load_plugins(extra={"old": SimpleNamespace(before=before, after=after)})
    run(plugins)
    run(plugins)
    assert heard == [
        *(("magnitude_pruning", 1), (1, "magnitude_pruning")),
        *(("entropy_coding", 2), (2, "entropy_coding")),
    ]


def test_what_is_heard_twice_is_told_once(with_diary: Plugins, diary: Diary, made: Report) -> None:
    with RunWatch(Observers(with_diary, print), [("c", "r")], Path("out")) as run:
        keys = made.store_keys
        watch = run.cell(made.card, made.recipe, Path("out"), keys[:-1], keys[-1])
        result = made.stages[0]
        for _ in range(2):
            watch.start()
            watch.stage_started(1)
            watch.stage_ended(1, result, True, 1.0)
        watch.stage_started(2)
        for _ in range(2):
            watch.stage_failed(1, "misses a target of this recipe", result)
            watch.end("failed", error="the worker died")
        watch.stage_started(2)
    assert diary.lines == [
        *("run of 1", "r: started", "r 1: started", "r 1: computed", "r 2: started"),
        *("r 1: failed", "r 2: failed", "r: failed", "run ended: r failed"),
    ]
    assert diary.of("stage_failed")[-1]["error"] == "the worker died"


@pytest.fixture
def made(run: Callable[..., Any], plugins: Plugins) -> Report:
    report: Report = run(plugins).report
    return report


@contextmanager
def in_this_process(executor: LocalExecutor, workers: int) -> Iterator[Submit]:
    """Carry jobs as a cluster does: no events come back, only answers."""

    def submit(job: Job) -> Future[dict[str, Any]]:
        future: Future[dict[str, Any]] = Future()
        try:
            answer = run_here(job, executor.budget, lambda event: None)
            future.set_result(json.loads(json.dumps(answer)))
        except Exception as error:
            future.set_exception(error)
        return future

    yield submit


PARAMS = """
recipes:
  plain: {stages: [{technique: magnitude_pruning, sparsity: 0.5}, {technique: entropy_coding}]}
  grid:
    stages: [{technique: magnitude_pruning, sparsity: 0.5}, {technique: weight_quantization}]
  harsh:
    stages: [{technique: magnitude_pruning, sparsity: 0.5}, {technique: weight_quantization}]
    targets: {min_cosine: 0.99999}
  wrong: {stages: [{technique: magnitude_prunin}]}
"""


def test_a_zoo_runs_workers_are_heard_of_in_its_own_process_once_each(
    tmp_path: Path, with_diary: Plugins, diary: Diary, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_zoo(tmp_path)
    (tmp_path / "params.yaml").write_text(PARAMS)
    monkeypatch.chdir(tmp_path)
    request = ZooRequest(("card.yaml",), ("params.yaml#recipes",), workers=1, quiet=True)
    run_zoo(request, with_diary)
    assert diary.lines[0] == "run of 4"
    ends = dict(part.split() for part in diary.lines[-1].removeprefix("run ended: ").split(", "))
    assert ends == {"plain": "done", "grid": "done", "harsh": "failed", "wrong": "failed"}

    def lines(recipe: str) -> list[str]:
        return [line for line in diary.lines if line.startswith(recipe)]

    assert lines("wrong") == ["wrong: started", "wrong: failed"]
    # One of those that share the first stage is told that it was computed.
    shared = [line for line in diary.lines if line.endswith(" 1: computed")]
    assert len(shared) == 1
    for recipe in ("plain", "grid"):
        stages = [line for line in lines(recipe) if "started" not in line]
        assert [line.split(": ")[0] for line in stages] == [f"{recipe} 1", f"{recipe} 2", recipe]
    assert lines("harsh")[-2:] == ["harsh 1: failed", "harsh: failed"]
    reports = [news["report"] for news in diary.of("cell_ended") if news["report"]]
    for report in reports:
        folder = Path("out") / "perceptron" / report.recipe["name"]
        assert json.loads((folder / "report.json").read_text()) == report.as_dict()

    diary.lines.clear()
    run_zoo(request, with_diary, in_this_process)
    for recipe in ("plain", "grid"):
        stages = [f"{recipe} {position}: stored" for position in (1, 2)]
        assert lines(recipe)[1:] == [*stages, f"{recipe}: done"]


def test_a_clusters_answers_carry_what_its_stages_had_to_tell(
    tmp_path: Path, with_diary: Plugins, diary: Diary, brief_evaluation: None
) -> None:
    write_zoo(tmp_path, recipe=TWO)
    card, recipe = str(tmp_path / "card.yaml"), str(tmp_path / "recipe.yaml")
    request = ZooRequest((card,), (recipe,), out=str(tmp_path / "out"), quiet=True)
    run_zoo(request, with_diary, in_this_process)
    assert [line.removeprefix("recipe ") for line in diary.lines[2:-2]] == [
        *("1: started", "1: computed", "2: started", "2: computed")
    ]
