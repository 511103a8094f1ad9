"""Which commit reproduces a run."""

import json
import subprocess
from pathlib import Path

import pytest

from small_zoo import read_zoo, write_zoo
from zoopress.pipeline.compress import compress
from zoopress.provenance import git_state
from zoopress.store import Store


def git(folder: Path, *arguments: str) -> str:
    identity = ("-c", "user.name=a", "-c", "user.email=a@example.org")
    done = subprocess.run(
        ["git", *identity, *arguments], cwd=folder, check=True, capture_output=True, text=True
    )
    return done.stdout.strip()


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    git(tmp_path, "init", "-q")
    (tmp_path / "a.txt").write_text("a")
    git(tmp_path, "add", "a.txt")
    git(tmp_path, "commit", "-qm", "a")
    return tmp_path


def test_the_commit_and_whether_files_changed_since(repository: Path) -> None:
    commit = git(repository, "rev-parse", "HEAD")
    assert git_state(repository) == {"commit": commit}
    (repository / "a.txt").write_text("b")
    assert git_state(repository) == {"commit": commit, "changed": "yes"}


@pytest.mark.parametrize(
    ("remote", "shown"),
    [
        ("https://me:secret@example.org:8443/a/b.git?x=1", "https://example.org:8443/a/b.git"),
        ("https://token@example.org/a/b", "https://example.org/a/b"),
        ("git@example.org:a/b.git", "git@example.org:a/b.git"),
    ],
)
def test_no_password_of_the_remote_is_told(repository: Path, remote: str, shown: str) -> None:
    git(repository, "remote", "add", "origin", remote)
    assert git_state(repository)["repository"] == shown


def test_outside_a_repository_nothing_is_told(tmp_path: Path) -> None:
    assert git_state(tmp_path) == {}


def test_a_commit_that_changes_nothing_of_a_run_leaves_its_report_as_it_was(
    repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(repository)
    write_zoo(repository, recipe="stages: [{technique: weight_quantization, bits: 8}]")
    card, recipe = read_zoo(repository)
    store = Store(repository / "store")
    compress(card, recipe, repository / "out", store)
    first = (repository / "out" / "report.json").read_bytes()
    assert json.loads(first)["made_with"]["commit"] == git(repository, "rev-parse", "HEAD")
    git(repository, "commit", "-qm", "b", "--allow-empty")
    compress(card, recipe, repository / "out", store)
    assert (repository / "out" / "report.json").read_bytes() == first
