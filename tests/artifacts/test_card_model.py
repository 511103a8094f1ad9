"""What is wrong with a compressed model as a card's source is told in words, with the remedy."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from compressed_cards import MADE, card_of
from zoopress.cells.cell import open_original
from zoopress.errors import ArtifactError, CardError, SourceError, ZoopressError
from zoopress.plugins import Plugins

Change = Callable[[dict[str, Any]], object]


def copied(state: str, folder: Path, change: Change | None = None) -> Path:
    """Return a copy of an artifact, its manifest changed."""
    place = folder / "copied"
    shutil.copytree(MADE / "artifacts" / state, place)
    if change is not None:
        manifest = json.loads((place / "zoopress.json").read_bytes())
        change(manifest)
        (place / "zoopress.json").write_text(json.dumps(manifest))
    return place


def use(state: str, place: Path, folder: Path, plugins: Plugins, **more: Any) -> None:
    """Open a card of an artifact, and load its model."""
    open_original(card_of(state, folder, f"path:{place}", **more), plugins).model.load()


def strange_packing(manifest: dict[str, Any]) -> None:
    manifest["edits"][0]["packing"] = "ternary"
    manifest["lineage"][-1] |= {
        "technique": "ternary_quantization",
        "distribution": "zoopress-ternary",
        "version": "1.2",
    }


def strange_layer(manifest: dict[str, Any]) -> None:
    manifest["edits"][0]["layer"] = "butterfly"


def strange_architecture(manifest: dict[str, Any]) -> None:
    manifest["architecture"]["name"] = "keras"


def newer(manifest: dict[str, Any]) -> None:
    manifest["version"] = 3


@pytest.mark.parametrize(
    ("state", "change", "told"),
    [
        (
            "cnn-quantized",
            strange_packing,
            r"layer 'ternary' is not registered here\. It was made with zoopress-ternary 1\.2, "
            r"which is not installed: pip install 'zoopress-ternary>=1\.2'\. Valid: .*codebook, ",
        ),
        (
            "cnn-factored",
            strange_layer,
            r"layer 'butterfly' is not registered here\..*Install the plugin",
        ),
        (
            "bert-half",
            strange_architecture,
            r"architecture 'keras' is not registered here\..*Install the plugin",
        ),
        ("cnn-masked", newer, r"'version' is 3; this zoopress reads version 2\. Update zoopress"),
    ],
)
def test_what_is_missing_or_newer_is_told_before_weights_are_read(
    state: str, change: Change, told: str, tmp_path: Path, plugins: Plugins
) -> None:
    place = copied(state, tmp_path, change)
    (place / "zoopress.json").touch()
    card = card_of(state, tmp_path, f"path:{place}")
    with pytest.raises((ArtifactError, SourceError), match=rf"(?s)Card '{state}': .*{told}"):
        open_original(card, plugins)


def cut_off(place: Path) -> None:
    path = place / "compressed.safetensors"
    path.write_bytes(path.read_bytes()[:-1])


def flipped(place: Path) -> None:
    path = place / "compressed.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def gone(place: Path) -> None:
    (place / "compressed.safetensors").unlink()


def no_json(place: Path) -> None:
    (place / "zoopress.json").write_text("{")


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (cut_off, r"has \d+ bytes, not \d+; it was cut off\. Download or build it again"),
        (flipped, r"its SHA-256 differs; it was changed\. Download or build it again"),
        (gone, r"is missing\. Download or build it again"),
        (no_json, r"is not JSON .* Download or build it again"),
    ],
)
def test_a_damaged_artifact_is_refused(
    damage: Callable[[Path], None], told: str, tmp_path: Path, plugins: Plugins
) -> None:
    place = copied("cnn-masked", tmp_path)
    damage(place)
    with pytest.raises(ZoopressError, match=told):
        use("cnn-masked", place, tmp_path, plugins)


def test_a_factory_that_the_card_does_not_name_is_asked_for(
    tmp_path: Path, plugins: Plugins
) -> None:
    place = copied("cnn-masked", tmp_path)
    told = r"built by the Python function '\.\./models\.py:cnn'.*give the card a 'factory'"
    with pytest.raises(CardError, match=told):
        use("cnn-masked", place, tmp_path, plugins, factory=None)
    with pytest.raises(CardError, match="'factory': there is no file"):
        use("cnn-masked", place, tmp_path, plugins, factory="nowhere.py:cnn")


def test_the_cards_factory_arguments_take_the_place_of_the_artifacts(
    tmp_path: Path, plugins: Plugins
) -> None:
    place = copied("cnn-masked", tmp_path)
    use("cnn-masked", place, tmp_path, plugins, factory_arguments={"width": 8})
    with pytest.raises(ArtifactError, match=r"is stored|keeps"):
        use("cnn-masked", place, tmp_path, plugins, factory_arguments={"width": 12})


@pytest.mark.parametrize(
    ("more", "told"),
    [
        ({"factory": f"{MADE / 'models.py'}:cnn"}, "needs no 'factory'; leave it out"),
        ({"model_class": "BertModel"}, "'model_class' says 'BertModel'; leave it out"),
        ({"base_model": "acme/other"}, "compressed from 'acme/tiny-bert'. Leave 'base_model' out"),
    ],
)
def test_a_card_that_contradicts_the_artifact_is_refused(
    more: dict[str, Any], told: str, tmp_path: Path, plugins: Plugins
) -> None:
    place = copied("bert-half", tmp_path)
    with pytest.raises(ZoopressError, match=told):
        use("bert-half", place, tmp_path, plugins, **more)


def test_the_licence_and_the_base_model_are_those_of_the_first_original(
    tmp_path: Path, plugins: Plugins
) -> None:
    card = open_original(card_of("bert-half", tmp_path), plugins).card
    assert (card.base_model, card.license) == ("acme/tiny-bert", "mit")


def test_a_compressed_model_is_opened_and_planned_without_torch(tmp_path: Path) -> None:
    card_of("bert-quantized", tmp_path)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump({"stages": [{"technique": "entropy_coding"}]}))
    code = (
        "import sys; from pathlib import Path; from zoopress.cards import load_card\n"
        "from zoopress.cells.cell import open_cell; from zoopress.plugins import load_plugins\n"
        "from zoopress.recipes import load_recipe; from zoopress.store import Store\n"
        "p = load_plugins(); card = load_card('bert-quantized.yaml', p)\n"
        "cell = open_cell(card, load_recipe('recipe.yaml', p), Store(Path('store')), p)\n"
        "print(len(cell.keys), 'torch' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["1", "False"]
