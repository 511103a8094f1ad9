"""Publishing many runs: each that passed, none of the others, and none stops another."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from hub_server import UploadRules
from hub_server.fixtures import HubFixture
from model_repository import TOKEN
from prefect_server import PrefectServer
from small_zoo import write_zoo
from zoopress.cards import load_card
from zoopress.errors import InputError
from zoopress.orchestration.publishing import publish_runs, read_publish_section
from zoopress.pipeline.compress import compress
from zoopress.plugins import Plugins
from zoopress.publishing.publish import PushOptions
from zoopress.recipes import load_recipe
from zoopress.store import Store
from zoopress_flows.repositories import repository_name


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, plugins: Plugins) -> Path:
    """models/perceptron/{mild,hard} of a card with a licence."""
    folder = tmp_path_factory.mktemp("runs")
    write_zoo(folder)
    with (folder / "card.yaml").open("a") as stream:
        stream.write("license: mit\n")
    card = load_card(str(folder / "card.yaml"), plugins)
    for name, bits in (("mild", 8), ("hard", 4)):
        recipe = folder / f"{name}.yaml"
        recipe.write_text(f"stages: [{{technique: weight_quantization, bits: {bits}}}]\n")
        compress(
            card,
            load_recipe(str(recipe), plugins),
            folder / "models" / "perceptron" / name,
            Store(str(folder / "store")),
            plugins,
        )
    return folder


@pytest.fixture
def runs(made: Path, tmp_path: Path, hub: HubFixture, monkeypatch: pytest.MonkeyPatch) -> Path:
    hub.add_user("alice", token=TOKEN, orgs=["zoo"])
    hub.rules = UploadRules(threshold=1000)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    shutil.copytree(made, tmp_path / "zoo")
    return tmp_path / "zoo"


def miss_a_gate(run: Path) -> None:
    report = json.loads((run / "report.json").read_text())
    report["stages"][0]["finite"] = False
    (run / "report.json").write_text(json.dumps(report))


def test_what_passed_is_published_and_what_did_not_is_told(
    runs: Path, hub: HubFixture, plugins: Plugins
) -> None:
    folders = [runs / "models" / "perceptron" / name for name in ("mild", "hard")]
    miss_a_gate(folders[0])
    given = ([*folders, runs / "nothing"], "zoo/{card}-{recipe}", PushOptions(), plugins)
    bad, good, missing = publish_runs(*given)
    assert (bad.state, good.state, missing.state) == ("failed", "published", "failed")
    assert "outputs_finite" in str(bad.reason)
    assert good.commit == hub.head("zoo/perceptron-hard")
    assert "zoo/perceptron-mild" not in hub.repos
    assert [item.state for item in publish_runs(*given)] == ["failed", "unchanged", "failed"]


def test_what_is_unlike_its_original_is_published_only_where_that_is_asked_for(
    runs: Path, hub: HubFixture, plugins: Plugins
) -> None:
    run = runs / "models" / "perceptron" / "mild"
    report = json.loads((run / "report.json").read_text())
    report["stages"][0]["fidelity"]["cosine"] = 0.1
    (run / "report.json").write_text(json.dumps(report))
    given = ([run], "zoo/{card}-{recipe}")
    [refused] = publish_runs(*given, PushOptions(), plugins)
    assert refused.state == "failed"
    assert "UNLIKE THE ORIGINAL" in str(refused.reason)
    [allowed] = publish_runs(*given, PushOptions(allow_low_quality=True), plugins)
    assert allowed.state == "published"


@pytest.mark.parametrize(
    ("repo", "message"),
    [
        ("zoo/{card}", "both be published to zoo/perceptron"),
        ("zoo/{model}", r"\{model\} is no field"),
        ("zoo/{card", "is no pattern"),
        ("zoo/{card.__class__}", "is no field"),
    ],
)
def test_a_pattern_that_cannot_work_is_refused_before_anything_is_sent(
    runs: Path, hub: HubFixture, plugins: Plugins, repo: str, message: str
) -> None:
    folders = [runs / "models" / "perceptron" / name for name in ("mild", "hard")]
    with pytest.raises(InputError, match=message):
        publish_runs(folders, repo, PushOptions(), plugins)
    assert hub.requests == []


def test_the_section_of_params_is_checked_where_it_stands(tmp_path: Path) -> None:
    params = tmp_path / "params.yaml"
    params.write_text("matrix: {}\n")
    assert read_publish_section(params) is None
    params.write_text("publish:\n  repo: zoo/{card}-{recipe}\n  private: true\n")
    section = read_publish_section(params)
    assert section is not None
    assert (section.repo, section.private) == ("zoo/{card}-{recipe}", True)
    assert not section.allow_low_quality
    params.write_text("publish:\n  repo: zoo/{card}-{recipe}\n  allow_low_quality: true\n")
    section = read_publish_section(params)
    assert section is not None
    assert section.allow_low_quality
    params.write_text("publish:\n  repo: zoo/{name}\n")
    with pytest.raises(InputError, match=r"params\.yaml:2.*\{name\} is no field"):
        read_publish_section(params)
    params.write_text("publish:\n  repo: zoo/{card}-{recipe}\n  privat: true\n")
    with pytest.raises(InputError, match="Did you mean 'private'"):
        read_publish_section(params)


def test_the_flow_publishes_a_matrix_and_fails_if_one_was_refused(
    runs: Path, hub: HubFixture, server: PrefectServer
) -> None:
    (runs / "cards").mkdir()
    for name in ("networks.py", "weights.safetensors"):
        shutil.copyfile(runs / name, runs / "cards" / name)
    (runs / "card.yaml").rename(runs / "cards" / "perceptron.yaml")
    stages = "{stages: [{technique: weight_quantization}]}"
    (runs / "params.yaml").write_text(
        f"matrix: {{cards: [perceptron], recipes: [mild, hard]}}\n"
        f"recipes: {{mild: {stages}, hard: {stages}}}\n"
    )
    miss_a_gate(runs / "models" / "perceptron" / "mild")
    code = (
        "from zoopress_flows.publish import publish_flow\n"
        "state = publish_flow('zoo/{card}-{recipe}', matrix='params.yaml', return_state=True)\n"
        "print(state.name)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=runs,
        env=server.environment(hub.environment(TOKEN)),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.stdout.strip() == "Failed", done.stderr
    [run] = server.runs("publish")
    assert "1 of 2 are on the Hub" in run["state"]["message"]
    [artifact] = server.ask(
        "artifacts/filter", artifacts={"key": {"any_": [f"published-{repository_name(runs)}"]}}
    )
    rows = json.loads(artifact["data"])
    page = f"[zoo/perceptron-hard]({hub.endpoint}/zoo/perceptron-hard)"
    assert [(row["state"], row["repository"]) for row in rows] == [
        ("failed", None),
        ("published", page),
    ]
