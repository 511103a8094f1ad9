"""A whole zoo under a real Prefect server: on threads, on Dask, on Ray, and when things die."""

from __future__ import annotations

import base64
import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from prefect_server import PrefectServer, prefect_server
from small_zoo import write_zoo
from warm import WarmProcess
from zoopress_flows.repositories import repository_name

PARAMS = """
matrix: {cards: [small/card.yaml, large/card.yaml], recipes: [coded, coarse, harsh]}
recipes:
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
    stages: [{technique: magnitude_pruning, sparsity: 0.9}]
    targets: {min_cosine: 0.99999}
"""
FACTORY = """
import os, time
from pathlib import Path
from torch import nn

HERE = Path(__file__).parent

def build(width=96):
    (HERE / f"process-{os.getpid()}").touch()
    while (HERE / "sleep").exists():
        time.sleep(0.1)
    return nn.Sequential(
        nn.Linear(32, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 10)
    )
"""
EXPECTED = {
    f"{card} {recipe}": "failed" if recipe == "harsh" else "done"
    for card in ("small", "large")
    for recipe in ("coded", "coarse", "harsh")
}


@pytest.fixture
def zoo(tmp_path: Path) -> Path:
    for name, width in (("small", 32), ("large", 96)):
        write_zoo(tmp_path / name, width)
        card = (tmp_path / name / "card.yaml").read_text()
        (tmp_path / name / "card.yaml").write_text(card.replace("perceptron", name))
        (tmp_path / name / "networks.py").write_text(FACTORY)
    (tmp_path / "params.yaml").write_text(PARAMS)
    (tmp_path / "temporary").mkdir()
    return tmp_path


# The command's own process is one like a user's; with what it starts others that is up to tests.
MAIN = (
    "import sys; from zoopress.commands.cli import main\n"
    "sys.argv[0], sys.executable = 'zoopress', sys.argv.pop(1)\n"
    "main()"
)


def start(
    zoo: Path,
    server: PrefectServer,
    *more: str,
    python: str = sys.executable,
    **variables: str,
) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [
            *(sys.executable, "-c", MAIN, python, "zoo", "run", "--matrix", "params.yaml"),
            *("--store", "store", "--workers", "2", *more),
        ],
        cwd=zoo,
        env={**server.environment(), "TMPDIR": str(zoo / "temporary"), **variables},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen[str]) -> tuple[dict[str, str], str]:
    """Wait for a run of which some cells fail; returns the states and what it said."""
    printed, said = process.communicate(timeout=400)
    assert process.returncode == 1, said
    assert "Traceback" not in said
    return states(json.loads(printed)), said


def states(board: dict[str, Any]) -> dict[str, str]:
    return {f"{cell['card']} {cell['recipe']}": cell["state"] for cell in board["cells"]}


def processes(zoo: Path) -> set[int]:
    return {int(path.name.partition("-")[2]) for path in zoo.glob("*/process-*")}


def wait_for_process(zoo: Path, card: str) -> int:
    until = time.monotonic() + 120
    while time.monotonic() < until:
        for path in (zoo / card).glob("process-*"):
            return int(path.name.partition("-")[2])
        time.sleep(0.05)
    raise AssertionError(f"{card} was never built")


def test_every_job_is_a_task_and_the_results_are_to_be_seen(
    zoo: Path, server: PrefectServer, warm: WarmProcess
) -> None:
    before = [run["id"] for run in server.runs("zoo")]
    found, said = finish(start(zoo, server, "--json", python=warm.python))
    assert found == EXPECTED
    assert said == ""
    (run,) = [run for run in server.runs("zoo") if run["id"] not in before]
    assert (run["state_type"], run["state_name"]) == ("COMPLETED", "SomeCellsFailed")
    tasks = server.ask("task_runs/filter", flow_runs={"id": {"any_": [run["id"]]}})
    by_state: dict[str, list[str]] = {}
    for task in tasks:
        by_state.setdefault(task["state_type"], []).append(task["name"])
    assert sorted(by_state.pop("FAILED")) == ["stages large × harsh", "stages small × harsh"]
    assert by_state.keys() == {"COMPLETED"}
    assert "prefix small × coded and 1 more" in by_state["COMPLETED"]
    assert "finish large × coarse" in by_state["COMPLETED"]

    ours = {"artifacts": {"flow_run_id": {"any_": [run["id"]]}}}
    artifacts = {item["key"]: item for item in server.ask("artifacts/filter", **ours)}
    name = repository_name(zoo)  # so that zoos on one server do not write over each other
    named = {f"{key}-{name}" for key in ("leaderboard", "leaderboard-page", "pareto-front")}
    assert {*named, f"report-{name}-small-coded"} <= artifacts.keys()
    rows = json.loads(artifacts[f"leaderboard-{name}"]["data"])
    assert {f"{row['card']} {row['recipe']}": row["state"] for row in rows} == EXPECTED
    kind, _, picture = artifacts[f"pareto-front-{name}"]["data"].partition(",")
    assert kind == "data:image/svg+xml;base64"
    assert b"<svg" in base64.b64decode(picture)
    # The worker processes are not the flow's own.
    assert len(processes(zoo)) in (2, 3)  # the third delivers while two compute
    # Prefect's log of the tasks has what techniques and workers say.
    logged = server.wait_for(
        lambda: server.ask("logs/filter", logs={"flow_run_id": {"any_": [run["id"]]}}), 60
    )
    assert any("stage 1/" in line["message"] for line in logged)


def test_a_run_of_which_every_cell_failed_is_failed(
    zoo: Path, server: PrefectServer, warm: WarmProcess
) -> None:
    before = [run["id"] for run in server.runs("zoo")]
    process = start(
        zoo, server, "--json", "--recipes", "params.yaml#recipes.harsh", python=warm.python
    )
    found, said = finish(process)
    assert set(found.values()) == {"failed"}
    assert said == ""
    (run,) = [run for run in server.runs("zoo") if run["id"] not in before]
    assert run["state_type"] == "FAILED"
    assert "fidelity_kept" in run["state"]["message"]


@pytest.mark.parametrize(
    "runner", ["dask=tcp://127.0.0.1:9", pytest.param("ray=127.0.0.1:9", marks=pytest.mark.slow)]
)
def test_a_cluster_that_cannot_be_reached_is_an_error_and_nothing_is_done_elsewhere(
    zoo: Path, server: PrefectServer, runner: str
) -> None:
    pytest.importorskip(f"prefect_{runner.partition('=')[0]}")
    impatient = {"DASK_DISTRIBUTED__COMM__TIMEOUTS__CONNECT": "1s"}
    process = start(zoo, server, "--runner", runner, **impatient)
    _, said = process.communicate(timeout=300)
    assert process.returncode == 1
    assert f"cluster at {runner.partition('=')[2]} cannot be reached" in said
    assert "Traceback" not in said
    assert not processes(zoo)
    assert not (zoo / "store").exists()


@pytest.mark.slow
@pytest.mark.parametrize("runner", ["dask", "ray"])
def test_a_cluster_of_two_processes_shares_the_store(
    zoo: Path, server: PrefectServer, runner: str
) -> None:
    pytest.importorskip(f"prefect_{runner}")
    process = start(zoo, server, "--json", "--runner", runner)
    found, said = finish(process)
    assert found == EXPECTED
    assert said == ""
    used = processes(zoo)
    assert len(used) >= 2
    assert process.pid not in used
    # With the store that they left, a run without a cluster has nothing to do.
    again, _ = finish(start(zoo, server, "--json", "--engine", "inline"))
    assert again == EXPECTED
    assert processes(zoo) == used


@pytest.mark.slow
def test_workers_that_share_nothing_but_a_stores_url(zoo: Path, server: PrefectServer) -> None:
    pytest.importorskip("prefect_dask")
    cluster = [sys.executable, "-m", "distributed.cli.dask_scheduler", "--host", "127.0.0.1"]
    scheduler_file = zoo / "scheduler.json"
    file = ("--scheduler-file", str(scheduler_file))
    started = []

    def launch(words: list[str], cache: str) -> None:
        environment = {**server.environment(), "ZOOPRESS_STORE_CACHE": str(zoo / cache)}
        with (zoo / "cluster.log").open("ab") as log:
            started.append(
                subprocess.Popen(words, cwd=zoo, env=environment, stdout=log, stderr=log)
            )

    try:
        launch([*cluster, "--port", "0", *file, "--no-dashboard"], "none")
        for i in range(2):
            worker = [sys.executable, "-m", "distributed.cli.dask_worker", *file, "--nthreads", "1"]
            launch([*worker, "--no-nanny", "--no-dashboard"], f"cache-{i}")
        until = time.monotonic() + 60
        while not scheduler_file.exists():
            assert time.monotonic() < until, (zoo / "cluster.log").read_text()
            time.sleep(0.1)
        address = json.loads(scheduler_file.read_text())["address"]
        store = (zoo / "shared").as_uri()
        words = ("--json", "--runner", f"dask={address}", "--store", store)
        cache = {"ZOOPRESS_STORE_CACHE": str(zoo / "cache-flow")}
        found, _ = finish(start(zoo, server, *words, **cache))
        assert found == EXPECTED
        assert processes(zoo) == {process.pid for process in started[1:]}
    finally:
        for process in started:
            process.kill()
            process.wait()
    # Each has what it computed or needed, the shared store has all of it.
    keys = {path.stem for path in (zoo / "shared").glob("entries/*/*.json")}
    assert len(keys) == 2 * (4 + 2 + 1)  # stages, reports, and the stage that missed its target
    held = [{path.name for path in zoo.glob(f"cache-{i}/**/entries/*/*")} for i in range(2)]
    assert held[0] | held[1] == keys


def test_a_runner_by_configuration_alone_and_a_wrong_one(zoo: Path, server: PrefectServer) -> None:
    process = start(zoo, server, ZOOPRESS_RUNNER="daks")
    _, said = process.communicate(timeout=100)
    assert process.returncode == 1
    assert "no runner 'daks'. Did you mean 'dask'?" in said


@pytest.mark.slow
def test_a_dask_worker_that_is_killed_costs_nothing(zoo: Path, server: PrefectServer) -> None:
    pytest.importorskip("prefect_dask")
    (zoo / "large" / "sleep").touch()
    process = start(zoo, server, "--json", "--runner", "dask")
    worker = wait_for_process(zoo, "large")
    psutil.Process(worker).kill()
    (zoo / "large" / "sleep").unlink()
    found, _ = finish(process)
    assert found == EXPECTED
    assert worker in processes(zoo)


@pytest.mark.slow
def test_a_server_that_is_killed_in_the_middle_loses_nothing(
    zoo: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    with prefect_server(tmp_path_factory.mktemp("prefect")) as server:
        (zoo / "large" / "sleep").touch()
        # By default Prefect tries for minutes before it gives up.
        process = start(zoo, server, "--json", PREFECT_CLIENT_MAX_RETRIES="1")
        wait_for_process(zoo, "large")
        server.kill()
        (zoo / "large" / "sleep").unlink()
        printed, said = process.communicate(timeout=500)
    assert process.returncode == 1, said
    assert states(json.loads(printed)) == EXPECTED


@pytest.mark.slow
def test_an_interrupt_ends_the_flow_at_once(zoo: Path, server: PrefectServer) -> None:
    (zoo / "large" / "sleep").touch()
    process = start(zoo, server, "--json")
    wait_for_process(zoo, "large")
    process.send_signal(signal.SIGINT)
    printed, said = process.communicate(timeout=60)
    assert process.returncode == 130, said
    assert {state for cell, state in states(json.loads(printed)).items() if "large" in cell} == {
        "stopped"
    }


@pytest.mark.slow
def test_a_flow_that_is_killed_goes_on_where_it_was(zoo: Path, server: PrefectServer) -> None:
    (zoo / "large" / "sleep").touch()
    process = start(zoo, server)
    try:
        wait_for_process(zoo, "large")
        until = time.monotonic() + 300
        while not list((zoo / "store" / "entries").glob("*/*")):
            assert time.monotonic() < until
            time.sleep(0.1)
    finally:
        process.kill()
        process.communicate()
    (zoo / "large" / "sleep").unlink()
    [dead] = server.runs("zoo", "RUNNING")
    found, _ = finish(start(zoo, server, "--json"))
    assert found == EXPECTED
    (state,) = [run["state"] for run in server.runs("zoo") if run["id"] == dead["id"]]
    assert state["type"] == "CRASHED"
    assert "killed" in state["message"]
