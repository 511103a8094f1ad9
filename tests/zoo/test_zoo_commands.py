"""The commands `zoopress zoo …` as a user meets them."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import yaml

import hub_models
from hub_server.fixtures import HubFixture
from small_zoo import write_zoo
from zoopress.cards import load_card
from zoopress.cards.check import compare_shapes
from zoopress.commands.arguments import completion
from zoopress.commands.cli import main
from zoopress.errors import CardError
from zoopress.hub import client
from zoopress.plugins import Plugins

transformers = pytest.importorskip("transformers")


class Done(NamedTuple):
    code: int
    out: str
    err: str


Zoo = Callable[..., Done]


@pytest.fixture
def zoo(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Zoo:
    """Return a function that runs `zoopress zoo …` in an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "300")
    monkeypatch.setattr(client, "WAITS_S", (0.0,))

    def run(*arguments: str) -> Done:
        monkeypatch.setattr(sys, "argv", ["zoopress", "zoo", *arguments])
        capsys.readouterr()
        code: Any = 0
        try:
            main()
        except SystemExit as stop:
            code = stop.code or 0
        return Done(code, *capsys.readouterr())

    return run


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> hub_models.Files:
    """A whole repository of a tiny random classifier, with its tokenizer."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    folder = tmp_path_factory.mktemp("tiny")
    words = {word: i for i, word in enumerate(["[PAD]", "[UNK]", "the", "a", "of", "is", "to"])}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]"
    ).save_pretrained(folder)
    torch.manual_seed(0)
    config = transformers.BertConfig.from_dict({**hub_models.BERT, "vocab_size": len(words)})
    transformers.BertForSequenceClassification(config).save_pretrained(folder)
    files: hub_models.Files = {path.name: path.read_bytes() for path in folder.iterdir()}
    files["README.md"] = hub_models.readme(license="mit", pipeline_tag="text-classification")
    return files


def findings(done: Done, name: str) -> dict[str, tuple[str, str]]:
    return {item["check"]: (item["state"], item["text"]) for item in json.loads(done.out)[name]}


# add


def test_one_command_makes_a_zoo_of_an_author_and_tells_what_could_not_be(
    zoo: Zoo, hub: HubFixture, plugins: Plugins
) -> None:
    hub_models.fill(hub)
    done = zoo("add", "--author", "zoo")
    assert done.code == 1
    assert {path.stem for path in Path("cards").iterdir()} == {
        *("classifier", "encoder", "gpt2", "t5", "vit", "resnet", "wav2vec2", "whisper"),
        *("clip", "timm"),
    }
    for path in Path("cards").iterdir():
        assert load_card(path.stem, plugins).name == path.stem
    lines = done.out.splitlines()
    assert sum(line.startswith("✓ [") for line in lines) == 10
    assert sum(line.startswith("✗ [") for line in lines) == 6
    assert "[16/16]" in done.out
    assert lines[-1].startswith(
        "10 written, 0 unchanged, 6 failed. Next: zoopress zoo check cards/"
    )
    again = zoo("add", "zoo/vit", "zoo/t5")
    assert again.code == 0
    assert again.out.endswith("0 written, 2 unchanged, 0 failed.\n")


def test_a_collection_is_added_by_slug_or_address(zoo: Zoo, hub: HubFixture) -> None:
    hub_models.fill(hub)
    slug = hub.add_collection("Vision", "zoo", ["zoo/vit", "zoo/resnet"]).slug
    assert zoo("add", "--collection", slug).code == 0
    done = zoo("add", "--collection", f"https://huggingface.co/collections/{slug}?x=1")
    assert done.out.endswith("0 written, 2 unchanged, 0 failed.\n")
    hub.add_collection("Empty", "zoo", [], slug="zoo/empty-1")
    for text, reason in (
        ("zoo/none-123", "asking for the collection zoo/none-123"),
        ("zoo/empty-1", "has no models"),
        ("nonsense", "should look like 'owner/title-hash'"),
    ):
        failed = zoo("add", "--collection", text)
        assert failed.code == 1
        assert failed.err.startswith("error: ")
        assert reason in failed.err


def test_a_limit_takes_so_many(zoo: Zoo, hub: HubFixture) -> None:
    hub_models.fill(hub)
    done = zoo("add", "--author", "https://huggingface.co/zoo", "--limit", "2")
    assert done.out.splitlines()[0].startswith("✓ [1/2] ")
    assert len(list(Path("cards").iterdir())) == 2


def test_a_changed_card_is_kept_unless_forced(zoo: Zoo, hub: HubFixture) -> None:
    hub_models.fill(hub)
    assert zoo("add", "zoo/vit").code == 0
    path = Path("cards/vit.yaml")
    text = path.read_text()
    path.write_text(text + "# mine\n")
    done = zoo("add", "zoo/vit", "zoo/t5")
    assert done.code == 1
    assert "cards/vit.yaml is there already and differs. Replace it with --force" in done.out
    assert path.read_text().endswith("# mine\n")
    assert Path("cards/t5.yaml").exists()
    assert zoo("add", "zoo/vit", "--force").code == 0
    assert path.read_text() == text


def test_models_of_one_name_get_names_of_their_own(zoo: Zoo, hub: HubFixture) -> None:
    for owner in ("a", "b"):
        hub.create_repo(f"{owner}/minilm", hub_models.VIT)
        hub.create_repo(f"{owner}/Net", hub_models.VIT)
    for _ in range(2):  # the second time as well
        done = zoo("add", "a/Net", "b/Net", "a/minilm")
        assert done.code == 0, done.out
        names = {path.stem for path in Path("cards").iterdir()}
        assert names == {"Net", "b-Net", "a-minilm"}  # minilm is a plugin's


def test_dry_run_prints_and_writes_nothing(zoo: Zoo, hub: HubFixture) -> None:
    hub_models.fill(hub)
    done = zoo("add", "zoo/encoder", "--dry-run", "--name", "mine", "--task", "fidelity")
    card = yaml.safe_load(done.out)
    assert (card["name"], card["task"]) == ("mine", "fidelity")
    assert not Path("cards").exists()


def test_data_of_the_user_are_named_from_the_cards_folder(zoo: Zoo, hub: HubFixture) -> None:
    hub_models.fill(hub)
    Path("sentences.txt").write_text("A sentence.\n")
    assert zoo("add", "zoo/encoder", "--to", "a/b", "--data", "text=sentences.txt").code == 0
    assert yaml.safe_load(Path("a/b/encoder.yaml").read_text())["data"] == {
        "text": "../../sentences.txt"
    }
    given = "{random: {pixel_values: {shape: [3, 8, 8]}}}"
    done = zoo("add", "zoo/vit", "--data", given, "--dry-run")
    assert yaml.safe_load(done.out)["data"] == yaml.safe_load(given)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "Say which models"),
        (["a/b", "--limit", "3"], "--limit goes with --author"),
        (["a/b", "--task", "fidelty"], "Did you mean 'fidelity'?"),
        (["a/b", "--data", "nonsense"], "expected KEY=VALUE"),
        (["a/b", "--data", "txt=x"], "Did you mean 'text'?"),
        (["a/b", "c/d", "--name", "x"], "is for one model, and these are 2"),
        (["--author", "nobody"], "'nobody' has no models"),
    ],
)
def test_a_mistake_is_an_error_before_anything_is_written(
    arguments: list[str], message: str, zoo: Zoo, hub: HubFixture
) -> None:
    done = zoo("add", *arguments)
    assert done.code == 1
    assert message in done.err
    assert "Traceback" not in done.err
    assert not Path("cards").exists()


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("a b/c", "is no address of a model on the Hub"),
        ("s3:bucket", "nothing makes cards of 's3'"),
        ("./nowhere", "There is no folder"),
        ("zoo/nothing", "there is no model 'zoo/nothing'"),
    ],
)
def test_a_source_that_is_none_does_not_stop_the_others(
    source: str, message: str, zoo: Zoo, hub: HubFixture
) -> None:
    hub_models.fill(hub)
    done = zoo("add", source, "zoo/vit")
    assert done.code == 1
    assert f"✗ [1/2] {source}: " in done.out
    assert message in done.out
    assert Path("cards/vit.yaml").exists()


def test_json_tells_of_every_model(zoo: Zoo, hub: HubFixture) -> None:
    hub_models.fill(hub)
    done = zoo("add", "zoo/vit", "zoo/custom", "--json")
    first, second = json.loads(done.out)
    assert (first["state"], first["path"]) == ("written", "cards/vit.yaml")
    assert second["state"] == "failed"
    assert "never runs" in second["reason"]


def test_a_local_zoo_is_added_and_checks(zoo: Zoo, tiny: hub_models.Files) -> None:
    for name in ("one", "two"):
        (Path("models") / name).mkdir(parents=True)
        for file, content in tiny.items():
            data = content if isinstance(content, bytes) else content.encode()
            (Path("models") / name / file).write_bytes(data)
    assert zoo("add", "models").code == 0
    done = zoo("check", "one", "cards/two.yaml", "--load", "--json")
    assert done.code == 0, done.out
    states = {check: state for check, (state, _) in findings(done, "one").items()}
    assert set(states.values()) == {"ok"}
    assert "run" in states


# check, pull, show, list


def test_check_passes_without_fetching_weights_and_with_load_runs(
    zoo: Zoo, hub: HubFixture, tiny: hub_models.Files
) -> None:
    hub.create_repo("a/tiny", tiny, large=["model.safetensors"])
    assert zoo("add", "a/tiny").code == 0
    done = zoo("check", "tiny", "--json")
    found = findings(done, "tiny")
    assert done.code == 0, found
    assert {state for state, _ in found.values()} == {"ok"}
    assert "not here yet: zoopress zoo pull tiny" in found["files"][1]
    assert "tensors have the names and shapes" in found["tensors"][1]
    assert found["revision"] == ("ok", "pinned to main's newest commit")
    assert all(
        "bytes=" in r.headers.get("range", "") for r in hub.asked("model.safetensors", "GET")
    )
    assert not list(hub.cache.rglob("model.safetensors"))
    loaded = findings(zoo("check", "tiny", "--load", "--json"), "tiny")
    assert loaded["run"] == ("ok", "one batch gives [32, 2], all finite")
    assert "digests match" in findings(zoo("check", "tiny", "--json"), "tiny")["files"][1]
    shown = zoo("check", "tiny").out
    assert "✓   architecture" in shown


def test_check_tells_that_a_branch_has_moved_and_how_to_follow(
    zoo: Zoo, hub: HubFixture, tiny: hub_models.Files
) -> None:
    hub.create_repo("a/tiny", tiny)
    assert zoo("add", "a/tiny").code == 0
    hub.commit("a/tiny", {"README.md": "# New"})
    done = zoo("check", "tiny", "--json")
    state, text = findings(done, "tiny")["revision"]
    assert (done.code, state) == (0, "note")
    assert f"main has moved on, to {hub.head('a/tiny')}" in text
    command = text.partition("zoopress zoo ")[2].split()
    assert zoo(*command).code == 0
    assert findings(zoo("check", "tiny", "--json"), "tiny")["revision"][0] == "ok"


@pytest.mark.parametrize(
    ("change", "check", "message"),
    [
        ({"source": "hub:a/gone@main"}, "source", "there is no model 'a/gone'"),
        ({"source": "hub:a/tiny@" + "0" * 40}, "source", "no branch, tag or commit"),
        ({"source": "path:nowhere"}, "source", "nothing at"),
        ({"license": None}, "licence", "add `license: IDENTIFIER`"),
        ({"data": None}, "data", "has no 'data'"),
        ({"data": {"text": "none.txt"}}, "data", "none.txt cannot be read"),
        ({"data": {"inputs": "none.py:f"}}, "data", "there is no file"),
        ({"data": {"random": {"wrong": {"shape": [3]}}}}, "run", "does not run on the card's data"),
        ({"model_class": "BertForNothing"}, "architecture", "is not a model class"),
        ({"model_class": "BertForMaskedLM"}, "tensors", "lack"),
        ({"task": "nothing"}, "card", "there is no task 'nothing'"),
    ],
)
def test_check_names_what_fails_with_a_remedy_and_skips_what_needs_it(
    change: dict[str, Any],
    check: str,
    message: str,
    zoo: Zoo,
    hub: HubFixture,
    tiny: hub_models.Files,
) -> None:
    hub.create_repo("a/tiny", tiny)
    assert zoo("add", "a/tiny").code == 0
    path = Path("cards/tiny.yaml")
    card = {**yaml.safe_load(path.read_text()), **change}
    path.write_text(yaml.safe_dump({k: v for k, v in card.items() if v is not None}))
    done = zoo("check", "tiny", "--load", "--json")
    found = findings(done, "tiny")
    assert done.code == 1
    assert found[check][0] == "failed", found
    assert message in found[check][1]
    if check == "source":
        assert found["architecture"][0] == "skipped"
    assert "Traceback" not in done.err


def test_check_finds_weights_of_another_model(
    zoo: Zoo, hub: HubFixture, tiny: hub_models.Files
) -> None:
    config = json.loads(tiny["config.json"])
    hub.create_repo("a/wider", {**tiny, "config.json": json.dumps({**config, "hidden_size": 64})})
    hub.create_repo("a/damaged", {**tiny, "model.safetensors": b"no such thing" * 9})
    assert zoo("add", "a/wider", "a/damaged").code == 0
    done = zoo("check", "wider", "damaged", "--json")
    assert "are of different models" in findings(done, "wider")["tensors"][1]
    assert "no safetensors file" in findings(done, "damaged")["tensors"][1]


def test_names_that_libraries_change_are_no_failure() -> None:
    module = torch.nn.ModuleDict(
        {"bert": torch.nn.ModuleDict({"LayerNorm": torch.nn.LayerNorm(4)})}
    )
    assert compare_shapes(module, {"LayerNorm.gamma": (4,), "LayerNorm.beta": (4,)})[0] == "ok"
    assert compare_shapes(module, {"x.bert.LayerNorm.weight": (4,), "x.bert.LayerNorm.bias": (4,)})[
        0
    ] == ("ok")
    assert compare_shapes(module, {"fused": (2, 4)})[0] == "note"


def test_offline_a_fetched_card_still_checks(
    zoo: Zoo, hub: HubFixture, tiny: hub_models.Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.create_repo("a/tiny", tiny)
    assert zoo("add", "a/tiny").code == 0
    assert zoo("pull", "tiny").code == 0
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    hub.requests.clear()
    done = zoo("check", "tiny", "--load", "--json")
    assert done.code == 0, done.out
    assert "HF_HUB_OFFLINE" in findings(done, "tiny")["source"][1]
    assert hub.requests == []
    failed = zoo("add", "a/tiny")
    assert failed.code == 1
    assert "HF_HUB_OFFLINE forbids requests" in failed.out


def test_pull_fetches_and_says_where(zoo: Zoo, hub: HubFixture, tiny: hub_models.Files) -> None:
    hub.create_repo("a/tiny", tiny)
    assert zoo("add", "a/tiny").code == 0
    done = zoo("pull", "tiny", "missing")
    assert done.code == 1
    assert "✗ missing: There is no card 'missing'" in done.err
    folder = Path(done.out.splitlines()[0].rpartition(", ")[2])
    assert (folder / "model.safetensors").is_file()
    [entry] = json.loads(zoo("pull", "tiny", "--json").out)
    assert entry["files"]["model.safetensors"] == len(tiny["model.safetensors"])


def test_show_tells_card_files_and_architecture(
    zoo: Zoo, hub: HubFixture, tiny: hub_models.Files
) -> None:
    hub.create_repo("a/tiny", tiny)
    assert zoo("add", "a/tiny").code == 0
    shown = json.loads(zoo("show", "tiny", "--json").out)
    sizes = {file["name"]: (file["bytes"], file["here"]) for file in shown["files"]}
    assert sizes["model.safetensors"] == (len(tiny["model.safetensors"]), False)
    assert sizes["config.json"][1]
    assert shown["architecture"]["name"] == "transformers"
    text = zoo("show", "tiny").out
    assert "to fetch  model.safetensors" in text
    assert "license: mit" in text
    hub.delete_repo("a/tiny")
    Path("cards/gone.yaml").write_text("name: gone\nsource: hub:a/gone\n")
    gone = zoo("show", "gone")
    assert (gone.code, "problem: " in gone.out) == (0, True)


def test_list_shows_every_card_and_broken_ones_with_their_reason(zoo: Zoo) -> None:
    write_zoo(Path("."))
    Path("cards").mkdir()
    Path("cards/good.yaml").write_text("name: good\nsource: path:x\ndescription: Fine [b]x[/b]\n")
    Path("cards/bad.yaml").write_text("name: bad\nsorce: path:x\n")
    Path("cards/minilm.yaml").write_text("name: minilm\nsource: path:x\n")
    done = zoo("list")
    assert done.code == 0
    assert "Fine [b]x[/b]" in done.out
    assert "✗ bad is broken: " in done.out
    assert "Did you mean 'source'?" in done.out
    rows = {row["card"]: row for row in json.loads(zoo("list", "--json").out)}
    assert rows.keys() == {"minilm", "cards/minilm.yaml", "good", "bad"}
    assert rows["good"]["source"] == "path:x"
    other = json.loads(zoo("list", "--cards", "elsewhere", "--json").out)
    assert [row["card"] for row in other] == ["minilm"]


# Names


def test_a_bare_name_is_a_card_of_the_folder_cards(
    tmp_path: Path, plugins: Plugins, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("cards").mkdir()
    Path("Qwen2.5-0.5B").mkdir()  # a model's folder beside it
    for name in ("Qwen2.5-0.5B", "minilm"):
        Path(f"cards/{name}.yaml").write_text(f"name: {name}\nsource: path:x\n")
    assert load_card("Qwen2.5-0.5B", plugins).root == tmp_path / "cards"
    assert load_card("minilm", plugins).scheme == "package"  # a plugin's comes first
    assert load_card("cards/minilm.yaml", plugins).scheme == "path"
    with pytest.raises(CardError, match=r"Did you mean 'Qwen2\.5-0\.5B'\?"):
        load_card("Qwen2.5-0.5", plugins)
    assert completion("cards")("Q") == ["Qwen2.5-0.5B"]
    assert completion("cards")("cards/m") == ["cards/minilm.yaml"]
