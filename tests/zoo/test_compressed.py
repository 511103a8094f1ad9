"""Cards of compressed models, from disk and from the Hub: drafted, listed, checked, fetched."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from compressed_cards import MADE, card_of
from hub_server.fixtures import HubFixture
from zoopress.cards.check import CardCheck
from zoopress.cells.cell import open_cell, open_original
from zoopress.commands.cli import app
from zoopress.errors import PlanError, SourceError
from zoopress.hub.client import Hub
from zoopress.plugins import Plugins
from zoopress.publishing.publish import PushOptions, push
from zoopress.publishing.release import open_release
from zoopress.recipes import load_recipe
from zoopress.store import Store


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a run, an artifact alone, and the networks' factory."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(MADE / "run", tmp_path / "out" / "everything")
    shutil.copytree(MADE / "artifacts" / "bert-quantized", tmp_path / "bert-small")
    shutil.copy(MADE / "models.py", tmp_path)
    return tmp_path


@pytest.fixture
def acme(hub: HubFixture, monkeypatch: pytest.MonkeyPatch) -> HubFixture:
    hub.add_user("alice", token="hf_alice", orgs=["acme"])
    monkeypatch.setenv("HF_TOKEN", "hf_alice")
    return hub


def add(*arguments: str) -> dict[str, Any]:
    """Make one card by the command and return what it says."""
    done = CliRunner().invoke(app, ["zoo", "add", *arguments])
    assert done.exit_code == 0, done.output
    [path] = Path("cards").glob("*.yaml")
    card: dict[str, Any] = yaml.safe_load(path.read_text())
    return card


def states(name: str, plugins: Plugins, load: bool = True) -> dict[str, str]:
    check = CardCheck(name, plugins, load)
    return {finding.check: finding.state for finding in check.run()}


@pytest.mark.parametrize("place", ["out/everything", "path:out/everything/artifact", "out"])
def test_a_run_becomes_a_card_with_the_data_that_it_was_measured_on(
    place: str, here: Path, plugins: Plugins
) -> None:
    card = add(place)
    assert card["name"] == "lstm-everything"
    assert card["task"] == "fidelity"
    assert card["license"] == "mit"
    assert card["data"]["random"]["ids"]["shape"] == [9]
    assert "compressed from lstm by neuron_pruning, magnitude_pruning" in card["description"]
    assert "factory" not in card, "an artifact never names code"
    text = Path("cards/lstm-everything.yaml").read_text()
    assert "# factory: FILE.py:FUNCTION" in text
    assert states("lstm-everything", plugins)["architecture"] == "failed"
    Path("cards/lstm-everything.yaml").write_text(f"{text}\nfactory: ../models.py:lstm\n")
    found = states("lstm-everything", plugins)
    assert found.pop("tensors") == "skipped"
    assert set(found.values()) == {"ok"}


def test_an_artifact_alone_becomes_a_card_of_its_first_original(here: Path) -> None:
    card = add("bert-small")
    assert card["source"] == "path:../bert-small"
    assert (card["base_model"], card["license"]) == ("acme/tiny-bert", "mit")
    assert "model_class" not in card
    assert card["pipeline_tag"] == "text-classification"


def test_one_on_the_hub_becomes_a_card_without_its_weights(
    here: Path, acme: HubFixture, plugins: Plugins
) -> None:
    push(Hub(), open_release(Path("out/everything"), plugins), "acme/small", PushOptions())
    acme.requests.clear()
    card = add("hub:acme/small")
    assert card["source"] == f"hub:acme/small@{acme.head('acme/small')}"
    assert card["license"] == "mit"
    assert "metrics" not in card, "those on its page measure the compression"
    assert "tags" not in card
    assert not any("model.zpz" in request.path for request in acme.requests)
    listed = CardCheck("small", plugins).run()
    assert next(f for f in listed if f.check == "files").text.endswith("zoopress zoo pull small")


def test_a_plan_of_one_on_the_hub_needs_its_manifest_alone(
    here: Path, acme: HubFixture, plugins: Plugins
) -> None:
    push(Hub(), open_release(Path("out/everything"), plugins), "acme/small", PushOptions())
    shutil.rmtree(acme.cache, ignore_errors=True)
    card = card_of("lstm-everything", here, "hub:acme/small", name="small")
    (here / "r.yaml").write_text("stages: [{technique: weight_quantization, bits: 4}]\n")
    done = CliRunner().invoke(app, ["plan", "small.yaml", "r.yaml", "--no-probe", "--json"])
    assert "the source's stage 3 (weight_quantization) leaves none" in done.output
    assert not list(acme.cache.rglob("model.zpz"))
    with pytest.raises(PlanError, match="leaves none"):
        open_cell(card, load_recipe("r.yaml", plugins), Store(here / "store"), plugins)


def test_a_recipe_that_needs_masks_fits_a_masked_source(here: Path, plugins: Plugins) -> None:
    from zoopress.cells.plan import plan_early
    from zoopress.recipes import Recipe, Stage
    from zoopress.techniques import MASKS, Effects
    from zoopress_plugins.coding.entropy_coding import EntropyCoding

    class NeedsMasks(EntropyCoding):
        """Works on pruned weights alone."""

        def effects(self) -> Effects:
            return Effects(requires=frozenset({MASKS}))

    recipe = Recipe("masked", (Stage(NeedsMasks(EntropyCoding.config_type())),))
    assert plan_early(card_of("cnn-masked", here), recipe, plugins)
    with pytest.raises(PlanError, match="works on masks, but no earlier stage makes any"):
        plan_early(card_of("cnn-half", here), recipe, plugins)


def test_a_repository_that_lacks_a_listed_file_is_refused(
    here: Path, acme: HubFixture, plugins: Plugins
) -> None:
    files = {path.name: path.read_bytes() for path in Path("bert-small").iterdir()}
    del files["model.zpz"]
    acme.create_repo("acme/half")
    acme.commit("acme/half", files)
    card = card_of("bert-quantized", here, "hub:acme/half", name="half")
    with pytest.raises(SourceError, match=r"lists 'model\.zpz', which the repository lacks"):
        open_original(card, plugins)


def test_a_licence_in_the_repository_goes_along(
    here: Path, acme: HubFixture, plugins: Plugins
) -> None:
    files = {path.name: path.read_bytes() for path in Path("bert-small").iterdir()}
    acme.create_repo("acme/small")
    acme.commit("acme/small", files | {"LICENSE": b"as is", "notes.txt": b"-"})
    card = card_of("bert-quantized", here, "hub:acme/small", name="small")
    others = open_original(card, plugins).model.open().others
    assert others["LICENSE"].read_bytes() == b"as is"
    assert "notes.txt" not in others
    assert "zoopress.json" not in others


def test_another_licence_than_the_first_originals_is_not_published(
    here: Path, acme: HubFixture, plugins: Plugins
) -> None:
    from zoopress.errors import HubError
    from zoopress.pipeline.compress import compress

    card = card_of("bert-removed", here, license="apache-2.0")
    (here / "r.yaml").write_text("stages: [{technique: entropy_coding}]\n")
    recipe = load_recipe("r.yaml", plugins)
    result = compress(card, recipe, here / "o", Store(here / "store"), plugins)
    release = open_release(result.folder, plugins)
    with pytest.raises(HubError, match=r"says 'apache-2\.0', and its source was compressed from"):
        push(Hub(), release, "acme/small", PushOptions())
    assert (
        json.loads((here / "o" / "artifact" / "zoopress.json").read_bytes())["base"]["license"]
        == "mit"
    )
