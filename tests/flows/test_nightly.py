"""The nightly refresh, with real git, DVC and Hub client; killed everywhere, it goes on."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hub_server import UploadRules
from hub_server.fixtures import HubFixture
from model_repository import (
    PARAMS,
    SOURCE,
    TOKEN,
    copy_repository,
    environment,
    git,
    make_repository,
    publish_source,
    weights,
)
from prefect_server import prefect_server
from zoopress.errors import RepositoryError
from zoopress.hub import client
from zoopress.orchestration.nightly import STEPS, NightlyOptions, refresh
from zoopress.orchestration.nightly_summary import NightlySummary
from zoopress.orchestration.request import ZooRequest, run_zoo as run_requested
from zoopress.plugins import Plugins, load_plugins
from zoopress.progress import Reporter
from zoopress.repository import Repository


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One store for all tests, so that each model is computed once."""
    return tmp_path_factory.mktemp("store")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_repository(tmp_path_factory.mktemp("made") / "repository", load_plugins())


@pytest.fixture
def alice(hub: HubFixture, monkeypatch: pytest.MonkeyPatch) -> HubFixture:
    hub.rules = UploadRules(threshold=1000)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr(client, "WAITS_S", (0.0, 0.0))
    return hub


@pytest.fixture
def repository(
    alice: HubFixture,
    tmp_path: Path,
    made: Path,
    store: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Path:
    """A repository whose card is pinned to a model that has moved on since."""
    for name, value in environment(alice, store).items():
        monkeypatch.setenv(name, value)
    folder = copy_repository(made, tmp_path / "repository", publish_source(alice))
    alice.commit(SOURCE, {"model.safetensors": weights(1)})
    return folder


def nightly(folder: Path, plugins: Plugins, **options: Any) -> NightlySummary:
    """Refresh in this process, quickly: one worker is enough."""

    def run_zoo(cards: Any, matrix: str, out: str) -> dict[str, Any]:
        request = ZooRequest(tuple(cards), (), matrix, out, workers=1, quiet=True)
        return run_requested(request, plugins).as_dict()

    return refresh(folder, NightlyOptions(**options), plugins, run_zoo, Reporter())


def final_state(folder: Path, hub: HubFixture) -> dict[str, Any]:
    """Return all that must not depend on whether a refresh was killed in between."""
    clean = subprocess.run(
        [sys.executable, "-m", "dvc", "status"], cwd=folder, capture_output=True, text=True
    )
    missing = subprocess.run(
        [sys.executable, "-m", "dvc", "status", "--cloud"],
        cwd=folder,
        capture_output=True,
        text=True,
    )
    repositories = [name for name in ("zoo/net-mild", "zoo/net-coded") if name in hub.repos]
    records = sorted((folder / "models").rglob("published.json"))
    return {
        "status": git(folder, "status", "--porcelain"),
        "dvc": clean.stdout.strip(),
        "dvc remote": missing.stdout.strip(),
        "log": git(folder, "log", "--format=%B%an"),
        # All that was committed but what names commits of this one repository.
        "tree": git(folder, "ls-tree", "-r", "HEAD~1"),
        "hub": {name: len(hub.commits(name)) for name in repositories},
        "records": [
            [(r["repo_id"], r["source_revision"]) for r in json.loads(path.read_bytes())]
            for path in records
        ],
    }


def test_what_moved_is_recompressed_versioned_and_published(
    repository: Path, alice: HubFixture, plugins: Plugins
) -> None:
    newest = alice.head(SOURCE)
    summary = nightly(repository, plugins)
    assert summary.complete, summary.problems
    assert [(card.name, card.after) for card in summary.cards] == [("net", newest)]
    assert sorted(summary.computed) in ([], ["net × coded", "net × mild"])  # others shared a store
    assert [item.state for item in summary.published] == ["published", "published"]
    assert summary.pushed == ["dvc storage"]

    card = (repository / "cards/net.yaml").read_text()
    assert card.startswith("# A card with a comment that stays.\n")
    assert f"source: hub:zoo/net@{newest}  # pinned from main\n" in card
    state = final_state(repository, alice)
    assert (state["status"], state["dvc"]) == ("", "Data and pipelines are up to date.")
    assert "are in sync" in state["dvc remote"]
    # The page names the commit whose lock has the model.
    page = alice.files("zoo/net-coded")["README.md"].decode()
    assert summary.commit is not None
    assert summary.commit in page
    assert "compress@net-coded" in git(repository, "show", f"{summary.commit}:dvc.lock")

    head = git(repository, "rev-parse", "HEAD")
    again = nightly(repository, plugins)
    assert (again.commit, again.record, again.computed) == (None, None, [])
    assert [item.state for item in again.published] == ["unchanged", "unchanged"]
    assert (git(repository, "status", "--porcelain"), git(repository, "rev-parse", "HEAD")) == (
        "",
        head,
    )


@pytest.mark.slow
def test_a_commit_of_something_else_makes_no_commit_on_the_hub(
    repository: Path, alice: HubFixture, plugins: Plugins
) -> None:
    nightly(repository, plugins)
    before = len(alice.commits("zoo/net-mild"))
    (repository / "notes.txt").write_text("a")
    git(repository, "add", "notes.txt")
    git(repository, "commit", "-qm", "Notes")
    # Even where nobody noted what was published.
    (repository / "models/net/mild/published.json").unlink()
    nightly(repository, plugins)
    assert len(alice.commits("zoo/net-mild")) == before


@pytest.mark.slow
def test_only_its_own_files_are_committed_by_somebody(
    repository: Path, plugins: Plugins, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", os.devnull)
    monkeypatch.setenv("GIT_CONFIG_NOSYSTEM", "1")
    (repository / "README.md").write_text("edited")
    (repository / "staged.txt").write_text("staged")
    (repository / "untracked.txt").write_text("untracked")
    git(repository, "add", "staged.txt")
    summary = nightly(repository, plugins, publish=False)
    assert summary.complete, summary.problems
    left = git(repository, "status", "--porcelain").splitlines()
    assert sorted(line.split()[-1] for line in left) == [
        *("README.md", "staged.txt", "untracked.txt"),
    ]
    names = git(repository, "show", "--name-only", "--format=", "HEAD").splitlines()
    assert {"cards/net.yaml", "dvc.lock", "models/net/mild/report.json"} <= set(names)
    assert "README.md" not in names
    assert git(repository, "log", "-1", "--format=%an") == "zoopress nightly"


@pytest.mark.slow
def test_a_card_that_was_edited_is_left_out_and_said_so(
    repository: Path, alice: HubFixture, plugins: Plugins
) -> None:
    card = repository / "cards" / "net.yaml"
    other = repository / "cards" / "other.yaml"
    other.write_text(card.read_text().replace("name: net", "name: other"))
    params = (repository / "params.yaml").read_text().replace("[net]", "[net, other]")
    (repository / "params.yaml").write_text(params)
    git(repository, "add", ".")
    git(repository, "commit", "-qm", "Another card")
    edited = card.read_text() + "description: mine\n"
    card.write_text(edited)
    summary = nightly(repository, plugins, publish=False)
    assert [card.name for card in summary.cards if card.left_out] == ["net"]
    assert "has changes that are not committed" in summary.problems[0]
    assert card.read_text() == edited
    assert alice.head(SOURCE) in other.read_text()
    assert [path.name for path in (repository / "models").iterdir() if path.is_dir()] == ["other"]
    assert git(repository, "status", "--porcelain").split() == ["M", "cards/net.yaml"]


@pytest.mark.parametrize("name", ["params.yaml", "dvc.yaml"])
def test_an_edited_pipeline_stops_it_before_anything_is_done(
    repository: Path, plugins: Plugins, name: str
) -> None:
    with (repository / name).open("a") as stream:
        stream.write("# mine\n")
    with pytest.raises(RepositoryError, match=f"changes in {name} that are not committed"):
        nightly(repository, plugins)


@pytest.mark.parametrize("name", ["sources/network.py", "sources/new.py", "requirements.txt"])
def test_what_models_depend_on_must_be_committed(
    repository: Path, plugins: Plugins, name: str
) -> None:
    with (repository / name).open("a") as stream:
        stream.write("# mine\n")
    with pytest.raises(RepositoryError, match=f"changes in {name} that are not committed"):
        nightly(repository, plugins)


def test_two_cells_that_dvc_takes_for_one_are_refused(repository: Path, plugins: Plugins) -> None:
    card = (repository / "cards/net.yaml").read_text()
    for name in ("a", "a-b"):
        text = card.replace("name: net", f"name: {name}")
        (repository / f"cards/{name}.yaml").write_text(text)
    text = PARAMS.replace("[net]", "[a, a-b]").replace("[mild, coded]", "[b-c, c]")
    text = text.replace("mild:", "b-c:").replace("coded:", "c:")
    (repository / "params.yaml").write_text(text)
    git(repository, "add", ".")
    git(repository, "commit", "-qm", "Names that meet")
    with pytest.raises(RepositoryError, match=r"a × b-c and a-b × c are both 'compress@a-b-c'"):
        nightly(repository, plugins)


@pytest.mark.slow
def test_edits_while_it_computes_are_never_committed_with_what_came_of_them(
    repository: Path, plugins: Plugins, monkeypatch: pytest.MonkeyPatch
) -> None:
    head, dvc = git(repository, "rev-parse", "HEAD"), Repository.dvc
    source = repository / "sources/network.py"
    before = source.read_text()

    def edit_after_repro(self: Repository, *arguments: str) -> str:
        said = dvc(self, *arguments)
        if arguments[0] == "repro":
            source.write_text(before + "# mine\n")
        return said

    def edit_meanwhile(self: Repository, *arguments: str) -> str:
        if arguments[0] == "repro":
            source.write_text(before + "# mine, for a while\n")
        said = dvc(self, *arguments)
        source.write_text(before)
        return said

    for edit, said in (
        (edit_after_repro, "sources/network.py changed"),
        (edit_meanwhile, "changed"),
    ):
        monkeypatch.setattr(Repository, "dvc", edit)
        summary = nightly(repository, plugins)
        source.write_text(before)
        assert any(f"nothing was committed: {said}" in each for each in summary.problems) or any(
            "depends on changed while it was computed" in each for each in summary.problems
        )
        assert git(repository, "rev-parse", "HEAD") == head
        assert not [item for item in summary.published if item.state == "published"]
    monkeypatch.setattr(Repository, "dvc", dvc)
    assert nightly(repository, plugins, publish=False).complete
    assert git(repository, "status", "--porcelain") == ""


@pytest.mark.slow
def test_a_renamed_card_leaves_nothing_behind(
    repository: Path, alice: HubFixture, plugins: Plugins, tmp_path: Path
) -> None:
    assert nightly(repository, plugins).complete
    mine = repository / "models/net/mild/notes.txt"
    mine.write_text("mine")
    card = repository / "cards/net.yaml"
    (repository / "cards/other.yaml").write_text(
        card.read_text().replace("name: net", "name: other")
    )
    card.unlink()
    params = (repository / "params.yaml").read_text().replace("[net]", "[other]")
    (repository / "params.yaml").write_text(params.replace("{card}-{recipe}", "net-{recipe}"))
    git(repository, "add", "cards", "params.yaml", "models/net/mild/notes.txt")
    git(repository, "commit", "-qm", "Another name")
    summary = nightly(repository, plugins, publish=False)
    assert summary.complete, summary.problems
    assert "net" not in (repository / "dvc.lock").read_text().replace("network", "")
    assert [path.name for path in sorted((repository / "models/net").rglob("*.*"))] == ["notes.txt"]
    assert {row["cell"] for row in json.loads((repository / "plots/stages.json").read_bytes())} == {
        "other × coded",
        "other × mild",
    }
    clone = tmp_path / "clone"
    git(tmp_path, "clone", "-q", str(repository), str(clone))
    subprocess.run([sys.executable, "-m", "dvc", "pull", "-q"], cwd=clone, check=True)
    status = subprocess.run(
        [sys.executable, "-m", "dvc", "status"], cwd=clone, capture_output=True, text=True
    )
    assert status.stdout.strip() == "Data and pipelines are up to date."


@pytest.mark.slow
def test_after_a_failure_git_add_takes_no_model_and_charts_are_drawn_anew(
    repository: Path, alice: HubFixture, plugins: Plugins
) -> None:
    assert nightly(repository, plugins).complete
    drawn = (repository / "plots/stages.json").read_bytes()
    params = PARAMS.replace("bits: 8}]\n  coded", "bits: 4}]\n  coded").replace(
        "{technique: entropy_coding}]",
        "{technique: entropy_coding}]\n    targets: {min_compression_ratio: 99}",
    )
    (repository / "params.yaml").write_text(params)
    git(repository, "commit", "-qam", "A target out of reach")
    # As an engineer does it, with DVC alone; the cell that fails stays out of git.
    subprocess.run([sys.executable, "-m", "dvc", "repro", "--keep-going"], cwd=repository)
    git(repository, "add", ".")
    staged = git(repository, "diff", "--cached", "--name-only")
    assert "artifact" not in staged
    git(repository, "reset", "-q")
    summary = nightly(repository, plugins, publish=False)
    assert list(summary.failed) == ["net × coded"]
    assert (repository / "plots/stages.json").read_bytes() != drawn
    assert git(repository, "status", "--porcelain") == ""
    assert "artifact/" not in git(repository, "ls-tree", "-r", "--name-only", "HEAD")


@pytest.mark.slow
def test_a_model_that_the_hub_does_not_answer_for_keeps_its_revision(
    repository: Path, alice: HubFixture, plugins: Plugins
) -> None:
    nightly(repository, plugins, publish=False)
    before = (repository / "cards/net.yaml").read_text()
    (other := repository / "cards/other.yaml").write_text(
        before.replace("name: net", "name: other").replace("zoo/net@", "zoo/gone@")
    )
    params = (repository / "params.yaml").read_text().replace("[net]", "[other, net]")
    (repository / "params.yaml").write_text(params)
    git(repository, "add", ".")
    git(repository, "commit", "-qm", "A model that is gone")
    moved = alice.commit(SOURCE, {"model.safetensors": weights(2)})
    summary = nightly(repository, plugins, publish=False)
    assert "zoo/gone" in summary.problems[0]
    assert "zoo/gone@" in other.read_text()
    assert moved in (repository / "cards/net.yaml").read_text()
    assert set(summary.failed) == {"other × mild", "other × coded"}
    assert summary.commit == git(repository, "rev-parse", "HEAD")


@pytest.mark.slow
def test_a_cell_that_fails_keeps_its_last_result_and_stops_no_other(
    repository: Path, alice: HubFixture, plugins: Plugins
) -> None:
    assert nightly(repository, plugins).complete
    before = (repository / "models/net/coded/report.json").read_bytes()
    params = PARAMS.replace(
        "{technique: entropy_coding}]",
        "{technique: entropy_coding}]\n    targets: {min_compression_ratio: 99}",
    )
    (repository / "params.yaml").write_text(params)
    git(repository, "commit", "-qam", "A target out of reach")
    alice.commit(SOURCE, {"model.safetensors": weights(2)})
    published = len(alice.commits("zoo/net-coded"))
    summary = nightly(repository, plugins)
    assert list(summary.failed) == ["net × coded"]
    assert "size_reached" in summary.failed["net × coded"]
    assert (repository / "models/net/coded/report.json").read_bytes() == before
    assert (repository / "models/net/coded/artifact/zoopress.json").is_file()
    assert [item.repo_id for item in summary.published] == ["zoo/net-mild"]
    assert len(alice.commits("zoo/net-coded")) == published
    assert git(repository, "status", "--porcelain") == ""


@pytest.mark.slow
def test_two_refreshes_of_one_repository_do_not_overlap(repository: Path, plugins: Plugins) -> None:
    def second(*arguments: Any) -> dict[str, Any]:
        with pytest.raises(RepositoryError, match="Another refresh is at work"):
            nightly(repository, plugins)
        return {"cells": []}

    refresh(repository, NightlyOptions(publish=False), plugins, second, Reporter())


@pytest.mark.slow
def test_commits_are_pushed_to_the_upstream_if_that_is_wanted(
    repository: Path, plugins: Plugins, tmp_path: Path
) -> None:
    missing = nightly(repository, plugins, push_git=True, publish=False)
    assert "has no upstream" in missing.problems[0]
    git(tmp_path, "init", "-q", "--bare", "upstream.git")
    git(repository, "remote", "add", "origin", str(tmp_path / "upstream.git"))
    git(repository, "push", "-q", "-u", "origin", "HEAD")
    summary = nightly(repository, plugins, push_git=True)
    branch = git(repository, "branch", "--show-current")
    assert summary.pushed == ["dvc storage", f"git origin/{branch}"]
    assert git(repository, "rev-parse", "HEAD") == git(
        tmp_path / "upstream.git", "rev-parse", branch
    )


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda folder: None, "has no params.yaml and no dvc.yaml"),
        (lambda folder: [(folder / n).touch() for n in ("params.yaml", "dvc.yaml")], "not under"),
    ],
)
def test_a_folder_that_is_no_repository_of_models_is_refused(
    tmp_path: Path, make: Any, message: str
) -> None:
    make(tmp_path)
    with pytest.raises(RepositoryError, match=message):
        Repository.open(tmp_path)


def begin(folder: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "zoopress", "nightly", "--workers", "1"],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def lines_until(process: subprocess.Popen[str], step: str) -> Iterator[str]:
    assert process.stderr is not None
    for line in process.stderr:
        yield line
        if f"  {step}: " in line:
            return
    raise AssertionError(f"it ended before the step {step!r}")


def kill_at(folder: Path, step: str) -> None:
    """Refresh in a process of its own, and kill it and all its children as a step begins."""
    with begin(folder) as process:
        list(lines_until(process, step))
        os.killpg(process.pid, signal.SIGKILL)


@pytest.fixture
def uninterrupted(repository: Path, alice: HubFixture, tmp_path: Path) -> dict[str, Any]:
    """The state after a refresh that nothing disturbed, of a copy, with a Hub as it was before."""
    keep = tmp_path / "untouched"
    shutil.copytree(repository, keep, symlinks=True)
    with begin(repository) as process:
        out, err = process.communicate(timeout=300)
    assert process.returncode == 0, out + err
    state = final_state(repository, alice)
    shutil.rmtree(repository)
    shutil.rmtree(tmp_path / "remote")
    for name in ("zoo/net-mild", "zoo/net-coded"):
        del alice.repos[name]
    keep.rename(repository)
    return state


@pytest.mark.slow
def test_killed_at_the_beginning_of_every_step_in_turn_it_ends_as_if_it_had_not_been(
    repository: Path, alice: HubFixture, uninterrupted: dict[str, Any]
) -> None:
    for step in STEPS:
        kill_at(repository, step)
    with begin(repository) as process:
        _, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    assert final_state(repository, alice) == uninterrupted


@pytest.mark.slow
def test_the_prefect_server_killed_in_the_middle_costs_nothing_that_is_done(
    repository: Path, alice: HubFixture, tmp_path: Path, store: Path
) -> None:
    code = "from zoopress_flows.nightly import nightly_flow; nightly_flow(workers=1)"
    (tmp_path / "prefect").mkdir()
    with prefect_server(tmp_path / "prefect") as server:
        given = server.environment(environment(alice, store))
        given["PREFECT_CLIENT_MAX_RETRIES"] = "1"
        with subprocess.Popen(
            [sys.executable, "-c", code],
            cwd=repository,
            env=given,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as process:
            list(lines_until(process, "zoo"))
            server.kill()
            _, rest = process.communicate(timeout=500)
    assert "going on without Prefect" in rest
    assert git(repository, "status", "--porcelain") == ""
    assert len(git(repository, "log", "--format=%s", "--grep", "Nightly").splitlines()) == 2
    assert "zoopress.json" in alice.files("zoo/net-coded")
