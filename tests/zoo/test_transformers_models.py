"""Any model of transformers: which class, what is loaded, and what is refused."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from zoopress.cards import Card
from zoopress.errors import ArtifactError, SourceError, ZoopressError
from zoopress.plugins import Plugins
from zoopress.sources import Architecture, SourceFiles, build_on_meta, detect_architecture, pull
from zoopress_zoo.transformers_config import make_config
from zoopress_zoo.transformers_models import Transformers

hub = pytest.importorskip("transformers")

# Sizes of the smallest models, under the names that most configs have for them.
TEXT = {
    "vocab_size": 40,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 32,
    "pad_token_id": 0,
}
DECODER = TEXT | {"num_key_value_heads": 1, "bos_token_id": 1, "eos_token_id": 2}
PICTURE = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "image_size": 16,
    "patch_size": 8,
}
BART = {
    "vocab_size": 40,
    "d_model": 16,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 24,
    "decoder_ffn_dim": 24,
    "max_position_embeddings": 32,
    "pad_token_id": 1,
    "bos_token_id": 0,
    "eos_token_id": 2,
    "decoder_start_token_id": 2,
    "forced_eos_token_id": 2,
}
SOUND = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "conv_dim": (8, 8),
    "conv_stride": (5, 2),
    "conv_kernel": (10, 3),
    "num_feat_extract_layers": 2,
    "num_conv_pos_embeddings": 8,
    "num_conv_pos_embedding_groups": 2,
    "vocab_size": 12,
}
FAMILIES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "bert": ("Bert", "BertForSequenceClassification", TEXT),
    "roberta": ("Roberta", "RobertaForMaskedLM", TEXT),
    "distilbert": (
        "DistilBert",
        "DistilBertForQuestionAnswering",
        {"vocab_size": 40, "dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 24},
    ),
    "deberta-v2": ("DebertaV2", "DebertaV2ForTokenClassification", TEXT | {"type_vocab_size": 0}),
    "electra": ("Electra", "ElectraForPreTraining", TEXT | {"embedding_size": 8}),
    "albert": ("Albert", "AlbertForMaskedLM", TEXT | {"embedding_size": 8}),
    "mpnet": ("MPNet", "MPNetModel", TEXT),
    "modernbert": ("ModernBert", "ModernBertForMaskedLM", TEXT),
    "gpt2": (
        "GPT2",
        "GPT2LMHeadModel",
        {"vocab_size": 40, "n_positions": 32, "n_embd": 16, "n_layer": 2, "n_head": 2}
        | {"bos_token_id": 1, "eos_token_id": 2},
    ),
    "gpt_neox": ("GPTNeoX", "GPTNeoXForCausalLM", TEXT | {"bos_token_id": 1, "eos_token_id": 2}),
    "opt": (
        "OPT",
        "OPTForCausalLM",
        TEXT | {"ffn_dim": 24, "word_embed_proj_dim": 16, "bos_token_id": 1, "eos_token_id": 2},
    ),
    "llama": ("Llama", "LlamaForCausalLM", DECODER),
    "llama-tied": ("Llama", "LlamaForCausalLM", DECODER | {"tie_word_embeddings": True}),
    "mistral": ("Mistral", "MistralForCausalLM", DECODER),
    "qwen2": ("Qwen2", "Qwen2ForCausalLM", DECODER),
    "gemma": ("Gemma", "GemmaForCausalLM", DECODER | {"head_dim": 8}),
    "mixtral": (
        "Mixtral",
        "MixtralForCausalLM",
        DECODER | {"num_local_experts": 2, "num_experts_per_tok": 1},
    ),
    "mamba": (
        "Mamba",
        "MambaForCausalLM",
        {"vocab_size": 40, "hidden_size": 16, "state_size": 4, "num_hidden_layers": 2}
        | {"pad_token_id": 0, "bos_token_id": 0, "eos_token_id": 0},
    ),
    "mamba2": (  # its config has an infinite number
        "Mamba2",
        "Mamba2ForCausalLM",
        {"vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 1, "num_heads": 4}
        | {"head_dim": 8, "state_size": 8, "n_groups": 1}
        | {"pad_token_id": 0, "bos_token_id": 0, "eos_token_id": 0},
    ),
    "t5": (
        "T5",
        "T5ForConditionalGeneration",
        {"vocab_size": 40, "d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 2, "num_heads": 2}
        | {"decoder_start_token_id": 0},
    ),
    "bart": ("Bart", "BartForConditionalGeneration", BART),
    "marian": ("Marian", "MarianMTModel", BART),
    "whisper": (
        "Whisper",
        "WhisperForConditionalGeneration",
        BART
        | {"num_mel_bins": 8, "max_source_positions": 16, "max_target_positions": 16}
        | {"begin_suppress_tokens": [1, 2], "suppress_tokens": [3]},
    ),
    "wav2vec2": ("Wav2Vec2", "Wav2Vec2ForCTC", SOUND),
    "hubert": ("Hubert", "HubertForSequenceClassification", SOUND),
    "vit": ("ViT", "ViTForImageClassification", PICTURE),
    "deit": ("DeiT", "DeiTForImageClassification", PICTURE),
    "resnet": (
        "ResNet",
        "ResNetForImageClassification",
        {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "num_labels": 3},
    ),
    "convnext": (
        "ConvNext",
        "ConvNextForImageClassification",
        {"hidden_sizes": [8, 16], "depths": [1, 1], "num_stages": 2},
    ),
    "segformer": (
        "Segformer",
        "SegformerForSemanticSegmentation",
        {"hidden_sizes": [8, 16], "depths": [1, 1], "num_encoder_blocks": 2, "sr_ratios": [2, 1]}
        | {"num_attention_heads": [1, 2], "patch_sizes": [3, 3], "strides": [2, 2]}
        | {"mlp_ratios": [2, 2], "decoder_hidden_size": 8},
    ),
    "clip": (
        "CLIP",
        "CLIPModel",
        {"text_config": TEXT | {"eos_token_id": 2}, "vision_config": PICTURE, "projection_dim": 8},
    ),
}


def _make(family: str, name: str = "") -> Any:
    """Return a tiny random model, every parameter its own."""
    config, usual, arguments = FAMILIES[family]
    torch.manual_seed(0)
    model = getattr(hub, name or usual)(getattr(hub, f"{config}Config")(**arguments)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:  # those that do not are computed, never saved
                parameter.normal_(std=0.1)
    return model


def _save(family: str, folder: Path, name: str = "") -> Any:
    model = _make(family, name)
    model.save_pretrained(folder)
    return model


def _open(folder: Path, plugins: Plugins, **card: Any) -> tuple[Architecture, SourceFiles]:
    given = Card(name="x", source=f"path:{folder}", **card)
    files = pull(given, plugins)
    return detect_architecture(given, files, plugins), files


def _load(folder: Path, plugins: Plugins, **card: Any) -> Any:
    architecture, files = _open(folder, plugins, **card)
    return architecture.load(files)


def _edit(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    path = folder / "config.json"
    config = json.loads(path.read_text())
    change(config)
    path.write_text(json.dumps(config))


def _same(first: nn.Module, second: nn.Module) -> bool:
    """Return whether two models have the same tensors."""
    mine, other = first.state_dict(), second.state_dict()
    return mine.keys() == other.keys() and all(mine[n].equal(other[n]) for n in mine)


@pytest.mark.parametrize("family", FAMILIES)
def test_families_load_as_they_were_saved(family: str, tmp_path: Path, plugins: Plugins) -> None:
    model = _save(family, tmp_path)
    architecture, files = _open(tmp_path, plugins)
    assert isinstance(architecture, Transformers)
    built = build_on_meta(architecture)
    loaded = architecture.load(files)
    assert architecture.arguments == {"class": type(model).__name__}
    assert type(loaded) is type(model)
    assert built.state_dict().keys() == loaded.state_dict().keys()
    assert _same(loaded, model)
    assert not loaded.training
    assert all(not tensor.is_meta for tensor in loaded.state_dict().values())


# --- which class


def _forget_class(config: dict[str, Any]) -> None:
    del config["architectures"]


@pytest.mark.parametrize(
    ("family", "card", "chosen"),
    [
        ("bert", {"model_class": "AutoModelForSequenceClassification"}, ""),
        ("bert", {"model_class": "AutoModel"}, "BertModel"),
        ("bert", {"model_class": "BertModel"}, "BertModel"),
        ("bert", {"pipeline_tag": "text-classification"}, ""),
        ("bert", {"pipeline_tag": "feature-extraction"}, "BertModel"),
        ("bert", {"pipeline_tag": "no-such-task"}, "BertModel"),
        ("bert", {"pipeline_tag": "text-to-image"}, "BertModel"),
        ("bert", {}, "BertModel"),
        ("roberta", {"pipeline_tag": "fill-mask"}, ""),
        ("llama", {"pipeline_tag": "text-generation"}, ""),
        ("bart", {"pipeline_tag": "summarization"}, ""),
        ("wav2vec2", {"pipeline_tag": "automatic-speech-recognition"}, ""),
        ("whisper", {"pipeline_tag": "automatic-speech-recognition"}, ""),
        ("vit", {"pipeline_tag": "image-classification"}, ""),
        ("segformer", {"pipeline_tag": "image-segmentation"}, ""),
        ("clip", {"model_class": "CLIPTextModel"}, "CLIPTextModel"),
    ],
)
def test_the_class_comes_from_card_or_task(
    family: str, card: dict[str, str], chosen: str, tmp_path: Path, plugins: Plugins
) -> None:
    _save(family, tmp_path)
    _edit(tmp_path, _forget_class)
    architecture, files = _open(tmp_path, plugins, **card)
    loaded = architecture.load(files)
    assert type(loaded).__name__ == (chosen or FAMILIES[family][1])
    # An artifact records the class itself, whether it was built or loaded.
    assert architecture.arguments == {"class": type(loaded).__name__}
    again, _ = _open(tmp_path, plugins, **card)
    assert build_on_meta(again).state_dict().keys() == loaded.state_dict().keys()
    assert again.arguments == architecture.arguments


def test_the_class_of_the_config_comes_before_the_task(tmp_path: Path, plugins: Plugins) -> None:
    _save("bert", tmp_path)
    loaded = _load(tmp_path, plugins, pipeline_tag="fill-mask")
    assert type(loaded).__name__ == "BertForSequenceClassification"


def test_a_class_of_no_transformers_leaves_it_to_the_task(tmp_path: Path, plugins: Plugins) -> None:
    _save("t5", tmp_path)
    _edit(tmp_path, lambda config: config.update(architectures=["T5WithLMHeadModel"]))
    loaded = _load(tmp_path, plugins, pipeline_tag="translation")
    assert type(loaded).__name__ == "T5ForConditionalGeneration"


@pytest.mark.parametrize(
    ("card", "message"),
    [
        ({"model_class": "BertModell"}, "'BertModell' is not a model class.*mean 'BertModel'"),
        ({"model_class": "BertConfig"}, "is not a model class"),
        ({"model_class": "AutoConfig"}, "is not a model class"),
        ({"model_class": "AutoTokenizer"}, "is not a model class"),
        ({"model_class": "PreTrainedModel"}, "is not a model class"),
        ({"model_class": "GPT2Model"}, "GPT2Model is for models of type 'gpt2'.*type 'bert'"),
        ({"model_class": "AutoModelForSpeechSeq2Seq"}, "has no AutoModelForSpeechSeq2Seq"),
    ],
)
def test_a_class_that_does_not_fit_is_refused(
    card: dict[str, str], message: str, tmp_path: Path, plugins: Plugins
) -> None:
    _save("bert", tmp_path)
    with pytest.raises(ZoopressError, match=message):
        _load(tmp_path, plugins, **card)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "berd", "architectures": None}, r"no models of type 'berd'.*mean 'bert'"),
        ({"model_type": None, "architectures": None}, "has no 'model_type'"),
        ({"model_type": ["bert"], "architectures": None}, "no models of type"),
        ({"hidden_size": "large"}, "hidden_size|cannot load it"),
        ({"architectures": ["MyBert"], "auto_map": {"AutoModel": "m.MyBert"}}, "Python code"),
        (
            {"architectures": None, "model_type": "x", "auto_map": {"AutoModel": "m.My"}},
            "Python code",
        ),
    ],
)
def test_a_config_that_says_too_little_or_nonsense_is_refused(
    change: dict[str, Any], message: str, tmp_path: Path, plugins: Plugins
) -> None:
    _save("bert", tmp_path)
    _edit(tmp_path, lambda config: config.update(change))
    with pytest.raises(SourceError, match=message):
        _load(tmp_path, plugins)


def test_a_class_of_its_own_may_be_replaced_by_the_user(tmp_path: Path, plugins: Plugins) -> None:
    model = _save("bert", tmp_path)
    _edit(
        tmp_path,
        lambda c: c.update(architectures=["MyBert"], auto_map={"AutoModel": "mine.MyBert"}),
    )
    assert _same(_load(tmp_path, plugins, model_class="BertForSequenceClassification"), model)


def test_a_class_that_needs_another_package_says_so(
    tmp_path: Path, plugins: Plugins, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Library:
        """Transformers, as if one class needed more than is installed."""

        def __getattr__(self, name: str) -> Any:
            if name == "BertForPreTraining":
                raise ModuleNotFoundError("it requires the no_such library")
            return getattr(hub, name)

        def __dir__(self) -> list[str]:
            return dir(hub)

    _save("bert", tmp_path)
    monkeypatch.setattr("zoopress_zoo.transformers_classes.library", Library)
    with pytest.raises(SourceError, match=r"BertForPreTraining.*requires the no_such library"):
        _load(tmp_path, plugins, model_class="BertForPreTraining")


def test_an_artifact_that_names_no_model_class_is_refused(tmp_path: Path) -> None:
    _save("bert", tmp_path)
    for name in ("os.system", "BertConfig", "nn", "MyBert", "__init__", 3, ["BertModel"]):
        with pytest.raises(ArtifactError, match="is not a model class"):
            build_on_meta(Transformers(tmp_path, {"class": name}))


# --- what is loaded


def test_a_head_that_the_weights_lack_is_an_error(tmp_path: Path, plugins: Plugins) -> None:
    _save("bert", tmp_path, "BertModel")
    with pytest.raises(SourceError, match=r"lack classifier\.bias, classifier\.weight.*fine-tuned"):
        _load(tmp_path, plugins, model_class="BertForSequenceClassification")


def test_a_head_that_nobody_asked_for_is_left_out(tmp_path: Path, plugins: Plugins) -> None:
    model = _save("llama", tmp_path)
    assert _same(_load(tmp_path, plugins, model_class="LlamaModel"), model.model)


def test_weights_of_another_size_are_an_error(tmp_path: Path, plugins: Plugins) -> None:
    _save("bert", tmp_path)
    _edit(tmp_path, lambda config: config.update(hidden_size=32))
    with pytest.raises(SourceError, match=r"32|mismatch|size"):
        _load(tmp_path, plugins)


def test_old_checkpoints_load(tmp_path: Path, plugins: Plugins) -> None:
    """Of 2018: LayerNorm's gamma and beta, pickled, with a prefix that the class has not."""
    model = _save("bert", tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    (tmp_path / "model.safetensors").unlink()
    old = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace(
            "LayerNorm.bias", "LayerNorm.beta"
        ): tensor
        for name, tensor in tensors.items()
    }
    torch.save(old, tmp_path / "pytorch_model.bin")
    assert _same(_load(tmp_path, plugins), model)
    assert _same(_load(tmp_path, plugins, model_class="BertModel"), model.bert)
    torch.save(
        {name.removeprefix("bert."): tensor for name, tensor in old.items()},
        tmp_path / "pytorch_model.bin",
    )
    assert _same(_load(tmp_path, plugins), model)


@pytest.mark.parametrize("pickled", [False, True])
def test_shards_load(pickled: bool, tmp_path: Path, plugins: Plugins) -> None:
    model = _make("llama")
    model.save_pretrained(tmp_path, max_shard_size="8KB")
    if pickled:
        index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
        (tmp_path / "model.safetensors.index.json").unlink()
        for name in sorted(set(index["weight_map"].values())):
            new = name.replace("model-", "pytorch_model-").replace(".safetensors", ".bin")
            torch.save(load_file(tmp_path / name), tmp_path / new)
            (tmp_path / name).unlink()
        text = json.dumps(index).replace("model-", "pytorch_model-").replace(".safetensors", ".bin")
        (tmp_path / "pytorch_model.bin.index.json").write_text(text)
    _, files = _open(tmp_path, plugins)
    assert len(files.weights) > 2
    assert _same(_load(tmp_path, plugins), model)


def test_a_file_of_weights_may_have_any_name(tmp_path: Path, plugins: Plugins) -> None:
    model = _save("llama", tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / "model.fp16.safetensors")
    assert _same(_load(tmp_path, plugins), model)
    assert _same(_load(tmp_path / "model.fp16.safetensors", plugins), model)


def test_an_index_that_leads_elsewhere_is_refused(tmp_path: Path, plugins: Plugins) -> None:
    _make("llama").save_pretrained(tmp_path, max_shard_size="8KB")
    path = tmp_path / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    index["weight_map"] = dict.fromkeys(index["weight_map"], "../secret.safetensors")
    path.write_text(json.dumps(index))
    with pytest.raises(SourceError, match=r"names '\.\./secret\.safetensors'"):
        _load(tmp_path, plugins)


def test_generation_settings_stay_with_the_model(tmp_path: Path, plugins: Plugins) -> None:
    model = _make("gpt2")
    model.generation_config.eos_token_id = [2, 7]
    model.save_pretrained(tmp_path)
    architecture, files = _open(tmp_path, plugins)
    assert "generation_config.json" in files.others
    loaded: Any = architecture.load(files)
    assert loaded.generation_config.eos_token_id == [2, 7]
    rebuilt: Any = architecture.finish(build_on_meta(architecture))
    assert rebuilt.generation_config.eos_token_id == [2, 7]
    (tmp_path / "generation_config.json").write_text('{"num_beams": ')
    with pytest.raises(SourceError, match="generation_config"):
        architecture.finish(rebuilt)


def test_an_adapter_beside_the_weights_is_left_alone(tmp_path: Path, plugins: Plugins) -> None:
    model = _save("bert", tmp_path)
    (tmp_path / "adapter_config.json").write_text('{"base_model_name_or_path": "org/other"}')
    save_file({"x": torch.zeros(1)}, tmp_path / "adapter_model.safetensors")
    assert _same(_load(tmp_path, plugins), model)


# --- what is not trusted


class _Hostile:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.marker),)


def test_a_pickle_that_runs_code_is_refused_and_runs_nothing(
    tmp_path: Path, plugins: Plugins
) -> None:
    _save("bert", tmp_path / "m")
    (tmp_path / "m" / "model.safetensors").unlink()
    marker = tmp_path / "ran"
    hostile = {"bert.pooler.dense.weight": _Hostile(marker)}
    for write in (
        lambda path: torch.save(hostile, path),
        lambda path: path.write_bytes(pickle.dumps(hostile)),
    ):
        write(tmp_path / "m" / "pytorch_model.bin")
        with pytest.raises(SourceError, match="cannot load it"):
            _load(tmp_path / "m", plugins)
        assert not marker.exists()


@pytest.mark.parametrize("method", ["bitsandbytes", "gptq", "awq", "fp8", "compressed-tensors"])
def test_weights_that_are_quantized_already_are_refused(
    method: str, tmp_path: Path, plugins: Plugins
) -> None:
    _save("llama", tmp_path)
    _edit(tmp_path, lambda config: config.update(quantization_config={"quant_method": method}))
    with pytest.raises(SourceError, match=f"already quantized .{method}.*unquantized model"):
        _open(tmp_path, plugins)


def test_a_config_never_makes_transformers_fetch_anything(tmp_path: Path, plugins: Plugins) -> None:
    _save("bert", tmp_path)
    _edit(
        tmp_path,
        lambda config: config.update(
            auto_map={"AutoModelForSequenceClassification": "evil.Evil"},
            attn_implementation="org/kernel",
            _attn_implementation="org/kernel",
            transformers_weights="../elsewhere.safetensors",
            fusion_config={"patch_embeddings": True},
            use_kernels=True,
        ),
    )
    (tmp_path / "evil.py").write_text("raise SystemExit")
    loaded = _load(tmp_path, plugins)
    assert loaded.config._attn_implementation in ("sdpa", "eager")


@pytest.mark.parametrize("name", ["org/backbone", "hf-hub:x", "local-dir:x", "../x"])
def test_a_backbone_elsewhere_is_refused(name: str, tmp_path: Path, plugins: Plugins) -> None:
    _save("bert", tmp_path)
    _edit(tmp_path, lambda config: config.update(decoder={"backbone": name}))
    with pytest.raises(SourceError, match="a model elsewhere"):
        _load(tmp_path, plugins)


def test_finding_the_architecture_imports_nothing_heavy(tmp_path: Path) -> None:
    _save("bert", tmp_path)
    script = f"""
import sys
from zoopress.cards import Card
from zoopress.plugins import load_plugins
from zoopress.sources import detect_architecture, pull
plugins = load_plugins()
card = Card(name="x", source="path:{tmp_path}", pipeline_tag="fill-mask")
print(detect_architecture(card, pull(card, plugins), plugins).arguments)
assert not {{"torch", "transformers"}} & sys.modules.keys(), "imported"
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "BertForSequenceClassification" in done.stdout


def test_a_part_of_a_composed_model_is_found_under_any_of_its_names() -> None:
    from transformers import ClvpEncoder

    small = {"model_type": "clvp_encoder", "hidden_size": 24}
    config = {"model_type": "clvp", "speech_config": small}
    assert make_config(ClvpEncoder, config, Path("config.json")).hidden_size == 24
