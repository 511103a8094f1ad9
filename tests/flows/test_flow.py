"""The main path under a real Prefect server."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from plugin_distributions import Install
from prefect_server import PrefectServer
from small_zoo import CHAIN, write_zoo
from warm import WarmProcess


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Prefect home of its own, shared since making its database takes a while."""
    return tmp_path_factory.mktemp("prefect")


def at_home(home: Path) -> dict[str, str]:
    """Return an environment in which Prefect starts a server for each run."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("PREFECT_")}
    return {**kept, "PREFECT_HOME": str(home)}


def run(
    folder: Path, warm: WarmProcess, environment: dict[str, str], *arguments: str
) -> subprocess.CompletedProcess[str]:
    words = ("run", "card.yaml", "recipe.yaml", "--store", "store", *arguments)
    return subprocess.run(
        [warm.folder / "zoopress", *words],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=400,
    )


def ask_prefect(home: Path) -> list[tuple[str, str, str]]:
    """Return what Prefect's database says of task runs: flow run, task, state."""
    import sqlite3

    with sqlite3.connect(home / "prefect.db") as database:
        return list(
            database.execute(
                "select flow_run.name, task_run.name, task_run.state_type from task_run "
                "join flow_run on flow_run.id = task_run.flow_run_id order by task_run.start_time"
            )
        )


def test_a_flow_runs_each_stage_as_a_task_and_gives_what_an_inline_run_gives(
    tmp_path: Path, home: Path, warm: WarmProcess
) -> None:
    write_zoo(tmp_path)
    done = run(tmp_path, warm, at_home(home), "--engine", "prefect", "--out", "out")
    assert done.returncode == 0, done.stderr
    # Quiet: our own lines, and nothing of Prefect's.
    assert "prefect" not in done.stderr.lower()
    assert done.stderr.count("→") == 4
    tasks = [(task.rpartition("-")[0], state) for _, task, state in ask_prefect(home)]
    names = ["neuron_pruning", "magnitude_pruning", "weight_quantization", "entropy_coding"]
    assert tasks == [(name, "COMPLETED") for name in (*names, "evaluate")]

    inline = run(tmp_path, warm, at_home(home), "--engine", "inline", "--out", "inline")
    assert "nothing to compute" in inline.stderr
    manifests = [
        (tmp_path / out / "artifact/zoopress.json").read_bytes() for out in ("out", "inline")
    ]
    assert manifests[0] == manifests[1]


@pytest.mark.parametrize("where", ["server", pytest.param("home", marks=pytest.mark.slow)])
def test_a_mistake_in_a_flow_is_one_line_without_a_traceback(
    tmp_path: Path, request: pytest.FixtureRequest, warm: WarmProcess, where: str
) -> None:
    write_zoo(tmp_path, recipe=CHAIN + "targets: {min_cosine: 0.99999}\n")
    place = request.getfixturevalue(where)
    environment = at_home(place) if where == "home" else place.environment()
    done = run(tmp_path, warm, environment, "--engine", "prefect", "--out", "out")
    assert done.returncode == 1
    assert "did not pass the gate 'fidelity_kept'" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()


RAISES = """
from pathlib import Path
from zoopress.plugins import hookimpl
from zoopress.techniques import Config, Effects, Outcome, Technique


class Broken(Technique[Config]):
    name = "broken"
    family = "pruning"
    config_type = Config

    def effects(self):
        return Effects()

    def apply(self, model, context):
        with Path("applied").open("a") as log:
            log.write("once\\n")
        raise ValueError("this technique has a bug")


@hookimpl
def zoopress_techniques():
    return [Broken]
"""


def test_a_technique_that_raises_is_computed_once_and_told_as_inline(
    tmp_path: Path, server: PrefectServer, install: Install
) -> None:
    install("broken-technique", "broken", RAISES)
    write_zoo(tmp_path, recipe="stages: [{technique: broken}]\n")
    environment = {**server.environment(), "PYTHONPATH": str(tmp_path / "site")}
    said = {}
    for engine in ("inline", "prefect"):
        (tmp_path / "applied").unlink(missing_ok=True)
        done = subprocess.run(
            [
                *(sys.executable, "-m", "zoopress", "run", "card.yaml", "recipe.yaml"),
                *("--store", "store", "--engine", engine),
            ],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 1
        assert (tmp_path / "applied").read_text() == "once\n", engine
        said[engine] = done.stderr
    assert "this technique has a bug" in said["prefect"]
    assert "going on without" not in said["prefect"]
    assert "site-packages/prefect" not in said["prefect"]
    assert len(said["prefect"].splitlines()) <= 2 * len(said["inline"].splitlines())
    run, *_ = server.runs("compress", "FAILED")
    assert "this technique has a bug" in run["state"]["message"]


def test_prefect_that_was_asked_for_and_cannot_begin_is_an_error(
    tmp_path: Path, home: Path, warm: WarmProcess
) -> None:
    write_zoo(tmp_path)
    environment = {**at_home(home), "PREFECT_CLIENT_MAX_RETRIES": "0"}
    environment["PREFECT_API_URL"] = "http://127.0.0.1:9/api"
    done = run(tmp_path, warm, environment, "--engine", "prefect", "--out", "out")
    assert done.returncode == 1
    assert "Prefect could not begin" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()


def test_a_server_that_is_not_there_does_not_stop_the_work(
    tmp_path: Path, home: Path, warm: WarmProcess
) -> None:
    write_zoo(tmp_path)
    environment = {**at_home(home), "PREFECT_CLIENT_MAX_RETRIES": "0"}
    environment["PREFECT_API_URL"] = "http://127.0.0.1:9/api"
    done = run(tmp_path, warm, environment, "--out", "out", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["compression_ratio"] > 3
    assert (tmp_path / "out" / "artifact" / "zoopress.json").is_file()
