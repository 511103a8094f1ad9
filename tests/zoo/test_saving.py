"""Compressed transformers models, saved again, made dense, and edited by other tools."""

from __future__ import annotations

import copy
import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
import yaml

import zoopress
from zoopress.artifacts.manifest import read_manifest
from zoopress.cards import load_card
from zoopress.errors import ArtifactError, ComputedWeightError
from zoopress.models.input_scale import input_changes
from zoopress.pipeline.compress import compress
from zoopress.plugins import Plugins
from zoopress.recipes import load_recipe
from zoopress.store import Store

SIZES = {"vocab_size": 60, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
TOKENS = torch.randint(3, 60, (4, 9), generator=torch.Generator().manual_seed(3))
IMAGES = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(3))


def _bert() -> Any:
    config = transformers.BertConfig(
        **SIZES, intermediate_size=48, max_position_embeddings=24, num_labels=5
    )
    return transformers.BertForSequenceClassification(config)


def _gpt2() -> Any:
    config = transformers.GPT2Config(vocab_size=60, n_embd=32, n_layer=2, n_head=4, n_positions=24)
    return transformers.GPT2LMHeadModel(config)


def _resnet() -> Any:
    config = transformers.ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic", num_labels=5
    )
    return transformers.ResNetForImageClassification(config)


MODELS = {"bert": _bert, "gpt2": _gpt2, "resnet": _resnet}
SVD = {"technique": "truncated_svd", "parameters": 0.6}
INT8 = {"technique": "weight_quantization", "kinds": ["linear", "conv", "embedding"]}
NEURONS = {"technique": "neuron_pruning", "sparsity": 0.25}
ROUNDED = {"technique": "activation_quantization", "max_harm": 1.0}
CHAINS: dict[str, list[dict[str, Any]]] = {
    "smoothed": [{"technique": "activation_smoothing", "strength": 0.5}],
    "rounded": [{"technique": "activation_smoothing", "strength": 0.5}, INT8, ROUNDED],
    "factored": [SVD],
    "packed": [INT8],
    "masked": [{"technique": "magnitude_pruning", "sparsity": 0.5}],
    "all": [NEURONS, SVD, INT8, {"technique": "entropy_coding"}],
    "folded": [{"technique": "batch_norm_folding"}],
}
CASES = [
    *((model, chain) for model in ("bert", "gpt2") for chain in ("factored", "packed", "all")),
    *(("bert", chain) for chain in ("masked", "smoothed", "rounded")),
    ("resnet", "folded"),
    ("resnet", "all"),
]
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning:transformers")  # met by peft
Make = Callable[[str, str], Path]


@pytest.fixture(scope="module")
def once(tmp_path_factory: pytest.TempPathFactory, plugins: Plugins) -> Make:
    """Return a function from a model and a chain to the artifact, which is made once."""
    tmp_path = tmp_path_factory.mktemp("saving")

    def make(model: str, chain: str) -> Path:
        out = tmp_path / f"{model}-{chain}"
        if out.exists():
            return out / "artifact"
        torch.manual_seed(0)
        built = MODELS[model]().eval()
        for parameter in built.parameters():  # biases and scales that show when they are lost
            parameter.data.add_(torch.randn_like(parameter) * 0.05)
        built.save_pretrained(tmp_path / model)
        shape = "[3, 16, 16]" if model == "resnet" else "[9], dtype: int64, low: 3, high: 60"
        name = "pixel_values" if model == "resnet" else "input_ids"
        (tmp_path / "card.yaml").write_text(
            f"name: tiny\nsource: path:{model}\n"
            f"data: {{random: {{{name}: {{shape: {shape}}}}}, calibration_samples: 8, "
            "evaluation_samples: 8}\n"
        )
        (tmp_path / "recipe.yaml").write_text(yaml.safe_dump({"stages": CHAINS[chain]}))
        with pytest.MonkeyPatch.context() as patch:  # no test looks at the report
            patch.setattr("zoopress.pipeline.workbench.evaluate", lambda *_: {})
            compress(
                load_card(str(tmp_path / "card.yaml"), plugins),
                load_recipe(str(tmp_path / "recipe.yaml"), plugins),
                out,
                Store(tmp_path / "store"),
                plugins,
            )
        return out / "artifact"

    return make


@pytest.fixture
def made(once: Make, tmp_path: Path) -> Make:
    """Return the same, each time with a folder of the test's own."""

    def make(model: str, chain: str) -> Path:
        return Path(shutil.copytree(once(model, chain), tmp_path / "artifact"))

    return make


def logits(module: Any) -> torch.Tensor:
    image = isinstance(module, transformers.ResNetForImageClassification)
    with torch.no_grad():
        found: torch.Tensor = module.eval()(IMAGES if image else TOKENS).logits
    return found


def opened(artifact: Path, how: str) -> Any:
    if how == "zoopress.load":
        return zoopress.load(artifact)
    return getattr(transformers, type_of(artifact)).from_pretrained(artifact)


def type_of(artifact: Path) -> str:
    return str(read_manifest(artifact).architecture.arguments["class"])


@pytest.mark.parametrize("how", ["zoopress.load", "from_pretrained"])
@pytest.mark.parametrize(("model", "chain"), CASES)
def test_a_model_that_was_opened_is_saved_as_what_it_is(
    made: Make, tmp_path: Path, model: str, chain: str, how: str
) -> None:
    artifact = made(model, chain)
    loaded = opened(artifact, how)
    before = logits(loaded)
    saved = tmp_path / "saved"
    loaded.save_pretrained(saved)
    for way in ("zoopress.load", "from_pretrained"):
        assert torch.equal(logits(opened(saved, way)), before)
    assert {p.name: p.read_bytes() for p in saved.iterdir()} == {
        name: (artifact / name).read_bytes()
        for name in (*read_manifest(artifact).files, "zoopress.json")
    }


@pytest.mark.parametrize(("model", "chain"), CASES)
def test_one_that_was_trained_meanwhile_is_saved_with_its_new_values(
    made: Make, tmp_path: Path, model: str, chain: str
) -> None:
    loaded = opened(made(model, chain), "zoopress.load")
    was = logits(loaded)
    with torch.no_grad():
        for parameter in loaded.parameters():
            parameter.add_(0.01)
    loaded.config.my_note = "mine"
    before = logits(loaded)
    assert not torch.equal(before, was)
    loaded.save_pretrained(tmp_path / "saved")
    kind = type(loaded).__name__
    ways = [opened_anyhow(tmp_path / "saved", kind)]
    if chain != "masked":  # which has ordinary weights now, and an ordinary checkpoint
        ways.append(zoopress.load(tmp_path / "saved"))
    for again in ways:
        assert torch.equal(logits(again), before)
        assert again.config.my_note == "mine"


@pytest.mark.parametrize("how", ["zoopress.load", "from_pretrained"])
@pytest.mark.parametrize(("model", "chain"), CASES)
def test_unpacked_it_is_an_ordinary_model_that_computes_the_same(
    made: Make, tmp_path: Path, model: str, chain: str, how: str
) -> None:
    artifact = made(model, chain)
    loaded = opened(artifact, how)
    before = logits(loaded)
    dense = loaded.dequantize() if how == "from_pretrained" else zoopress.unpack(loaded)
    assert dense is loaded
    plain = MODELS[model]()
    changes = {id(part) for part in input_changes(loaded).values()}
    assert bool(changes) == (chain == "rounded")  # what rounds inputs is no weight's
    kinds = [type(m) for m in loaded.modules() if id(m) not in changes]
    assert kinds == [type(m) for m in plain.modules()]
    # Low-bit kernels round what they multiply to bfloat16.
    assert (logits(loaded) - before).abs().max() < 0.02 * before.abs().max()
    before = logits(loaded)
    loaded.save_pretrained(tmp_path / "saved")
    again = opened_anyhow(tmp_path / "saved", type_of(artifact))
    if chain == "rounded":  # no ordinary model yet: its artifact is as small as it was
        again = again.dequantize()
    assert torch.equal(logits(again), before)
    if chain in ("factored", "packed"):  # its config says it all
        assert not (tmp_path / "saved" / "zoopress.json").exists()
        assert "quantization_config" not in json.loads(
            (tmp_path / "saved" / "config.json").read_text()
        )


def opened_anyhow(folder: Path, kind: str) -> Any:
    loaded, info = getattr(transformers, kind).from_pretrained(folder, output_loading_info=True)
    assert not info["missing_keys"]
    return loaded


def test_load_makes_it_dense_at_once(made: Make) -> None:
    artifact = made("gpt2", "all")
    one = zoopress.load(artifact, dense=True)
    assert torch.equal(logits(one), logits(zoopress.unpack(zoopress.load(artifact))))


@pytest.mark.parametrize("how", ["zoopress.load", "from_pretrained"])
def test_an_embedding_is_resized_only_where_that_is_not_lost(
    made: Make, tmp_path: Path, how: str
) -> None:
    loaded = opened(made("gpt2", "packed"), how)
    with pytest.raises(ComputedWeightError, match=r"zoopress\.unpack\(model\)"):
        loaded.resize_token_embeddings(64, mean_resizing=False)
    zoopress.unpack(loaded).resize_token_embeddings(64, mean_resizing=False)
    before = logits(loaded)
    assert before.shape[-1] == 64
    loaded.save_pretrained(tmp_path / "saved")
    again = transformers.GPT2LMHeadModel.from_pretrained(tmp_path / "saved")
    assert torch.equal(logits(again), before)


@pytest.mark.parametrize("chain", ["packed", "factored"])
def test_a_lora_is_merged_only_where_that_is_not_lost(made: Make, chain: str) -> None:
    peft = pytest.importorskip("peft")
    artifact = made("bert", chain)

    def adapted(model: Any) -> Any:
        config = peft.LoraConfig(r=2, target_modules=["query"], init_lora_weights=False)
        torch.manual_seed(1)
        return peft.get_peft_model(model, config)

    wrapped = adapted(zoopress.load(artifact, unpacking="none"))
    before = logits(wrapped)
    assert not torch.equal(before, logits(zoopress.load(artifact, unpacking="none")))
    with pytest.raises(ComputedWeightError, match=r"zoopress\.unpack\(model\)"):
        wrapped.merge_and_unload()
    dense = adapted(zoopress.load(artifact, dense=True))
    merged = dense.merge_and_unload()
    assert (logits(merged) - before).abs().max() < 0.02 * before.abs().max()


def test_what_neither_way_can_say_is_refused(made: Make, tmp_path: Path) -> None:
    loaded = opened(made("bert", "factored"), "zoopress.load")
    loaded.classifier = torch.nn.Linear(32, 7)
    with pytest.raises(ArtifactError, match=r"'classifier\.weight' is now \[7, 32\]"):
        loaded.save_pretrained(tmp_path / "saved")
    assert not list((tmp_path / "saved").iterdir())


def test_a_checkpoint_that_was_there_does_not_stay(made: Make, tmp_path: Path) -> None:
    artifact = made("bert", "factored")
    _bert().save_pretrained(tmp_path / "saved")
    loaded = opened(artifact, "zoopress.load")
    loaded.save_pretrained(tmp_path / "saved")
    assert not (tmp_path / "saved" / "model.safetensors").exists()
    assert torch.equal(logits(opened(tmp_path / "saved", "from_pretrained")), logits(loaded))


def test_without_the_folder_that_it_came_from_it_is_refused_with_the_way_out(
    made: Make, tmp_path: Path
) -> None:
    artifact = made("bert", "factored")
    loaded = opened(artifact, "zoopress.load")
    shutil.rmtree(artifact)
    with pytest.raises(ArtifactError, match=r"is gone.*zoopress\.unpack"):
        loaded.save_pretrained(tmp_path / "saved")
    before = logits(zoopress.unpack(loaded))
    loaded.save_pretrained(tmp_path / "saved")
    again = opened_anyhow(tmp_path / "saved", "BertForSequenceClassification")
    assert torch.equal(logits(again), before)


@pytest.mark.parametrize("how", ["zoopress.load", "from_pretrained"])
def test_copies_and_pickles_are_saved_as_themselves(made: Make, tmp_path: Path, how: str) -> None:
    loaded = opened(made("gpt2", "factored"), how)
    for number, other in enumerate((copy.deepcopy(loaded), pickle.loads(pickle.dumps(loaded)))):
        with torch.no_grad():
            other.transformer.ln_f.bias.add_(1)
        assert not torch.equal(logits(other), logits(loaded))
        other.save_pretrained(tmp_path / str(number))
        again = opened(tmp_path / str(number), "from_pretrained")
        assert torch.equal(logits(again), logits(other))


def test_the_transformer_of_a_sentence_encoder_is_saved_only_once_it_is_ordinary(
    tmp_path: Path, plugins: Plugins
) -> None:
    from zoopress.artifacts.again import Origin
    from zoopress.models.model import Model
    from zoopress_zoo.saving import keep_savable

    config = transformers.BertConfig(
        **SIZES, intermediate_size=48, max_position_embeddings=24, num_labels=5
    )
    core = transformers.BertModel(config).eval()
    model = Model(core, plugins.layers)
    weight = next(w for w in model.weights() if w.path.endswith("query"))
    up, down = torch.randn(32, 4), torch.randn(4, 32)
    tensors = {"down.weight": down, "up.weight": up, "up.bias": weight.module.bias}
    model.replace(weight.path, "factored_linear", {"rank": 4}, tensors)
    keep_savable(core, Origin(tmp_path, None, None), is_part=True)  # type: ignore[arg-type]
    with pytest.raises(ArtifactError, match=r"sentence encoder alone.*zoopress\.unpack"):
        core.save_pretrained(tmp_path / "saved")
    zoopress.unpack(core).save_pretrained(tmp_path / "saved")
    again = transformers.BertModel.from_pretrained(tmp_path / "saved")
    with torch.no_grad():
        assert torch.equal(again.eval()(TOKENS)[0], core(TOKENS)[0])
