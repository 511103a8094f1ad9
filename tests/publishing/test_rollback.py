"""What replaces a published model: nothing worse unasked, and an earlier version by one commit."""

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from hub_server import UploadRules
from hub_server.fixtures import HubFixture
from small_zoo import write_zoo
from zoopress.cards import load_card
from zoopress.commands.cli import app
from zoopress.errors import GateError, HubError
from zoopress.hub import client
from zoopress.hub.client import Hub
from zoopress.pipeline.compress import compress
from zoopress.plugins import Plugins
from zoopress.publishing.against_published import worse
from zoopress.publishing.publish import Published, PushOptions, push
from zoopress.publishing.release import open_release
from zoopress.publishing.rollback import roll_back
from zoopress.recipes import load_recipe
from zoopress.store import Store

TOKEN, REPO = "hf_alicealicealice", "zoo/small"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, plugins: Plugins) -> Path:
    """Runs of 8, 7 and 3 bits, all of which meet their target."""
    folder = tmp_path_factory.mktemp("run")
    write_zoo(folder)
    with (folder / "card.yaml").open("a") as stream:
        stream.write("license: mit\n")
    card = load_card(str(folder / "card.yaml"), plugins)
    for bits in (8, 7, 3):
        recipe = folder / f"bits{bits}.yaml"
        stage = f"{{technique: weight_quantization, bits: {bits}}}"
        recipe.write_text(f"targets: {{min_cosine: 0.9}}\nstages: [{stage}]\n")
        compress(
            card,
            load_recipe(str(recipe), plugins),
            folder / str(bits),
            Store(folder / "store"),
            plugins,
        )
    return folder


@pytest.fixture(autouse=True)
def alice(hub: HubFixture, monkeypatch: pytest.MonkeyPatch, brief_evaluation: None) -> HubFixture:
    hub.add_user("alice", token=TOKEN, orgs=["zoo"])
    hub.rules = UploadRules(threshold=1000)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr(client, "WAITS_S", (0.0, 0.0))
    return hub


def publish(made: Path, bits: int, plugins: Plugins, **options: Any) -> Published:
    return push(Hub(), open_release(made / str(bits), plugins), REPO, PushOptions(**options))


def test_a_worse_model_does_not_replace_a_better_one_unasked(
    made: Path, plugins: Plugins, hub: HubFixture
) -> None:
    first = publish(made, 8, plugins)
    with pytest.raises(GateError, match=r"(?s)cosine is 0\.9.* less than .*--allow-worse"):
        publish(made, 3, plugins)
    assert hub.commits(REPO)[0].id == first.commit
    assert publish(made, 7, plugins).changed  # within what measuring varies by
    assert publish(made, 3, plugins, allow_worse=True).changed
    assert publish(made, 8, plugins).changed  # a better one needs no word
    assert publish(made, 3, plugins, branch="small").changed  # and so another place


def test_the_tasks_metric_decides_where_there_is_one(made: Path, plugins: Plugins) -> None:
    report = open_release(made / "3", plugins).report
    assert worse(report, report.metrics(), 0.0) == ""
    assert "cosine" in worse(report, {**report.metrics(), "cosine": 1.0}, 0.005)
    assert worse(report, {**report.metrics(), "cosine": 1.0}, 0.5) == ""
    assert worse(report, {}, 0.005) == ""  # a page without figures


def test_a_rollback_is_one_commit_with_exactly_the_files_of_before(
    made: Path, plugins: Plugins, hub: HubFixture
) -> None:
    first = publish(made, 8, plugins, tag="v1")
    before = hub.files(REPO)
    second = publish(made, 3, plugins, allow_worse=True)
    count = len(hub.commits(REPO))
    planned = roll_back(Hub(), REPO, dry_run=True)
    assert planned.changed
    assert hub.commits(REPO)[0].id == second.commit
    done = roll_back(Hub(), REPO)
    assert (done.was, done.to) == (second.commit, first.commit)
    assert hub.files(REPO) == before
    assert len(hub.commits(REPO)) == count + 1
    # What was taken back does not come back by itself, not even where worse is meant.
    with pytest.raises(GateError, match="was rolled back from this very model"):
        publish(made, 3, plugins)
    assert roll_back(Hub(), REPO, to="v1").changed == ()


def test_only_a_version_with_a_model_is_brought_back(
    made: Path, plugins: Plugins, hub: HubFixture
) -> None:
    publish(made, 8, plugins)
    publish(made, 3, plugins, allow_worse=True)
    held = hub.files(REPO)
    with pytest.raises(HubError, match=r"no zoopress\.json"):
        roll_back(Hub(), REPO, to=hub.commits(REPO)[-1].id)
    assert hub.files(REPO) == held


def test_there_must_be_something_to_roll_back_to(
    made: Path, plugins: Plugins, hub: HubFixture
) -> None:
    publish(made, 8, plugins)
    with pytest.raises(HubError, match="nothing to roll back to"):
        roll_back(Hub(), REPO)
    with pytest.raises(HubError, match="no-such"):
        roll_back(Hub(), REPO, to="no-such-tag")


def test_the_command_says_what_it_did(made: Path, plugins: Plugins) -> None:
    publish(made, 8, plugins)
    publish(made, 3, plugins, allow_worse=True)
    done = CliRunner().invoke(app, ["rollback", REPO, "--json"])
    assert done.exit_code == 0, done.output
    assert "zoopress.json" in json.loads(done.stdout)["changed"]
