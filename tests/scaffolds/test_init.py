"""`zoopress init`: a repository in which DVC works at once, and nothing of the user's is lost."""

from __future__ import annotations

import os
import re
import runpy
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from typer.testing import CliRunner

from hub_models import BERT, TOKENIZER, model
from hub_server.fixtures import HubFixture
from repository_tools import IDENTITY, attempt, command
from zoopress.cards import load_card
from zoopress.commands.cli import app
from zoopress.errors import InputError, ZoopressError
from zoopress.plugins import Plugins
from zoopress.recipes import load_recipe
from zoopress.scaffolds import zoo as zoo_scaffold
from zoopress.scaffolds.zoo import Initialized, init_zoo
from zoopress.scaffolds.zoo_files import TEMPLATES, first_card, requirements

pytest.importorskip("dvc")


@pytest.fixture(autouse=True)
def identity(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Work outside of any repository, under a name for git and nothing of the user's settings."""
    for name, value in IDENTITY.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", os.devnull)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))


@pytest.fixture
def written_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Do not train the example, which takes long; its weights are nothing that these tests read."""

    def pretend(done: Initialized) -> None:
        done.files["sources/example.safetensors"] = "written"
        (done.folder / "sources" / "example.safetensors").write_bytes(b"")

    monkeypatch.setattr(zoo_scaffold, "_train_example", pretend)


def files_of(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.relative_to(folder).parts[0] != ".git"
    }


@pytest.mark.usefixtures("written_at_once")
def test_what_is_there_is_left_as_it_is(tmp_path: Path, plugins: Plugins) -> None:
    zoo = tmp_path / "zoo"
    zoo.mkdir()
    mine = {"README.md": b"mine", "dvc.yaml": b"stages: {}\n", ".gitignore": b"secret\n"}
    for name, content in mine.items():
        (zoo / name).write_bytes(content)
    done = init_zoo(zoo, plugins, card="example")
    for name, content in mine.items():
        assert (zoo / name).read_bytes() == content
        assert done.files[name] == "there"
    assert any("dvc.yaml was there" in text for text in done.notes)
    committed = command(zoo, "git", "ls-files").split()
    assert "README.md" not in committed
    assert "params.yaml" in committed


@pytest.mark.usefixtures("written_at_once")
def test_an_interrupted_init_is_completed_by_the_next(
    tmp_path: Path, plugins: Plugins, monkeypatch: pytest.MonkeyPatch
) -> None:
    zoo, whole = tmp_path / "zoo", tmp_path / "whole" / "zoo"
    with monkeypatch.context() as patch:

        def die(folder: Path) -> None:
            raise KeyboardInterrupt

        patch.setattr(zoo_scaffold, "_set_up_dvc", die)
        with pytest.raises(KeyboardInterrupt):
            init_zoo(zoo, plugins, card="example")
    init_zoo(zoo, plugins, card="example")
    init_zoo(whole, plugins, card="example")
    assert {n: c for n, c in files_of(zoo).items() if ".dvc/tmp" not in n} == {
        n: c for n, c in files_of(whole).items() if ".dvc/tmp" not in n
    }


def test_a_dry_run_tells_and_does_nothing(tmp_path: Path, plugins: Plugins) -> None:
    zoo = tmp_path / "zoo"
    done = init_zoo(zoo, plugins, card="example", remote="s3://bucket/zoo", dry_run=True)
    assert not zoo.exists()
    assert {"params.yaml", "dvc.yaml", "cards/example.yaml"} <= done.files.keys()
    result = CliRunner().invoke(app, ["init", str(zoo), "--dry-run", "--card", "example"])
    assert result.exit_code == 0
    assert "would be written" in result.output
    assert not zoo.exists()


@pytest.mark.usefixtures("written_at_once")
def test_without_a_name_for_git_all_is_staged_and_the_user_is_told(
    tmp_path: Path, plugins: Plugins, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in IDENTITY:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    done = init_zoo(tmp_path / "zoo", plugins, card="example")
    assert done.commit is None
    assert any("git config --global user.name" in text for text in done.notes)
    status = command(tmp_path / "zoo", "git", "status", "--porcelain")
    assert "A  params.yaml" in status
    assert all(line.startswith("A ") for line in status.splitlines())


@pytest.mark.usefixtures("written_at_once")
def test_no_commit_commits_nothing(tmp_path: Path, plugins: Plugins) -> None:
    done = init_zoo(tmp_path / "zoo", plugins, card="example", commit=False)
    assert done.commit is None
    assert attempt(tmp_path / "zoo", "git", "rev-parse", "HEAD").returncode != 0


def test_a_missing_tool_is_named_with_its_remedy(
    tmp_path: Path, plugins: Plugins, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(zoo_scaffold, "find_spec", lambda name: None)
        with pytest.raises(ZoopressError, match=r"pip install 'zoopress\[versions\]'"):
            init_zoo(tmp_path / "zoo", plugins)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ZoopressError, match=r"needs git.*git-scm"):
        init_zoo(tmp_path / "zoo", plugins)


def test_places_that_cannot_be_a_repository_are_refused(tmp_path: Path, plugins: Plugins) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="is a file"):
        init_zoo(tmp_path / "file", plugins)
    command(tmp_path, "git", "init", "--quiet", "other")
    with pytest.raises(InputError, match=rf"lies in the git repository {tmp_path}/other"):
        init_zoo(tmp_path / "other" / "zoo", plugins)


@pytest.mark.parametrize(
    ("card", "problem"),
    [("nowhere/at-all", "nowhere/at-all"), ("my.yaml", "put the card into cards/")],
)
def test_a_card_that_cannot_be_had_is_refused_before_anything_is_written(
    card: str, problem: str, tmp_path: Path, plugins: Plugins, hub: HubFixture
) -> None:
    with pytest.raises(InputError, match=problem):
        init_zoo(tmp_path / "zoo", plugins, card=card)
    assert not (tmp_path / "zoo").exists()


@pytest.mark.usefixtures("written_at_once")
def test_a_zoo_that_is_there_takes_further_cards_by_another_command(
    tmp_path: Path, plugins: Plugins
) -> None:
    init_zoo(tmp_path / "zoo", plugins, card="example")
    with pytest.raises(InputError, match="zoopress zoo add minilm"):
        init_zoo(tmp_path / "zoo", plugins, card="minilm")


def test_a_model_of_the_hub_makes_a_card_at_its_commit(
    tmp_path: Path, plugins: Plugins, hub: HubFixture
) -> None:
    hub.create_repo("acme/bert", model(BERT, TOKENIZER, license="mit"))
    init_zoo(tmp_path / "zoo", plugins, card="acme/bert")
    card = load_card(str(tmp_path / "zoo/cards/bert.yaml"), plugins)
    assert card.source == f"hub:acme/bert@{hub.head('acme/bert')}"
    params: Any = yaml.safe_load((tmp_path / "zoo/params.yaml").read_text())
    assert params["matrix"] == {"cards": ["bert"], "recipes": ["small"]}


def test_a_registered_card_is_copied_under_a_name_that_does_not_hide_it(
    tmp_path: Path, plugins: Plugins
) -> None:
    first = first_card("minilm", tmp_path, plugins)
    assert first.name not in plugins.cards
    [(path, text)] = first.files.items()
    (tmp_path / "cards").mkdir()
    (tmp_path / path).write_text(text)
    copy, shipped = load_card(str(tmp_path / path), plugins), load_card("minilm", plugins)
    assert {**copy.as_dict(), "name": "minilm"} == shipped.as_dict()
    assert copy.name == first.name == (tmp_path / path).stem


@pytest.mark.usefixtures("written_at_once")
def test_the_recipe_is_valid_and_so_is_the_publish_section_once_it_is_wanted(
    tmp_path: Path, plugins: Plugins
) -> None:
    init_zoo(tmp_path / "zoo", plugins, card="example")
    path = tmp_path / "zoo" / "params.yaml"
    assert load_recipe(f"{path}#recipes.small", plugins).targets.min_cosine == 0.98
    wanted = re.sub(r"^# (publish:|  )", r"\1", path.read_text(), flags=re.MULTILINE)
    assert yaml.safe_load(wanted)["publish"] == {"repo": "my-org/{card}-{recipe}", "private": True}


def test_requirements_name_versions_that_every_index_has() -> None:
    lines = requirements(frozenset({"minilm"}), "s3://bucket/zoo")
    assert [line.partition("==")[0] for line in lines] == [
        "zoopress[minilm,versions]",
        "torch",
        "transformers",
        "dvc[s3]",
    ]
    assert all(re.fullmatch(r"[^=]+==[0-9][0-9a-z.]*", line) for line in lines)
    assert requirements(frozenset(), "/a/folder")[-1].startswith("dvc==")
    assert requirements(frozenset(), None)[0].startswith("zoopress[versions]==")


def test_the_example_trains_to_the_same_weights_each_time() -> None:
    path = TEMPLATES / "example.py"
    first, second = (runpy.run_path(str(path))["train"]().state_dict() for _ in range(2))
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())
