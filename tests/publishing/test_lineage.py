"""Where a model comes from: told from a run, an artifact, or the Hub alone; never guessed."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from hub_server import UploadRules
from hub_server.fixtures import HubFixture
from model_repository import TOKEN, git
from small_zoo import write_zoo
from zoopress.cards import load_card
from zoopress.commands.cli import app
from zoopress.errors import ArtifactError, InputError
from zoopress.hub.client import Hub
from zoopress.pipeline.compress import compress
from zoopress.plugins import Plugins
from zoopress.provenance import lock_names, versioned_state
from zoopress.publishing.lineage import find_lineage, lineage_lines, stage_config
from zoopress.publishing.publish import Published, PushOptions, push
from zoopress.publishing.published import read_published
from zoopress.publishing.release import open_release
from zoopress.recipes import load_recipe
from zoopress.store import Store

REPO = "zoo/small"
RUN = Path("models") / "perceptron" / "mild"
PIPELINE = """
stages:
  compress:
    cmd: "true"
    outs:
      - models/perceptron/mild/artifact: {persist: true}
      - models/perceptron/mild/report.json: {cache: false, persist: true}
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, plugins: Plugins) -> Path:
    """A repository with one run in it, of which nothing is committed but the pipeline."""
    folder = tmp_path_factory.mktemp("repository")
    write_zoo(folder)
    with (folder / "card.yaml").open("a") as stream:
        stream.write("license: mit\n")
    (folder / "mild.yaml").write_text(
        "stages: [{technique: weight_quantization, bits: 8}, {technique: entropy_coding}]\n"
    )
    (folder / "dvc.yaml").write_text(PIPELINE)
    git(folder, "init", "-q")
    dvc(folder, "init", "-q")
    git(folder, "add", "dvc.yaml", "card.yaml", "mild.yaml", ".dvc")
    git(folder, "commit", "-qm", "Start")
    git(folder, "remote", "add", "origin", "https://me:secret@example.org/zoo.git")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        card = load_card("card.yaml", plugins)
        recipe = load_recipe("mild.yaml", plugins)
        compress(card, recipe, folder / RUN, Store(str(folder / "store")), plugins)
    return folder


@pytest.fixture
def repository(
    made: Path, tmp_path: Path, hub: HubFixture, monkeypatch: pytest.MonkeyPatch
) -> Path:
    hub.add_user("alice", token=TOKEN, orgs=["zoo"])
    hub.rules = UploadRules(threshold=1000)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    shutil.copytree(made, tmp_path / "repository", symlinks=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "repository"


def dvc(folder: Path, *arguments: str) -> None:
    command = [sys.executable, "-m", "dvc", *arguments]
    subprocess.run(command, cwd=folder, check=True, capture_output=True)


def version(folder: Path) -> str:
    """Commit the run and its lock, as DVC's users do; return the commit."""
    dvc(folder, "commit", "-q", "--force")
    git(folder, "add", "dvc.lock", "models")
    git(folder, "commit", "-qm", "Results")
    return git(folder, "rev-parse", "HEAD")


def publish(folder: Path, plugins: Plugins, **options: Any) -> Published:
    return push(Hub(), open_release(folder / RUN, plugins), REPO, PushOptions(**options))


def test_a_run_an_artifact_and_the_hub_tell_the_same_story(
    repository: Path, hub: HubFixture, plugins: Plugins, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = version(repository)
    done = publish(repository, plugins, tag="v1")
    here = find_lineage(str(repository / RUN))
    remote = find_lineage(REPO)
    assert here.git is not None
    assert (here.git.commit, here.git.locked) == (commit, True)
    assert here.git.repository == "https://example.org/zoo.git"
    assert here.hub == [
        {"repo_id": REPO, "url": done.url, "commit": hub.head(REPO), "tag": "v1"},
    ]
    assert [stage["technique"] for stage in here.stages] == [
        "weight_quantization",
        "entropy_coding",
    ]
    assert here.stages[0]["config"]["bits"] == 8
    assert here.stages[0]["version"]
    assert here.stages[1]["figures"]["weight_bytes"] < here.stages[0]["figures"]["weight_bytes"]
    for name in ("artifact_sha256", "source", "recipe", "stages", "metrics"):
        assert getattr(remote, name) == getattr(here, name), name
    assert remote.git is not None
    assert (remote.git.commit, remote.git.repository, remote.git.locked) == (
        *(commit, here.git.repository, None),  # the repository is not at hand
    )
    assert remote.hub is not None
    assert remote.hub[0]["commit"] == done.commit
    monkeypatch.chdir(repository)
    at_hand = find_lineage(f"{REPO}@v1").git
    assert at_hand is not None
    assert at_hand.locked is True
    # Only what is small was asked for.
    assert not [r for r in hub.requests if r.method == "GET" and r.path.endswith(".zpz")]


def test_an_artifact_alone_says_what_it_does_not_know(repository: Path, tmp_path: Path) -> None:
    shutil.copytree(repository / RUN / "artifact", tmp_path / "alone")
    found = find_lineage(str(tmp_path / "alone"))
    assert (found.metrics, found.git, found.hub, found.recipe) == (None, None, None, None)
    assert [stage["figures"] for stage in found.stages] == [None, None]
    text = "\n".join(lineage_lines(found))
    assert "metrics   unknown" in text
    assert "git       unknown" in text
    beside = find_lineage(str(repository / RUN / "artifact"))
    assert beside.metrics == find_lineage(str(repository / RUN)).metrics


def test_a_run_that_is_not_versioned_names_where_it_ran(repository: Path, plugins: Plugins) -> None:
    first = git(repository, "rev-parse", "HEAD")
    found = find_lineage(str(repository / RUN)).git
    assert found is not None
    assert (found.commit, found.locked) == (first, False)
    done = publish(repository, plugins)
    # The page keeps the commit that it named first: that one reproduces the model as well.
    version(repository)
    git(repository, "commit", "-qm", "Something else", "--allow-empty")
    assert publish(repository, plugins) == Published(
        REPO, done.url, done.commit, None, changed=False
    )


def test_the_commit_of_a_page_does_not_move_with_the_branch(
    repository: Path, hub: HubFixture, plugins: Plugins
) -> None:
    commit = version(repository)
    first = publish(repository, plugins)
    git(repository, "commit", "-qm", "Something else", "--allow-empty")
    assert not publish(repository, plugins).changed
    (repository / RUN / "published.json").unlink()
    again = publish(repository, plugins)
    assert (again.commit, again.changed) == (first.commit, False)
    [record] = read_published(repository / RUN)
    assert (record.git_commit, record.commit) == (commit, hub.head(REPO))


def test_a_record_is_written_once_a_version_and_kept_newest_last(
    repository: Path, plugins: Plugins
) -> None:
    publish(repository, plugins)
    publish(repository, plugins)
    publish(repository, plugins, tag="v1")
    records = json.loads((repository / RUN / "published.json").read_text())
    assert [record["tag"] for record in records] == [None, "v1"]
    assert set(records[0]) == {
        *("repo_id", "url", "commit", "tag", "artifact_sha256", "git_commit"),
        *("git_repository", "source_revision"),
    }
    (repository / RUN / "published.json").write_text("[{}]")
    with pytest.raises(ArtifactError, match=r"published\.json: is no list"):
        publish(repository, plugins)


def test_a_lock_names_an_artifact_only_where_report_and_lock_agree(
    repository: Path, tmp_path: Path
) -> None:
    sha256 = json.loads((repository / RUN / "report.json").read_text())["artifact_sha256"]
    before = git(repository, "rev-parse", "HEAD")
    commit = version(repository)
    assert lock_names(repository, commit, sha256) is True
    assert lock_names(repository, before, sha256) is False
    assert lock_names(repository, "0" * 40, sha256) is None
    assert lock_names(repository, f"--output={tmp_path / 'written'}", sha256) is None
    assert lock_names(tmp_path, commit, sha256) is None
    assert versioned_state(repository / RUN, sha256)["commit"] == commit
    # A report that was changed after DVC locked it is not what the lock is about.
    report = repository / RUN / "report.json"
    report.write_text(report.read_text() + "\n")
    assert versioned_state(repository / RUN, sha256) == {}
    git(repository, "commit", "-qam", "Edited")
    assert lock_names(repository, git(repository, "rev-parse", "HEAD"), sha256) is False
    assert versioned_state(repository / RUN, sha256) == {}


def test_a_page_that_somebody_edited_is_not_believed(
    repository: Path, hub: HubFixture, plugins: Plugins
) -> None:
    publish(repository, plugins)
    page = hub.files(REPO)["README.md"].decode()
    sha256 = find_lineage(REPO).artifact_sha256
    hub.commit(REPO, {"README.md": page.replace(sha256, "0" * 64)})
    assert find_lineage(REPO).metrics is None
    edited = page.replace("recipe: mild", 'recipe: "\\e[31mred"')
    hub.commit(REPO, {"README.md": edited})
    assert "\x1b" not in "\n".join(lineage_lines(find_lineage(REPO)))
    hub.commit(REPO, {}, delete=["README.md"])
    assert find_lineage(REPO).git is None


@pytest.mark.parametrize(
    ("place", "error", "message"),
    [
        ("empty", InputError, "is neither a folder that `zoopress run` wrote"),
        ("./nowhere", InputError, "there is no such folder"),
        ("zoo/other", ArtifactError, "is not a model that zoopress compressed"),
    ],
)
def test_what_has_no_lineage_is_refused(
    hub: HubFixture,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    place: str,
    error: type[Exception],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    hub.create_repo("zoo/other", {"config.json": b"{}"})
    with pytest.raises(error, match=message):
        find_lineage(place)


def test_the_command_prints_it_for_people_and_for_machines(repository: Path) -> None:
    version(repository)
    printed = CliRunner().invoke(app, ["lineage", str(repository / RUN)]).output
    assert "stage 1   weight_quantization (zoopress " in printed
    assert "dvc.lock at that commit names this artifact" in printed
    assert "not published from here" in printed
    data = json.loads(CliRunner().invoke(app, ["lineage", str(repository / RUN), "--json"]).output)
    assert data["git"]["locked"] is True
    assert data["metrics"]["cosine"] > 0.9


def test_a_stages_config_has_its_defaults_where_that_version_is_installed(
    plugins: Plugins,
) -> None:
    origin = plugins.technique_origin("weight_quantization")
    ran: dict[str, Any] = {
        "technique": "weight_quantization",
        "group_size": 32,
        "recovery": {"technique": "distillation", "steps": 3, "recovery": {"technique": "x"}},
        "distribution": origin.distribution,
        "version": origin.version,
        "seed": 0,
        "touched": 2,
        "claims": [],
    }
    config = stage_config(ran, plugins)
    assert (config["bits"], config["group_size"]) == (8, 32)
    assert (config["recovery"]["steps"], config["recovery"]["optimizer"]) == (3, "adamw")
    old = {**ran, "version": "0.0.1"}
    assert stage_config(old, plugins) == {
        "group_size": 32,
        "recovery": {"technique": "distillation", "steps": 3},
    }
    assert stage_config({**ran, "bits": "evil", "recovery": 3}, plugins)["bits"] == "evil"
    assert stage_config({**ran, "technique": ["x"]}, plugins)["group_size"] == 32
