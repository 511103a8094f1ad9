"""Cards made of repositories as they are on the Hub, from their settings alone."""

from __future__ import annotations

import json
import unicodedata
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings, strategies as st

import hub_models
from hub_models import WEIGHTS, model, readme
from hub_server.fixtures import HubFixture
from zoopress.cards import Card, load_card
from zoopress.cards.maker import Draft, Wish, card_maker, card_name, clean
from zoopress.errors import HubError, SourceError
from zoopress.hub import client
from zoopress.plugins import Plugins
from zoopress_zoo.card_facts import describe, read_front_matter

pytest.importorskip("transformers")


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "WAITS_S", (0.0,))


@pytest.fixture
def zoo(hub: HubFixture) -> HubFixture:
    hub_models.fill(hub)
    return hub


def draft(place: str, plugins: Plugins, scheme: str = "hub", **wish: Any) -> Draft:
    maker = card_maker(scheme, plugins)
    assert maker is not None
    return maker.draft(place, Wish(**{"folder": Path("cards"), **wish}))


def written(made: Draft, folder: Path, plugins: Plugins) -> Card:
    """Write a card and load it."""
    path = folder / f"{made.name}.yaml"
    path.write_text(made.text(), encoding="utf-8")
    return load_card(str(path), plugins)


RANDOM = "Random values: they tell whether the model runs, and little about its quality."


@pytest.mark.parametrize(
    ("name", "task", "tag", "data"),
    [
        ("classifier", "fidelity", "text-classification", {"text": "python-docstrings"}),
        ("encoder", "sentence-similarity", "sentence-similarity", {"text": "python-docstrings"}),
        ("gpt2", "text-generation", "text-generation", {"text": "python-docstrings"}),
        ("t5", "fidelity", "translation", {"input_ids": [32], "decoder_input_ids": [16]}),
        ("vit", "fidelity", "image-classification", {"pixel_values": [3, 96, 96]}),
        ("resnet", "fidelity", "image-classification", {"pixel_values": [3, 224, 224]}),
        ("wav2vec2", "fidelity", "automatic-speech-recognition", {"input_values": [16000]}),
        (
            *("whisper", "fidelity", "automatic-speech-recognition"),
            {"input_features": [80, 3000], "decoder_input_ids": [16]},
        ),
        (
            *("clip", "fidelity", "zero-shot-image-classification"),
            {"input_ids": [64], "pixel_values": [3, 64, 64]},
        ),
    ],
)
def test_task_and_data_are_inferred(
    name: str, task: str, tag: str, data: Any, zoo: HubFixture, plugins: Plugins, tmp_path: Path
) -> None:
    made = draft(f"zoo/{name}", plugins)
    card = written(made, tmp_path, plugins)
    assert (card.name, card.task, card.pipeline_tag) == (name, task, tag)
    assert card.source == f"hub:zoo/{name}@{zoo.head(f'zoo/{name}')}"
    assert made.pinned_from == "main"
    assert card.base_model == f"zoo/{name}"
    assert card.model_class is None
    assert made.missing == {}
    assert card.data is not None
    if card.data.random is None:
        assert {"text": card.data.text} == data
    else:
        assert {key: list(value.shape) for key, value in card.data.random.items()} == data
        assert made.notes["data"] == RANDOM
    assert f"zoo/{name}" in card.description
    assert "parameters" in card.description


def test_metadata_are_passed_on_without_the_tags_that_the_hub_makes(
    zoo: HubFixture, plugins: Plugins, tmp_path: Path
) -> None:
    card = written(draft("zoo/classifier", plugins), tmp_path, plugins)
    assert (card.license, card.library_name, card.language) == (
        "apache-2.0",
        "transformers",
        ("en",),
    )
    assert card.tags == ("text-classification",)
    assert (card.datasets, card.metrics) == (("sst2", "glue"), ("accuracy",))
    assert card.base_model == "zoo/classifier"  # not what that was made from


def test_weights_and_code_are_never_fetched(zoo: HubFixture, plugins: Plugins) -> None:
    for name in ("classifier", "gpt2", "custom", "timm"):
        try:
            draft(f"zoo/{name}", plugins)
        except SourceError:
            continue
    fetched = {request.path.rpartition("/")[2] for request in zoo.asked("/resolve/")}
    assert fetched
    assert all(name.endswith(".json") for name in fetched)


def test_outputs_of_a_language_model_fit_into_memory(
    hub: HubFixture, plugins: Plugins, tmp_path: Path
) -> None:
    hub.create_repo("a/llama", model(hub_models.LLAMA, hub_models.TOKENIZER, license="llama3"))
    data = draft("a/llama", plugins).values["data"]
    assert data["evaluation_samples"] * 64 * 128256 * 4 <= 1 << 29
    assert data["evaluation_samples"] >= 8


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("adapter", r"adapter \(PEFT\) of meta-llama/Llama-2-7b-hf.*merge_and_unload"),
        ("gptq", r"already quantized \(gptq\).*zoopress zoo add meta-llama/Llama-2-7b-chat-hf"),
        ("gguf", r"5 files of weights.*for example 'zoo/gguf/mistral-7b.Q6_K_M.gguf'\.$"),
        ("diffusers", r"pipeline of diffusers.*zoo/diffusers/PART \(text_encoder, unet\)"),
        ("custom", r"needs Python code from its repository.*never runs.*'model_class'"),
        ("no-config", r"no config.json.*source: hub:zoo/no-config@[0-9a-f]{40}` and `factory:"),
    ],
)
def test_what_cannot_become_a_card_is_explained(
    name: str, reason: str, zoo: HubFixture, plugins: Plugins
) -> None:
    with pytest.raises(SourceError, match=reason):
        draft(f"zoo/{name}", plugins)


def test_a_file_or_folder_of_a_repository_has_a_card_of_its_own(
    zoo: HubFixture, plugins: Plugins, tmp_path: Path
) -> None:
    made = draft("zoo/gguf/mistral-7b.Q4_K_M.gguf", plugins)
    card = written(made, tmp_path, plugins)
    assert card.name == "gguf-mistral-7b.Q4_K_M"
    assert card.source == f"hub:zoo/gguf/mistral-7b.Q4_K_M.gguf@{zoo.head('zoo/gguf')}"
    assert card.data is not None
    assert card.data.text == "python-docstrings"
    zoo.create_repo("zoo/parts", {f"body/{k}": v for k, v in hub_models.VIT.items()})
    assert draft("zoo/parts/body", plugins).name == "parts-body"


def test_a_gated_model_asks_for_access_and_with_it_says_so(
    zoo: HubFixture, plugins: Plugins, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(HubError, match=r"meta/Llama is gated.*Ask for access on"):
        draft("meta/Llama", plugins)
    zoo.add_user("alice", token="hf_alice")
    zoo.grant("meta/Llama", "alice")
    monkeypatch.setenv("HF_TOKEN", "hf_alice")
    assert "gated" in draft("meta/Llama", plugins).notes["source"]


def test_a_branch_is_pinned_and_named_and_a_commit_needs_no_name(
    zoo: HubFixture, plugins: Plugins, tmp_path: Path
) -> None:
    zoo.branch("zoo/vit", "v2")
    made = draft("https://huggingface.co/zoo/vit/tree/v2", plugins)
    assert made.pinned_from == "v2"
    assert "  # pinned from v2\n" in made.text()
    pinned = draft(f"hub:zoo/vit@{zoo.head('zoo/vit')}", plugins)
    assert pinned.pinned_from is None
    assert "# pinned" not in pinned.text()


def test_a_renamed_model_gets_its_new_name(zoo: HubFixture, plugins: Plugins) -> None:
    zoo.rename("zoo/vit", "zoo/vision")
    made = draft("zoo/vit", plugins)
    assert made.values["source"].startswith("hub:zoo/vision@")
    assert "it was zoo/vit" in made.notes["source"]


def test_a_class_that_config_json_does_not_settle_is_named(
    hub: HubFixture, plugins: Plugins, tmp_path: Path
) -> None:
    config = {k: v for k, v in hub_models.BERT.items() if k != "architectures"}
    tokenizer = hub_models.TOKENIZER
    hub.create_repo("a/b", model(config, tokenizer, pipeline_tag="text-classification"))
    hub.create_repo("a/c", model({**config, "architectures": ["TFBertModel"]}, tokenizer))
    card = written(draft("a/b", plugins), tmp_path, plugins)
    assert card.model_class == "BertForSequenceClassification"
    made = draft("a/c", plugins)
    assert made.values["model_class"] == "BertModel"
    assert "names TFBertModel, which transformers lacks" in made.notes["model_class"]


def test_own_code_beside_a_native_class_is_mentioned(hub: HubFixture, plugins: Plugins) -> None:
    hub.create_repo(
        "a/b", model({**hub_models.BERT, "auto_map": {"AutoModel": "x.Y"}}, license="mit")
    )
    made = draft("a/b", plugins)
    assert "none is run" in made.notes["source"]
    assert set(made.values["data"]["random"]) == {"input_ids"}  # there is no tokenizer


def test_inputs_that_are_not_known_are_left_to_the_user_with_an_example(
    hub: HubFixture, plugins: Plugins, tmp_path: Path
) -> None:
    config = {**hub_models.BERT, "architectures": ["BertForMultipleChoice"]}
    hub.create_repo("a/b", model(config, hub_models.TOKENIZER, license="mit"))
    made = draft("a/b", plugins)
    assert "data" not in made.values
    assert "\n# data: {inputs: FILE.py:FUNCTION}" in made.text()
    assert written(made, tmp_path, plugins).data is None


def test_what_the_user_decides_is_not_inferred(
    zoo: HubFixture, plugins: Plugins, tmp_path: Path
) -> None:
    made = draft("zoo/encoder", plugins, task="fidelity", data={"text": "mine.txt"})
    assert (made.values["task"], made.values["data"]) == ("fidelity", {"text": "mine.txt"})


@pytest.mark.parametrize(
    ("metadata", "values", "missing"),
    [
        ({}, {}, {"license": "states none"}),
        ({"license": "Apache 2.0"}, {}, {"license": "Did you mean 'apache-2.0'"}),
        ({"license": "MIT"}, {"license": "mit"}, {}),
        ({"license": ["mit", "gpl"]}, {"license": "mit"}, {"license": "others besides: gpl"}),
        ({"license": "other"}, {"license": "other"}, {"license_name": "does not say both"}),
        (
            {"license": "other", "license_name": "own", "license_link": "LICENSE"},
            {"license": "other", "license_name": "own", "license_link": "LICENSE"},
            {},
        ),
        (
            {"license": "other", "license_name": "own", "license_link": "javascript:alert(1)"},
            {"license": "other", "license_name": "own"},
            {"license_name": "does not say both"},
        ),
        ({"license": "mit", "language": False}, {"license": "mit", "language": ["no"]}, {}),
        ({"license": "mit", "language": {"a": 1}, "tags": 5}, {"license": "mit"}, {}),
        (
            {"license": "mit", "tags": ["a\u202eb", "x\ny", "", None, "license:mit", "a" * 99]},
            {"license": "mit", "tags": ["ab", "x y", "a" * 63 + "…"]},
            {},
        ),
    ],
)
def test_metadata_are_taken_as_far_as_they_make_sense(
    metadata: dict[str, Any], values: dict[str, Any], missing: dict[str, str]
) -> None:
    found, lacks = describe(metadata, ["LICENSE", "config.json"])
    assert found == values
    assert lacks.keys() == missing.keys()
    assert all(text in lacks[key] for key, text in missing.items())


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=80),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=9), inner),
    max_leaves=8,
)
KEYS = (
    *("license", "license_name", "license_link", "language", "tags", "datasets", "metrics"),
    *("pipeline_tag", "library_name", "base_model", "name", "source", "model-index"),
)


@settings(max_examples=150)
@given(
    metadata=st.dictionaries(st.sampled_from(KEYS), JSON, max_size=8),
    strange=st.text(max_size=200),
)
def test_whatever_strangers_write_the_card_is_valid_and_loads(
    metadata: dict[str, Any],
    strange: str,
    plugins: Plugins,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    values, missing = describe(metadata, [strange])
    values |= {
        "name": card_name(strange),
        "source": "hub:a/b",
        "description": clean(strange, 300),
    }
    made = Draft(values, strange, notes={"source": strange}, missing=missing, pinned_from="main")
    text = made.text()
    assert not {unicodedata.category(c) for c in text if c != "\n"} & {"Cc", "Cs", "Zl", "Zp", "Cf"}
    card = written(made, tmp_path_factory.getbasetemp(), plugins)
    values["base_model"] = "a/b"  # which a card of the Hub need not say
    assert card.as_dict() == {k: v for k, v in values.items() if v != ""}
    del values["base_model"]
    assert yaml.safe_load(text) == values


def test_hostile_repositories_do_no_harm(hub: HubFixture, plugins: Plugins, tmp_path: Path) -> None:
    evil = "x\nsource: path:/etc\n# \x1b[31mred\u202e"
    hub.create_repo(
        "a/evil",
        {
            "config.json": json.dumps({**hub_models.BERT, "architectures": [evil]}),
            "model.safetensors": WEIGHTS,
            "README.md": readme(license="other", license_name=evil, tags=[evil], language=evil),
            "vocab.txt": "",
        },
    )
    made = draft("a/evil", plugins)
    card = written(made, tmp_path, plugins)
    assert card.source.startswith("hub:a/evil@")
    assert card.license_name == "x source: path:/etc # [31mred"
    assert "\x1b" not in made.text()
    for config in ("[]", '{"model_type": 5}', '{"num_hidden_layers": 1e99}', ""):
        hub.create_repo("a/broken", {"config.json": config, "model.safetensors": WEIGHTS})
        with pytest.raises(SourceError):
            draft("a/broken", plugins)
        hub.delete_repo("a/broken")
    put(tmp_path / "deep", {"config.json": '{"a": ' * 5000, "model.safetensors": WEIGHTS})
    with pytest.raises(SourceError, match="cannot be read"):
        draft(str(tmp_path / "deep"), plugins, "path")


@pytest.mark.parametrize(
    ("text", "data", "problem"),
    [
        ("---\nlicense: mit\n---\ntext", {"license": "mit"}, ""),
        ("\ufeff\n---\r\nlicense: mit\r\n---\r\n", {"license": "mit"}, ""),
        ("# No metadata", {}, ""),
        ("---\n- a\n---\n", {}, "are no keys"),
        ("---\na: [\n---\n", {}, "cannot be read"),
        ("---\na: 1\na: 2\n---\n", {}, "stands here twice"),
        ("---\nx: !!python/object/apply:os.system [ls]\n---\n", {}, "is not understood"),
        ("---\n" + "a: &a [" + "[" * 300 + "\n---\n", {}, "cannot be read"),
    ],
)
def test_front_matter_of_every_kind_is_read_or_named(
    text: str, data: dict[str, Any], problem: str
) -> None:
    found, said = read_front_matter(text)
    assert found == data
    assert problem in said
    assert bool(problem) == bool(said)


def put(folder: Path, files: hub_models.Files) -> Path:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return folder


def test_a_folder_becomes_a_card_with_a_path_from_the_cards(
    plugins: Plugins, tmp_path: Path
) -> None:
    put(tmp_path / "models" / "my vit", hub_models.VIT)
    (tmp_path / "cards").mkdir()
    made = draft(str(tmp_path / "models" / "my vit"), plugins, "path", folder=tmp_path / "cards")
    card = written(made, tmp_path / "cards", plugins)
    assert (card.name, card.source) == ("my-vit", "path:../models/my vit")
    assert (card.license, card.base_model) == ("apache-2.0", None)
    assert "base_model" in made.missing


def test_a_folder_of_folders_is_a_zoo(plugins: Plugins, tmp_path: Path) -> None:
    put(tmp_path / "zoo" / "org" / "a", hub_models.VIT)
    put(tmp_path / "zoo" / "b", hub_models.CLASSIFIER)
    put(tmp_path / "zoo" / "b" / "checkpoint", hub_models.CLASSIFIER)  # a part of b
    put(tmp_path / "zoo" / "notes", {"todo.txt": ""})
    put(tmp_path / "zoo" / ".git", {"config.json": "{}"})
    maker = card_maker("path", plugins)
    assert maker is not None
    found = maker.models(str(tmp_path / "zoo"))
    assert [str(Path(place).relative_to(tmp_path / "zoo")) for place in found] == ["b", "org/a"]
    for place, reason in (("none", "no folder"), ("zoo/notes", "no model in it")):
        with pytest.raises(SourceError, match=reason):
            maker.models(str(tmp_path / place))


@pytest.mark.parametrize("name", ["ADAPTER", "GPTQ", "GGUF", "DIFFUSERS", "CUSTOM", "NO_CONFIG"])
def test_a_folder_that_cannot_become_a_card_is_explained(
    name: str, plugins: Plugins, tmp_path: Path
) -> None:
    put(tmp_path / "m", getattr(hub_models, name))
    with pytest.raises(SourceError) as caught:
        draft(str(tmp_path / "m"), plugins, "path", folder=tmp_path)
    assert "Card 'model'" not in str(caught.value)
    assert len(str(caught.value)) < 600
