"""What a caller tells `from_pretrained` is heard for compressed models, or refused in words."""

import hashlib
import inspect
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import tokenizers
import torch
import transformers

import zoopress
from hub_server import Fault
from hub_server.fixtures import HubFixture
from zoopress.cards import load_card
from zoopress.commands.hub import pull
from zoopress.errors import ArtifactError, HubError
from zoopress.models.packing import packed_weights
from zoopress.pipeline.compress import compress
from zoopress.plugins import Plugins
from zoopress.recipes import load_recipe
from zoopress.store import Store
from zoopress_zoo import ZoopressConfig
from zoopress_zoo.transformers_call import _MEANINGLESS

pytestmark = pytest.mark.usefixtures("brief_latency")

IDS = torch.arange(3, 12)[None]
Auto = transformers.AutoModelForSequenceClassification
TOKEN = "hf_alicealicealice"


def _bert() -> Any:
    torch.manual_seed(0)
    return transformers.BertForSequenceClassification(
        transformers.BertConfig(
            vocab_size=60,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=24,
            num_labels=5,
        )
    )


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, plugins: Plugins) -> Callable[[str], Path]:
    """Make the artifact of a recipe's stages, each once."""
    root = tmp_path_factory.mktemp("made")
    _bert().save_pretrained(root / "bert")
    (root / "card.yaml").write_text(
        "name: bert\nsource: path:bert\ndata: {random: {input_ids: {shape: [9], dtype: int64, "
        "low: 3, high: 60}}, calibration_samples: 8, evaluation_samples: 16}\n"
    )
    done: dict[str, Path] = {}

    def make(stages: str) -> Path:
        if stages not in done:
            recipe = root / f"recipe{len(done)}.yaml"
            recipe.write_text(f"stages: {stages}\n")
            out = root / f"out{len(done)}"
            card = load_card(str(root / "card.yaml"), plugins)
            compress(card, load_recipe(str(recipe), plugins), out, Store(root / "store"), plugins)
            done[stages] = out / "artifact"
        return done[stages]

    return make


_MODULES = "sentence_transformers.models"
INT8 = "[{technique: weight_quantization, bits: 8}]"
CODED = "[{technique: weight_quantization, bits: 4, group_size: 16}, {technique: entropy_coding}]"


@pytest.fixture(scope="module")
def int8(made: Callable[[str], Path]) -> Path:
    return made(INT8)


def write_tokenizer(folder: Path) -> None:
    words = {word: i for i, word in enumerate(["[PAD]", "[UNK]", "zoo", "animals", "many"])}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]"
    ).save_pretrained(folder)


def files_of(folder: Path, inside: str = "") -> dict[str, str | bytes]:
    return {
        f"{inside}{path.relative_to(folder).as_posix()}": path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.fixture
def tiny(hub: HubFixture, int8: Path) -> HubFixture:
    """A Hub with the artifact as zoo/tiny."""
    page = {"README.md": "# Tiny\n", "LICENSE": "…"}
    hub.create_repo("zoo/tiny", {**files_of(int8), **page}, large=["compressed.safetensors"])
    return hub


def logits(model: Any) -> torch.Tensor:
    with torch.inference_mode():
        found: torch.Tensor = model(input_ids=IDS).logits
    return found


def same(model: Any, folder: Path) -> bool:
    return torch.equal(logits(model), logits(zoopress.load(folder)))


# Where it is fetched from, and how


def test_a_token_is_sent_with_every_request(tiny: HubFixture, int8: Path) -> None:
    tiny.add_user("alice", token=TOKEN, orgs=["zoo"])
    tiny.repos["zoo/tiny"].private = True
    with pytest.raises(OSError, match="zoo/tiny"):
        Auto.from_pretrained("zoo/tiny")
    tiny.requests.clear()
    assert same(Auto.from_pretrained("zoo/tiny", token=TOKEN), int8)
    assert {r.token for r in tiny.requests if r.site == "hub"} == {TOKEN}


def test_a_gated_model_takes_the_token_too(tiny: HubFixture, int8: Path) -> None:
    tiny.add_user("alice", token=TOKEN, orgs=["zoo"])
    tiny.repos["zoo/tiny"].gated = "manual"
    with pytest.raises(OSError, match="gated"):
        Auto.from_pretrained("zoo/tiny", token=False)
    assert same(Auto.from_pretrained("zoo/tiny", token=TOKEN), int8)


def test_another_cache_is_used_and_no_other(tiny: HubFixture, int8: Path, tmp_path: Path) -> None:
    cache = tmp_path / "a cache" / "of mine"
    assert same(Auto.from_pretrained("zoo/tiny", cache_dir=cache), int8)
    assert not list(tiny.cache.rglob("blobs")), "nothing was fetched there"
    tiny.requests.clear()
    again = Auto.from_pretrained("zoo/tiny", cache_dir=cache, local_files_only=True)
    assert same(again, int8)
    assert same(zoopress.load("zoo/tiny", cache_dir=cache, local_files_only=True), int8)
    assert tiny.requests == []


def test_local_files_only_makes_no_request(tiny: HubFixture, int8: Path) -> None:
    with pytest.raises(OSError, match="couldn't find them in the cached files"):
        Auto.from_pretrained("zoo/tiny", local_files_only=True)
    with pytest.raises(HubError, match=r"local_files_only forbids .* without local_files_only"):
        zoopress.load("zoo/tiny", local_files_only=True)
    assert {r.path.rpartition("/")[2] for r in tiny.requests} <= {"adapter_config.json"}
    Auto.from_pretrained("zoo/tiny")
    tiny.requests.clear()
    assert same(Auto.from_pretrained("zoo/tiny", local_files_only=True), int8)
    assert tiny.requests == []


@pytest.mark.parametrize("folder", ["small", "models/very small"])
def test_a_subfolder_on_the_hub_and_on_disk(
    hub: HubFixture, int8: Path, tmp_path: Path, folder: str
) -> None:
    other = {"config.json": "{}", "README.md": "# Several models\n"}
    hub.create_repo("zoo/many", {**other, **files_of(int8, f"{folder}/")})
    assert same(Auto.from_pretrained("zoo/many", subfolder=folder), int8)
    assert same(zoopress.load("zoo/many", subfolder=folder, local_files_only=True), int8)
    shutil.copytree(int8, tmp_path / "all" / folder)
    assert same(Auto.from_pretrained(tmp_path / "all", subfolder=folder), int8)
    assert same(zoopress.load(tmp_path / "all", subfolder=folder), int8)


def test_a_revision_of_any_kind(tiny: HubFixture, made: Any, int8: Path) -> None:
    tiny.tag("zoo/tiny", "v1.0")
    first = tiny.head("zoo/tiny")
    tiny.commit("zoo/tiny", files_of(made(CODED)), delete=["compressed.safetensors"])
    for revision in ("v1.0", first):
        assert same(Auto.from_pretrained("zoo/tiny", revision=revision), int8)
    assert same(Auto.from_pretrained("zoo/tiny"), made(CODED))
    with pytest.raises(OSError, match="v2"):
        Auto.from_pretrained("zoo/tiny", revision="v2")


def test_forcing_a_download_fetches_again(tiny: HubFixture, int8: Path) -> None:
    Auto.from_pretrained("zoo/tiny")
    tiny.requests.clear()
    assert same(Auto.from_pretrained("zoo/tiny", force_download=True), int8)
    assert tiny.asked("compressed.safetensors")


def test_a_renamed_repository_is_found_by_its_old_name(tiny: HubFixture, int8: Path) -> None:
    tiny.add_user("alice", token=TOKEN, orgs=["zoo"])
    huggingface_hub.HfApi(token=TOKEN).move_repo("zoo/tiny", "zoo/renamed")
    assert same(Auto.from_pretrained("zoo/tiny"), int8)
    assert same(Auto.from_pretrained("zoo/tiny", local_files_only=True), int8)


def test_an_artifact_from_before_the_index_is_fetched_where_the_caller_wants_it(
    hub: HubFixture, int8: Path, tmp_path: Path
) -> None:
    files = files_of(int8)
    config = json.loads(files["config.json"])
    config["quantization_config"] = {"quant_method": "zoopress"}
    del files["zoopress.safetensors.index.json"]
    files["config.json"] = json.dumps(config)
    manifest = json.loads(files["zoopress.json"])
    del manifest["files"]["zoopress.safetensors.index.json"]
    record = manifest["files"]["config.json"]
    content = str(files["config.json"]).encode()
    record["bytes"], record["sha256"] = len(content), hashlib.sha256(content).hexdigest()
    files["zoopress.json"] = json.dumps(manifest)
    hub.create_repo("zoo/old", {f"in/{name}": content for name, content in files.items()})
    cache = tmp_path / "mine"
    hub.add_user("alice", token=TOKEN, orgs=["zoo"])
    hub.repos["zoo/old"].private = True
    said = {"subfolder": "in", "cache_dir": cache, "token": TOKEN}
    assert same(Auto.from_pretrained("zoo/old", **said), int8)
    hub.requests.clear()
    assert same(Auto.from_pretrained("zoo/old", **said, local_files_only=True), int8)
    assert hub.requests == []
    assert not list(hub.cache.rglob("blobs"))


@pytest.mark.parametrize("name", ["zoopress.json", "compressed.safetensors", "config.json"])
def test_wrong_bytes_are_refused_and_fetched_again(tiny: HubFixture, int8: Path, name: str) -> None:
    tiny.faults.add(Fault.flip(-3, path=name, method="GET", times=1))
    with pytest.raises((HubError, OSError), match=name):
        Auto.from_pretrained("zoo/tiny")
    if name != "config.json":  # which transformers reads before anybody asks us
        assert same(Auto.from_pretrained("zoo/tiny"), int8)


# Caches that several programs share


FETCHERS: dict[str, Callable[[], Any]] = {
    "snapshot_download": lambda: huggingface_hub.snapshot_download("zoo/tiny"),
    "hf download": lambda: subprocess.run(
        [Path(sys.executable).with_name("hf"), "download", "zoo/tiny"],
        check=True,
        capture_output=True,
    ),
    "one by one": lambda: [
        huggingface_hub.hf_hub_download("zoo/tiny", name)
        for name in huggingface_hub.list_repo_files("zoo/tiny")
    ],
    "transformers": lambda: Auto.from_pretrained("zoo/tiny"),
    "zoopress": lambda: zoopress.load("zoo/tiny"),
    "zoopress pull": lambda: pull("zoo/tiny", None, None),
}


@pytest.mark.parametrize("fetcher", FETCHERS)
def test_what_one_program_fetched_all_find_offline(
    tiny: HubFixture, int8: Path, fetcher: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    FETCHERS[fetcher]()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    tiny.requests.clear()
    assert same(zoopress.load("zoo/tiny"), int8)
    assert same(Auto.from_pretrained("zoo/tiny"), int8)
    assert same(zoopress.load("zoo/tiny", tiny.head("zoo/tiny")), int8)
    if fetcher in ("snapshot_download", "one by one", "zoopress pull"):
        found = Path(huggingface_hub.snapshot_download("zoo/tiny"))
        assert (found / "README.md").is_file()
    assert tiny.requests == []


def test_what_else_lies_in_a_repository_is_nobodys_harm(tiny: HubFixture, int8: Path) -> None:
    """A snapshot that another program fetched has all of it; nothing of that is ever opened."""
    tiny.commit("zoo/tiny", {"optimizer.pt": b"\x80\x04.", "runs/events.bin": b"x"})
    huggingface_hub.snapshot_download("zoo/tiny")
    assert same(zoopress.load("zoo/tiny"), int8)
    assert same(Auto.from_pretrained("zoo/tiny"), int8)


def test_a_part_that_another_program_fetched_is_told_as_such(
    tiny: HubFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("config.json", "zoopress.json"):
        huggingface_hub.hf_hub_download("zoo/tiny", name)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(HubError, match=r"the cache lacks compressed.safetensors.*HF_HUB_OFFLINE"):
        zoopress.load("zoo/tiny")


def test_a_file_damaged_in_the_cache_is_found_out(
    tiny: HubFixture, int8: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Path(huggingface_hub.snapshot_download("zoo/tiny"))
    weights = (folder / "compressed.safetensors").resolve()
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    assert same(zoopress.load("zoo/tiny"), int8), "fetched again"
    data[-2] ^= 1
    weights.write_bytes(data)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(HubError, match="differ from the digests"):
        zoopress.load("zoo/tiny")


# What the model is to be


@pytest.mark.parametrize("stages", [INT8, CODED])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, "float16"])
def test_a_model_computes_in_the_type_that_was_asked_for(
    made: Any, stages: str, dtype: Any
) -> None:
    wanted = getattr(torch, dtype) if isinstance(dtype, str) else dtype
    model = Auto.from_pretrained(made(stages), dtype=dtype)
    assert model.dtype == model.config.dtype == wanted
    found, expected = logits(model), logits(zoopress.load(made(stages), unpacking="all"))
    assert found.dtype == wanted
    bound = 1e-5 if wanted == torch.float64 else 2e-2
    assert (found.double() - expected.double()).abs().max() < bound * expected.abs().max()


def test_the_type_that_it_has_is_no_cast(int8: Path) -> None:
    for said in ({"dtype": "auto"}, {"dtype": torch.float32}, {"torch_dtype": "float32"}):
        assert same(Auto.from_pretrained(int8, **said), int8)


def test_a_dense_model_is_a_plain_one(int8: Path, tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="dequantize"):
        dense = Auto.from_pretrained(int8, quantization_config=ZoopressConfig(dequantize=True))
    again = Auto.from_pretrained(int8)
    assert packed_weights(again)
    again.dequantize()
    expected = logits(zoopress.load(int8, unpacking="all"))
    for model in (dense, again):
        assert not packed_weights(model)
        assert {type(m).__name__ for m in model.modules()} == {
            type(m).__name__ for m in _bert().modules()
        }
        assert torch.equal(logits(model), expected)
        folder = tmp_path / str(id(model))
        model.save_pretrained(folder)
        config = json.loads((folder / "config.json").read_text())
        assert "quantization_config" not in config
        assert torch.allclose(logits(Auto.from_pretrained(folder)), expected, atol=1e-6)
        model.train()
        model(input_ids=IDS, labels=torch.tensor([1])).loss.backward()


@pytest.mark.parametrize(
    "stages",
    [
        "[{technique: neuron_pruning, sparsity: 0.25}, {technique: weight_quantization, bits: 8}]",
        "[{technique: truncated_svd, rank: 8}, {technique: weight_quantization, bits: 8}]",
    ],
)
def test_a_dense_model_of_other_sizes_is_saved_as_what_it_is(
    made: Any, stages: str, tmp_path: Path
) -> None:
    with pytest.warns(UserWarning, match="dequantize"):
        model = Auto.from_pretrained(
            made(stages), quantization_config=ZoopressConfig(dequantize=True)
        )
    assert not packed_weights(model)
    expected = logits(zoopress.load(made(stages), dense=True))
    assert torch.allclose(logits(model), expected, atol=1e-6)
    model.save_pretrained(tmp_path / "saved")
    again = logits(Auto.from_pretrained(tmp_path / "saved"))
    # Its weights may be packed there again, and low-bit kernels round what they multiply.
    assert (again - expected).abs().max() < 0.02 * expected.abs().max()


def test_a_dense_model_in_another_type(int8: Path) -> None:
    with pytest.warns(UserWarning, match="dequantize"):
        model = Auto.from_pretrained(
            int8, quantization_config=ZoopressConfig(dequantize=True), dtype=torch.bfloat16
        )
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert logits(model).dtype == torch.bfloat16


HARMLESS: list[dict[str, Any]] = [
    {"device_map": "cpu"},
    {"device_map": "auto"},
    {"device_map": {"": "cpu"}},
    {"device_map": {"bert": "cpu", "classifier": "cpu"}},
    {"device_map": torch.device("cpu")},
    {"device_map": "balanced", "max_memory": {"cpu": "1GB"}},
    {"attn_implementation": "eager"},
    {"attn_implementation": "sdpa"},
    {"trust_remote_code": True},
    {"low_cpu_mem_usage": True},
    {"low_cpu_mem_usage": False},
    {"use_safetensors": True},
    {"weights_only": False},
    {"ignore_mismatched_sizes": True},
    {"disable_mmap": True},
    {"offload_folder": "somewhere", "offload_buffers": True},
    {"proxies": {"http": "http://127.0.0.1:9"}},
    {"output_attentions": True},
    {"adapter_kwargs": {}},
    {"adapter_name": "default"},
    {"experts_implementation": "eager"},
    {"generation_config": None},
    {"mirror": "nowhere"},
    {"allow_all_kernels": False},
]
REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"variant": "fp16"}, "variant='fp16'.*Leave it out"),
    ({"key_mapping": {"a": "b"}}, "key_mapping="),
    ({"use_safetensors": False}, "use_safetensors=False asks for pickled"),
    ({"fusion_config": {"patch_embeddings": True}}, "fusion_config="),
    ({"use_kernels": True}, "use_kernels=True"),
    ({"device_map": {"bert": "cpu", "classifier": "meta"}}, "onto one device"),
    ({"device_map": {"": "disk"}, "offload_folder": "x"}, "onto one device"),
    ({"num_labels": 7}, r"num_labels=7 \(it has 5\)|id2label="),
    ({"hidden_size": 64}, r"hidden_size=64 \(it has 32\)"),
    ({"num_labels": 7, "ignore_mismatched_sizes": True}, "do not fit"),
]


@pytest.mark.parametrize("said", HARMLESS, ids=str)
def test_what_changes_nothing_changes_nothing(int8: Path, said: dict[str, Any]) -> None:
    model = Auto.from_pretrained(int8, **said)
    expected = logits(zoopress.load(int8))
    assert torch.allclose(logits(model), expected, atol=1e-6)
    assert not [name for name, p in model.named_parameters() if p.is_meta]


@pytest.mark.parametrize(("said", "words"), REFUSED, ids=str)
def test_what_means_nothing_here_is_refused(int8: Path, said: dict[str, Any], words: str) -> None:
    with pytest.raises(ArtifactError, match=words):
        Auto.from_pretrained(int8, **said)


def test_every_argument_of_from_pretrained_is_known_here() -> None:
    """One that transformers adds has to be heard, refused, or shown to change nothing."""
    function = transformers.PreTrainedModel.from_pretrained.__func__
    taken = set(inspect.signature(function).parameters)
    taken |= set(re.findall(r'kwargs\.pop\("(\w+)"', inspect.getsource(function)))
    taken |= set(
        re.findall(r'"(\w+)"', re.search(r"for name in \[(.*?)\]", inspect.getsource(function))[1])
    )
    heard = {
        *("cache_dir", "force_download", "local_files_only", "token", "revision", "subfolder"),
        *("dtype", "torch_dtype", "quantization_config", "output_loading_info", "config"),
    }
    by_library = {"state_dict", "gguf_file", "tqdm_class", "pretrained_model_name_or_path"}
    refused = {name for said, _ in REFUSED for name in said} | _MEANINGLESS.keys()
    harmless = {name for said in HARMLESS for name in said}
    internal = {name for name in taken if name.startswith("_")} | {"cls", "model_args", "kwargs"}
    no_more = {"from_tf", "from_flax", "offload_state_dict"}
    assert taken <= heard | by_library | refused | harmless | internal | no_more


@pytest.mark.parametrize("stages", [INT8, CODED])
def test_a_pipeline_hears_it_too(hub: HubFixture, made: Any, stages: str, tmp_path: Path) -> None:
    write_tokenizer(tmp_path)
    files = {**files_of(made(stages)), **files_of(tmp_path)}
    hub.create_repo("zoo/piped", files)
    hub.add_user("alice", token=TOKEN, orgs=["zoo"])
    hub.repos["zoo/piped"].private = True
    classify = transformers.pipeline(
        "text-classification", model="zoo/piped", token=TOKEN, dtype=torch.float16
    )
    assert classify.model.dtype == torch.float16
    assert classify("many animals")[0]["label"].startswith("LABEL_")


def test_code_beside_a_model_never_runs(int8: Path, tmp_path: Path, plugins: Plugins) -> None:
    """The original's config named code; ours does not, whatever the caller trusts."""
    source = tmp_path / "bert"
    _bert().save_pretrained(source)
    config = json.loads((source / "config.json").read_text())
    config["auto_map"] = {"AutoModelForSequenceClassification": "evil.Evil"}
    (source / "config.json").write_text(json.dumps(config))
    (source / "evil.py").write_text("raise SystemExit('this was run')\n")
    (tmp_path / "card.yaml").write_text(
        "name: bert\nsource: path:bert\nmodel_class: BertForSequenceClassification\n"
        "data: {random: {input_ids: {shape: [9], dtype: int64, low: 3, high: 60}}, "
        "calibration_samples: 8, evaluation_samples: 16}\n"
    )
    (tmp_path / "recipe.yaml").write_text(f"stages: {INT8}\n")
    card = load_card(str(tmp_path / "card.yaml"), plugins)
    recipe = load_recipe(str(tmp_path / "recipe.yaml"), plugins)
    compress(card, recipe, tmp_path / "out", Store(tmp_path / "store"), plugins)
    artifact = tmp_path / "out" / "artifact"
    (artifact / "evil.py").write_text("raise SystemExit('this was run')\n")
    assert "auto_map" not in (artifact / "config.json").read_text()
    assert same(Auto.from_pretrained(artifact, trust_remote_code=True), artifact)


def test_sentence_transformers_hears_it_too(
    hub: HubFixture, tmp_path: Path, plugins: Plugins
) -> None:
    library = pytest.importorskip("sentence_transformers")
    source = tmp_path / "encoder"
    torch.manual_seed(0)
    transformers.BertModel(_bert().config).save_pretrained(source)
    write_tokenizer(source)
    (source / "modules.json").write_text(
        json.dumps(
            [
                {"idx": 0, "name": "0", "path": "", "type": f"{_MODULES}.Transformer"},
                {"idx": 1, "name": "1", "path": "1_Pooling", "type": f"{_MODULES}.Pooling"},
            ]
        )
    )
    (source / "1_Pooling").mkdir()
    pooling = {"word_embedding_dimension": 32, "pooling_mode_mean_tokens": True}
    (source / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    (tmp_path / "lines.txt").write_text(
        "\n".join(f"zoo many {'animals ' * i}" for i in range(1, 9))
    )
    (tmp_path / "card.yaml").write_text(
        "name: e\nsource: path:encoder\n"
        "data: {text: lines.txt, calibration_samples: 4, evaluation_samples: 4}\n"
    )
    (tmp_path / "recipe.yaml").write_text(f"stages: {INT8}\n")
    card = load_card(str(tmp_path / "card.yaml"), plugins)
    recipe = load_recipe(str(tmp_path / "recipe.yaml"), plugins)
    compress(card, recipe, tmp_path / "out", Store(tmp_path / "store"), plugins)
    artifact = tmp_path / "out" / "artifact"
    hub.add_user("alice", token=TOKEN, orgs=["zoo"])
    hub.create_repo("zoo/encoder", files_of(artifact), private=True)
    said = {"token": TOKEN, "cache_folder": str(tmp_path / "mine"), "device": "cpu"}
    model = library.SentenceTransformer("zoo/encoder", **said)
    expected = zoopress.load(artifact).encode("many animals")
    assert torch.allclose(model.encode("many animals", convert_to_tensor=True), expected, atol=1e-5)
    assert not list(hub.cache.rglob("blobs"))
    hub.requests.clear()
    again = library.SentenceTransformer("zoo/encoder", **said, local_files_only=True)
    assert torch.allclose(again.encode("many animals", convert_to_tensor=True), expected, atol=1e-5)
    here = zoopress.load("zoo/encoder", cache_dir=tmp_path / "mine", local_files_only=True)
    assert torch.equal(here.encode("many animals"), expected)
    assert not [r for r in hub.requests if not r.target.endswith("adapter_config.json")]


def test_a_branch_with_a_slash_is_a_revision(tiny: HubFixture, int8: Path) -> None:
    made = huggingface_hub.HfApi(token=TOKEN)
    tiny.add_user("alice", token=TOKEN, orgs=["zoo"])
    made.create_branch("zoo/tiny", branch="feature/x", token=TOKEN)
    tiny.requests.clear()
    assert same(Auto.from_pretrained("zoo/tiny", revision="feature/x"), int8)
    assert same(zoopress.load("zoo/tiny", "feature/x"), int8)
    assert same(zoopress.load("zoo/tiny", "feature/x", local_files_only=True), int8)
    with pytest.raises(HubError, match="has no branch, tag or commit 'feature/y'"):
        zoopress.load("zoo/tiny", "feature/y")
