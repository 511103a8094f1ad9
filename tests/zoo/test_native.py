"""Compressed models through transformers' own loading: natively, or by the registered quantizer."""

import json
import shutil
import subprocess
import sys
import venv
import zipfile
from pathlib import Path
from typing import Any

import pytest
import tokenizers
import torch
import transformers
from transformers import AutoConfig

import zoopress
from hub_server.fixtures import HubFixture
from zoopress.artifacts.artifact import load_artifact, save_artifact
from zoopress.artifacts.manifest import read_manifest
from zoopress.cards import load_card
from zoopress.errors import ArtifactError
from zoopress.pipeline.compress import compress
from zoopress.plugins import Plugins
from zoopress.recipes import load_recipe
from zoopress.store import Store

pytestmark = pytest.mark.usefixtures("brief_latency")

SIZES = {
    "vocab_size": 60,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 24,
}
TEXT = "{input_ids: {shape: [9], dtype: int64, low: 3, high: 60}}"
IMAGES = "{pixel_values: {shape: [3, 16, 16]}}"


def _bert() -> Any:
    config = transformers.BertConfig(**SIZES, num_labels=5)
    return transformers.BertForSequenceClassification(config)


def _gpt2() -> Any:
    config = transformers.GPT2Config(vocab_size=60, n_embd=32, n_layer=2, n_head=4, n_positions=24)
    return transformers.GPT2LMHeadModel(config)


def _llama() -> Any:
    return transformers.LlamaForCausalLM(
        transformers.LlamaConfig(**SIZES, num_key_value_heads=2, tie_word_embeddings=True)
    )


def _vit() -> Any:
    sizes = {key: SIZES[key] for key in SIZES if "vocab" not in key and "max" not in key}
    config = transformers.ViTConfig(**sizes, image_size=16, patch_size=8, num_labels=5)
    return transformers.ViTForImageClassification(config)


def _resnet() -> Any:
    config = transformers.ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic", num_labels=5
    )
    return transformers.ResNetForImageClassification(config)


MODELS = {
    "bert": (_bert, "AutoModelForSequenceClassification", TEXT),
    "gpt2": (_gpt2, "AutoModelForCausalLM", TEXT),
    "llama": (_llama, "AutoModelForCausalLM", TEXT),
    "vit": (_vit, "AutoModelForImageClassification", IMAGES),
    "resnet": (_resnet, "AutoModelForImageClassification", IMAGES),
}
CHAINS = {
    "bf16": "[{technique: float_precision}]",
    "neurons": "[{technique: neuron_pruning, sparsity: 0.25, include: ['INNER']}]",
    "neurons_bf16": "[{technique: neuron_pruning, sparsity: 0.25, include: ['INNER']}, "
    "{technique: float_precision}]",
    "int8": "[{technique: weight_quantization, bits: 8, kinds: [linear, conv, embedding]}]",
    "masked": "[{technique: magnitude_pruning, sparsity: 0.5}]",
    "all": "[{technique: neuron_pruning, sparsity: 0.25}, {technique: magnitude_pruning, "
    "sparsity: 0.5}, {technique: weight_quantization, bits: 4, group_size: 16}, "
    "{technique: entropy_coding}]",
    "bf16_int8": "[{technique: float_precision}, {technique: weight_quantization, bits: 8}]",
}
INNER = {"bert": "*.intermediate.*", "gpt2": "*.mlp.*"}
"""Neurons of which a config can say how many there are; BERT's pooler, for one, has none."""


def is_native(model: str, chain: str) -> bool:
    """Tell what an artifact should be: a ResNet's config gives widths to whole stages alone."""
    return chain == "bf16" or (chain.startswith("neurons") and model != "resnet")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, plugins: Plugins) -> Any:
    """Make artifacts by model and chain, each once."""
    root = tmp_path_factory.mktemp("native")

    def make(model: str, chain: str) -> Path:
        folder = root / model
        if not folder.exists():
            torch.manual_seed(0)
            MODELS[model][0]().save_pretrained(folder)
            if MODELS[model][2] is TEXT:
                write_tokenizer(folder)
            (root / f"{model}.yaml").write_text(
                f"name: {model}\nsource: path:{model}\n"
                f"data: {{random: {MODELS[model][2]}, calibration_samples: 8, "
                "evaluation_samples: 16}\n"
            )
        out = root / f"{model}-{chain}"
        if not out.exists():
            recipe = root / f"{model}-{chain}.yaml"
            stages = CHAINS[chain].replace("INNER", INNER.get(model, "*"))
            recipe.write_text(f"stages: {stages}\n")
            card = load_card(str(root / f"{model}.yaml"), plugins)
            compress(card, load_recipe(str(recipe), plugins), out, Store(root / "store"), plugins)
        return out / "artifact"

    return make


def write_tokenizer(folder: Path) -> None:
    words = {word: i for i, word in enumerate(["[PAD]", "[UNK]", "zoo", "animals", "many"])}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]"
    ).save_pretrained(folder)


def inputs(model: str, dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    if MODELS[model][2] is IMAGES:
        return {"pixel_values": torch.randn(2, 3, 16, 16, generator=generator).to(dtype)}
    return {"input_ids": torch.randint(3, 60, (2, 9), generator=generator)}


def logits(module: Any, model: str) -> torch.Tensor:
    with torch.inference_mode():
        result: torch.Tensor = module(**inputs(model, module.dtype)).logits
    return result


QUICK = {("gpt2", "neurons"), ("llama", "all"), *(("bert", chain) for chain in CHAINS)}
CASES = [
    pytest.param(model, chain, marks=() if (model, chain) in QUICK else pytest.mark.slow)
    for model in MODELS
    for chain in CHAINS
]


@pytest.mark.parametrize(("model", "chain"), CASES)
def test_transformers_computes_what_zoopress_does(made: Any, model: str, chain: str) -> None:
    artifact = made(model, chain)
    auto = getattr(transformers, MODELS[model][1])
    loaded, info = auto.from_pretrained(artifact, output_loading_info=True)
    assert {key: list(value) for key, value in info.items() if value} == {}
    assert not [name for name, p in loaded.named_parameters() if p.is_meta]
    assert torch.equal(logits(loaded, model), logits(zoopress.load(artifact), model))
    assert not loaded.training


@pytest.mark.parametrize(("model", "chain"), CASES)
def test_an_artifact_is_native_where_its_config_says_it_all(
    made: Any, model: str, chain: str
) -> None:
    artifact = made(model, chain)
    native = is_native(model, chain)
    assert bool(read_manifest(artifact).native) == native
    assert (artifact / "model.safetensors").exists() == native
    assert (artifact / "empty.safetensors").exists() != native
    config = json.loads((artifact / "config.json").read_text())
    assert ("quantization_config" in config) != native
    if chain != "all" and native:
        assert config["dtype"] == ("bfloat16" if "bf16" in chain else "float32")


def test_a_config_that_was_changed_says_the_new_size(made: Any) -> None:
    config = AutoConfig.from_pretrained(made("bert", "neurons"))
    assert (config.intermediate_size, config.hidden_size) == (36, 32)
    assert AutoConfig.from_pretrained(made("gpt2", "neurons")).n_inner == 96


def run_without_zoopress(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run code in a process that cannot import zoopress, as where it is not installed."""
    refuse = (
        "import sys\n"
        "class Refuse:\n"
        "    def find_spec(name, path=None, target=None):\n"
        "        if name.partition('.')[0].startswith('zoopress'):\n"
        "            raise ModuleNotFoundError(name)\n"
        "sys.meta_path[:] = [Refuse] + [f for f in sys.meta_path if 'zoopress' not in str(f)]\n"
        "sys.modules.pop('zoopress_zoo.autoload', None); sys.modules.pop('zoopress_zoo', None)\n"
    )
    return subprocess.run(
        [sys.executable, "-c", refuse + code, *arguments],
        capture_output=True,
        text=True,
        check=False,
    )


LOAD = """
from transformers import AutoModelForSequenceClassification
import torch
model = AutoModelForSequenceClassification.from_pretrained(sys.argv[1])
ids = torch.arange(3, 12)[None]
print(float(model(input_ids=ids).logits.detach().double().sum()))
"""


def test_a_native_model_needs_no_zoopress(made: Any) -> None:
    artifact = made("bert", "neurons_bf16")
    done = run_without_zoopress(LOAD, str(artifact))
    assert done.returncode == 0, done.stderr
    with torch.inference_mode():
        expected = zoopress.load(artifact)(input_ids=torch.arange(3, 12)[None]).logits
    assert float(done.stdout.split()[-1]) == float(expected.double().sum())


def test_another_fails_without_zoopress_instead_of_computing_nonsense(made: Any) -> None:
    done = run_without_zoopress(LOAD, str(made("bert", "int8")))
    assert done.returncode != 0
    assert "model.safetensors" in done.stderr


@pytest.mark.slow
def test_zoopress_need_not_be_imported(made: Any) -> None:
    code = LOAD + "assert 'zoopress.loading' not in sys.modules\n"
    done = subprocess.run(
        [sys.executable, "-c", "import sys\n" + code, str(made("bert", "all"))],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_transformers_works_whatever_is_wrong_with_zoopress() -> None:
    code = (
        "import sys, warnings; sys.modules['zoopress_zoo.transformers_quantizer'] = None\n"
        "with warnings.catch_warnings(record=True) as caught:\n"
        "    warnings.simplefilter('always')\n"
        "    from transformers.quantizers.auto import AUTO_QUANTIZER_MAPPING\n"
        "assert 'zoopress' not in AUTO_QUANTIZER_MAPPING and 'gptq' in AUTO_QUANTIZER_MAPPING\n"
        "assert any('could not register' in str(w.message) for w in caught)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_an_installed_wheel_is_found_by_transformers(made: Any, tmp_path: Path) -> None:
    root = Path(__file__).parents[2]
    quiet = ["-q", "--disable-pip-version-check"]
    pip = [sys.executable, "-m", "pip"]
    wheels = ["wheel", *quiet, "--no-deps", "-w", str(tmp_path), str(root)]
    subprocess.run([*pip, *wheels], check=True, capture_output=True)
    home = tmp_path / "environment"
    venv.create(home, with_pip=False)
    [packages] = home.glob("lib/python*/site-packages")
    [wheel] = tmp_path.glob("zoopress-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(packages)  # what installing it does, with all else from outside
    # A path alone: what this environment runs at its start is not run there.
    (packages / "outside.pth").write_text(f"{Path(pytest.__file__).parents[1]}\n")
    done = subprocess.run(
        [home / "bin" / "python", "-c", "import sys\n" + LOAD, str(made("bert", "all"))],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr


def test_nothing_is_imported_where_transformers_is_not() -> None:
    code = "import sys; print([m for m in sys.modules if m.startswith('zoopress')])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "['zoopress_zoo', 'zoopress_zoo.autoload']"


def test_a_pipeline_takes_it(made: Any) -> None:
    classify = transformers.pipeline("text-classification", model=str(made("bert", "all")))
    [answer] = classify("many animals")
    assert answer["label"].startswith("LABEL_")


def test_from_the_hub_by_name(hub: HubFixture, made: Any) -> None:
    artifact = made("bert", "all")
    files = {p.name: p.read_bytes() for p in artifact.iterdir() if p.is_file()}
    hub.create_repo("zoo/tiny", files, large=["model.zpz"])
    hub.tag("zoo/tiny", "v1")
    auto = transformers.AutoModelForSequenceClassification
    loaded = auto.from_pretrained("zoo/tiny", revision="v1")
    assert torch.equal(logits(loaded, "bert"), logits(zoopress.load(artifact), "bert"))
    again = zoopress.load("zoo/tiny", "v1")
    assert torch.equal(logits(again, "bert"), logits(loaded, "bert"))
    hub.requests.clear()
    commit = hub.head("zoo/tiny")
    assert torch.equal(logits(zoopress.load("zoo/tiny", commit), "bert"), logits(loaded, "bert"))
    assert hub.requests == []


def test_another_class_is_refused_with_the_right_one(made: Any) -> None:
    with pytest.raises(ArtifactError, match="compressed as BertForSequenceClassification"):
        transformers.AutoModel.from_pretrained(made("bert", "int8"))


def test_one_device_may_be_chosen_and_several_may_not(made: Any) -> None:
    pytest.importorskip("accelerate")
    auto = transformers.AutoModelForSequenceClassification
    loaded = auto.from_pretrained(made("bert", "int8"), device_map="cpu")
    assert torch.equal(logits(loaded, "bert"), logits(zoopress.load(made("bert", "int8")), "bert"))


def test_a_damaged_artifact_is_refused_here_too(made: Any, tmp_path: Path) -> None:
    artifact = tmp_path / "artifact"
    shutil.copytree(made("bert", "int8"), artifact)
    path = artifact / "compressed.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(ArtifactError, match="SHA-256 differs"):
        transformers.AutoModelForSequenceClassification.from_pretrained(artifact)


def test_shards_have_an_index_that_transformers_reads(
    made: Any, tmp_path: Path, plugins: Plugins
) -> None:
    model, architecture, manifest = load_artifact(made("bert", "neurons"), plugins)
    others = {
        name: made("bert", "neurons") / name
        for name in manifest.files.keys() - set(manifest.weights)
    }
    save_artifact(tmp_path, model, architecture, manifest.base, others, manifest.lineage, 8000)
    saved = read_manifest(tmp_path)
    assert saved.native
    assert len(saved.weights) > 3
    auto = transformers.AutoModelForSequenceClassification
    loaded, info = auto.from_pretrained(tmp_path, output_loading_info=True)
    assert {key: list(value) for key, value in info.items() if value} == {}
    expected = logits(zoopress.load(made("bert", "neurons")), "bert")
    assert torch.equal(logits(loaded, "bert"), expected)
    assert torch.equal(logits(zoopress.load(tmp_path), "bert"), expected)


def test_a_model_of_several_text_parts_is_not_called_on_made_up_tokens() -> None:
    from zoopress_zoo.opening import _tokens

    parts = {"text_encoder": AutoConfig.for_model("t5"), "audio_encoder": {"model_type": "encodec"}}
    parts = {
        name: part if isinstance(part, dict) else part.to_dict() for name, part in parts.items()
    }
    config = transformers.MusicgenConfig(**parts, decoder={"model_type": "musicgen_decoder"})

    class Core(torch.nn.Module):
        main_input_name = "input_ids"

    core = Core()
    core.config = config  # type: ignore[assignment]
    with pytest.raises(ValueError, match="Multiple valid text configs"):
        config.get_text_config()
    found = _tokens(core, 12)
    assert found is None or int(found["input_ids"].max()) < config.decoder.vocab_size
