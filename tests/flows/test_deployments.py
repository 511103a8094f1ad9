"""Deployments: prefect.yaml is right, `flows serve` fires, a worker runs what is scheduled."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from hub_server.fixtures import HubFixture
from model_repository import (
    SOURCE,
    copy_repository,
    environment,
    git,
    make_repository,
    publish_source,
    weights,
)
from prefect_server import TOOLS, PrefectServer
from small_zoo import write_zoo
from zoopress.commands.cli import app
from zoopress.plugins import load_plugins
from zoopress_flows.repositories import repository_name

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_repository(tmp_path_factory.mktemp("made") / "repository", load_plugins())


@pytest.fixture
def repository(hub: HubFixture, tmp_path: Path, made: Path) -> Path:
    return copy_repository(made, tmp_path / "repository", publish_source(hub))


def declared() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = yaml.safe_load((ROOT / "prefect.yaml").read_text())["deployments"]
    return found


@pytest.mark.parametrize("deployment", declared(), ids=lambda deployment: deployment["name"])
def test_every_deployment_is_one_that_prefect_accepts(deployment: dict[str, Any]) -> None:
    from prefect.cli.deploy._models import DeploymentConfig
    from prefect.flows import load_flow_from_entrypoint

    flow = load_flow_from_entrypoint(deployment["entrypoint"])
    assert flow.name == deployment["name"]
    # Raises for a parameter of another type, of another name, and for one that is missing.
    given = flow.validate_parameters(deployment["parameters"])
    assert given.keys() >= deployment["parameters"].keys()
    assert DeploymentConfig.model_validate(deployment).work_pool is not None
    assert DeploymentConfig.model_fields.keys() >= deployment.keys()


def test_what_is_declared_is_what_is_served() -> None:
    from zoopress_flows.deployments import DEPLOYABLES, deployments, schedule

    [night, *others] = declared()
    assert {d["name"]: d["entrypoint"] for d in declared()} == {
        item.name: item.entrypoint for item in DEPLOYABLES
    }
    served = {d.name: d for d in deployments(schedule("0 3 * * *", None, "UTC"), {})}
    limit = served["nightly"].concurrency_options
    assert night["concurrency_limit"] == {
        "limit": served["nightly"].concurrency_limit,
        "collision_strategy": limit.collision_strategy.value,
    }
    assert [bool(served[d["name"]].schedules) for d in declared()] == [True, False, False, False]
    assert [served[d["name"]].entrypoint for d in others] == [d["entrypoint"] for d in others]


def test_flows_are_listed_with_what_they_take() -> None:
    rows = json.loads(CliRunner().invoke(app, ["flows", "list", "--json"]).output)
    assert {row["entrypoint"] for row in rows} == {d["entrypoint"] for d in declared()}
    assert all(row["description"] and row["parameters"] for row in rows)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--cron", "every night"], "'every night' is no cron schedule"),
        (["--timezone", "Mars/Olympus"], "no time zone 'Mars/Olympus'"),
        ([], "Schedules need a Prefect server"),
    ],
)
def test_what_cannot_be_served_is_explained(
    repository: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    done = CliRunner().invoke(app, ["flows", "serve", "--repository", str(repository), *arguments])
    assert message in str(done.exception)


@pytest.mark.slow
def test_a_served_schedule_refreshes_the_repository_and_ends_with_ctrl_c(
    repository: Path, hub: HubFixture, server: PrefectServer, tmp_path: Path
) -> None:
    moved = hub.commit(SOURCE, {"model.safetensors": weights(1)})
    with subprocess.Popen(
        [
            *(sys.executable, "-m", "zoopress", "flows", "serve", "--repository", "repository"),
            *("--every", "4"),
        ],
        cwd=tmp_path,
        env=server.environment(environment(hub, tmp_path / "store")),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as serving:
        try:
            server.wait_for(lambda: server.runs("nightly", "COMPLETED"), 240)
        finally:
            serving.send_signal(signal.SIGINT)
            printed, _ = serving.communicate(timeout=60)
    assert serving.returncode == 0, printed
    assert "nightly    next at 2" in printed
    assert "No longer serving" in printed
    assert "Traceback" not in printed
    for deployment in server.ask("deployments/filter"):
        assert deployment["paused"], deployment["name"]
    # Two never overlap; the others were cancelled, or not begun.
    assert not server.runs("nightly", "FAILED")
    assert git(repository, "status", "--porcelain") == ""
    assert moved in git(repository, "show", "HEAD:cards/net.yaml")
    assert git(repository, "log", "-2", "--format=%s").splitlines() == [
        "Nightly refresh: what was published, and where",
        "Nightly refresh: 1 card moved, 2 models changed",
    ]
    page = hub.files("zoo/net-coded")["README.md"].decode()
    assert git(repository, "rev-parse", "HEAD~1") in page
    [artifact, *_] = server.ask(
        "artifacts/filter", artifacts={"key": {"any_": [f"nightly-{repository_name(repository)}"]}}
    )
    assert f"`{moved}`" in artifact["data"]
    assert "net × coded" in artifact["data"]


@pytest.mark.slow
def test_serving_ends_with_sigterm_and_pauses_its_deployments(
    repository: Path, hub: HubFixture, server: PrefectServer, tmp_path: Path
) -> None:
    name = f"nightly-{repository_name(repository)}"

    def deployment(key: str) -> Any:
        found = server.ask("deployments/filter", deployments={"name": {"any_": [name]}})
        return found[0][key] if found else None

    before = deployment("last_polled")
    with subprocess.Popen(
        [sys.executable, "-m", "zoopress", "flows", "serve", "--repository", "repository"],
        cwd=tmp_path,
        env=server.environment(environment(hub, tmp_path / "store")),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as serving:
        server.wait_for(lambda: deployment("last_polled") != before, 120)
        serving.terminate()
        printed, _ = serving.communicate(timeout=60)
    assert serving.returncode == 0, printed
    assert "No longer serving" in printed
    assert "Warning" not in printed
    assert deployment("paused") is True


def test_repositories_have_names_of_their_own_on_a_server(made: Path, tmp_path: Path) -> None:
    one, two = tmp_path / "a" / "Zoo of Mine", tmp_path / "b" / "Zoo of Mine"
    for folder in (one, two):
        folder.mkdir(parents=True)
        git(folder, "init", "--quiet")
    names = {repository_name(one), repository_name(two), repository_name(made)}
    assert len(names) == 3
    for name in names:
        assert re.fullmatch(r"[a-z0-9-]+-[0-9a-f]{8}", name)
    before = repository_name(one)
    git(one, "remote", "add", "origin", "https://example.com/zoo.git")
    assert repository_name(one) != before


@pytest.mark.slow
def test_two_repositories_on_one_server_do_not_take_over_each_others_schedules(
    repository: Path, hub: HubFixture, server: PrefectServer, tmp_path: Path
) -> None:
    other = tmp_path / "elsewhere" / "repository"
    shutil.copytree(repository, other)
    names = [f"nightly-{repository_name(folder)}" for folder in (repository, other)]

    def states() -> list[bool]:
        found = server.ask("deployments/filter", deployments={"name": {"any_": names}})
        by_name = {one["name"]: one for one in found if one["last_polled"]}
        return [by_name[name]["paused"] for name in names if name in by_name]

    serving = []
    try:
        for folder in (repository, other):
            words = ("-m", "zoopress", "flows", "serve", "--repository", str(folder))
            serving.append(
                subprocess.Popen(
                    [sys.executable, *words],
                    cwd=tmp_path,
                    env=server.environment(environment(hub, tmp_path / "store")),
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                )
            )
        server.wait_for(lambda: states() == [False, False], 200)
        serving[0].terminate()
        assert serving[0].wait(60) == 0
        assert states() == [True, False]
    finally:
        for process in serving:
            process.terminate()
            process.wait(60)
    assert states() == [True, True]


@pytest.mark.slow
def test_a_process_worker_runs_what_is_scheduled(server: PrefectServer, tmp_path: Path) -> None:
    write_zoo(tmp_path)
    configuration = yaml.safe_load((ROOT / "prefect.yaml").read_text())
    [compress] = [d for d in configuration["deployments"] if d["name"] == "compress"]
    compress["parameters"] = {"card": "card.yaml", "recipe": "recipe.yaml", "out": "out"}
    compress["schedules"] = [{"interval": 15}]
    (tmp_path / "prefect.yaml").write_text(yaml.safe_dump(configuration, sort_keys=False))
    given = {**server.environment(), "ZOOPRESS_STORE": str(tmp_path / "store")}
    before = sorted(path.name for path in tmp_path.iterdir())

    def prefect(*words: str) -> str:
        done = subprocess.run(
            [str(TOOLS / "prefect"), *words],
            cwd=tmp_path,
            env=given,
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def deployed() -> list[Any]:
        return [run for run in server.runs("compress", "COMPLETED") if run["deployment_id"]]

    prefect("work-pool", "create", "zoopress", "--type", "process")
    prefect("deploy", "--all")
    with (tmp_path / "worker.log").open("w") as log:
        worker = subprocess.Popen(
            [str(TOOLS / "prefect"), "worker", "start", "--pool", "zoopress", "--limit", "1"],
            cwd=Path("/"),
            env=given,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        try:
            server.wait_for(deployed, 300)
        finally:
            os.killpg(worker.pid, signal.SIGTERM)
            worker.wait()
    assert (tmp_path / "out" / "artifact" / "zoopress.json").is_file()
    assert not server.runs("compress", "FAILED")
    after = sorted(path.name for path in tmp_path.iterdir())
    assert after == sorted([*before, "out", "store", "worker.log"])
