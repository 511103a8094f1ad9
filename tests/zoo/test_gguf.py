"""Models from GGUF files: dequantized, and ordinary afterwards."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import zoopress
from zoopress.artifacts.artifact import save_artifact
from zoopress.artifacts.manifest import Base
from zoopress.cards import Card
from zoopress.errors import SourceError
from zoopress.models.model import Model
from zoopress.plugins import Plugins
from zoopress.sources import Architecture, SourceFiles, build_on_meta, detect_architecture, pull
from zoopress_zoo.gguf import Gguf
from zoopress_zoo.sentence_encoder import load_tokenizer

pytest.importorskip("transformers")

WIDTH, HEADS, LAYERS, INNER = 32, 2, 2, 64
WORDS = ["<unk>", "<s>", "</s>", "a", "b", "c", "Ġ", "ab", "Ġa"]


def _library() -> Any:
    pytest.importorskip("accelerate")
    return pytest.importorskip("gguf")


def _write(path: Path, tokenizer: bool = True, kind: str = "llama") -> dict[str, Any]:
    """Write a tiny random Llama, its matrices in Q8_0, and return the values that it stands for."""
    gguf = _library()
    writer = gguf.GGUFWriter(path, kind)
    writer.add_context_length(64)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(WIDTH // HEADS)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(len(WORDS))
    if tokenizer:
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre("default")
        writer.add_token_list(WORDS)
        writer.add_token_types([3, 3, 3, *[1] * (len(WORDS) - 3)])
        writer.add_token_merges(["a b", "Ġ a"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    draw = np.random.default_rng(0)
    meant = {}
    shapes = {"token_embd": (len(WORDS), WIDTH), "output": (len(WORDS), WIDTH)}
    for layer in range(LAYERS):
        for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
            shapes[f"blk.{layer}.{name}"] = (WIDTH, WIDTH)
        shapes[f"blk.{layer}.ffn_gate"] = shapes[f"blk.{layer}.ffn_up"] = (INNER, WIDTH)
        shapes[f"blk.{layer}.ffn_down"] = (WIDTH, INNER)
    for name, shape in shapes.items():
        packed = gguf.quants.quantize(
            draw.normal(size=shape).astype(np.float32), gguf.GGMLQuantizationType.Q8_0
        )
        writer.add_tensor(f"{name}.weight", packed, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
        meant[name] = gguf.quants.dequantize(packed, gguf.GGMLQuantizationType.Q8_0)
    norms = ["output_norm"]
    norms += [f"blk.{n}.{kind}_norm" for n in range(LAYERS) for kind in ("attn", "ffn")]
    for name in norms:
        writer.add_tensor(f"{name}.weight", draw.normal(size=WIDTH).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return meant


def _open(location: Path, plugins: Plugins, **card: Any) -> tuple[Architecture, SourceFiles]:
    given = Card(name="x", source=f"path:{location}", **card)
    files = pull(given, plugins)
    return detect_architecture(given, files, plugins), files


def test_detection_imports_nothing_heavy(tmp_path: Path, plugins: Plugins) -> None:
    (tmp_path / "a.Q4_0.gguf").write_bytes(b"GGUF")
    architecture, files = _open(tmp_path, plugins)
    assert isinstance(architecture, Gguf)
    assert architecture.name == "transformers"  # its artifacts are ordinary ones
    assert architecture.arguments == {"class": "", "pipeline_tag": "text-generation"}
    assert files.weights == ("a.Q4_0.gguf",)
    script = f"""
import sys
from zoopress.cards import Card
from zoopress.plugins import load_plugins
from zoopress.sources import detect_architecture, pull
plugins, card = load_plugins(), Card(name="x", source="path:{tmp_path}")
detect_architecture(card, pull(card, plugins), plugins)
print({{"torch", "transformers", "gguf", "accelerate"}} & sys.modules.keys())
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.stdout == "set()\n", done.stderr


def test_the_error_names_what_is_missing(
    tmp_path: Path, plugins: Plugins, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.gguf").write_bytes(b"GGUF")
    architecture, _ = _open(tmp_path, plugins)
    monkeypatch.setattr("zoopress_zoo.gguf._NEEDED", ("no_gguf", "sys", "no_accelerate"))
    with pytest.raises(SourceError, match=r"no_gguf and no_accelerate.*'zoopress\[gguf\]'"):
        architecture.build()
    with pytest.raises(SourceError, match=r"zoopress\[gguf\]"):
        load_tokenizer(tmp_path)


def test_several_files_are_told_apart_by_name(tmp_path: Path, plugins: Plugins) -> None:
    for name in ("a.Q4_0.gguf", "a.Q8_0.gguf"):
        (tmp_path / name).write_bytes(b"GGUF")
    with pytest.raises(SourceError, match=r"a\.Q4_0\.gguf, a\.Q8_0\.gguf.*Name one"):
        _open(tmp_path, plugins)
    _, files = _open(tmp_path / "a.Q8_0.gguf", plugins)
    assert files.weights == ("a.Q8_0.gguf",)


def test_it_is_dequantized_and_its_artifact_is_an_ordinary_one(
    tmp_path: Path, plugins: Plugins
) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    meant = _write(folder / "tiny.Q8_0.gguf")
    architecture, files = _open(folder, plugins)
    built = build_on_meta(architecture)
    loaded: Any = architecture.load(files)
    assert architecture.arguments == {"class": "LlamaForCausalLM"}
    assert built.state_dict().keys() == loaded.state_dict().keys()
    assert {p.dtype for p in loaded.parameters()} == {torch.float32}
    assert not hasattr(loaded.config, "quantization_config")
    tensors = loaded.state_dict()
    for theirs, ours in (
        ("token_embd", "model.embed_tokens"),
        ("output", "lm_head"),
        ("blk.1.ffn_down", "model.layers.1.mlp.down_proj"),
        ("blk.0.attn_v", "model.layers.0.self_attn.v_proj"),
    ):
        assert torch.equal(tensors[f"{ours}.weight"], torch.from_numpy(meant[theirs].copy()))

    out = tmp_path / "artifact"
    out.mkdir()
    base = Base(name="x", source="path:x", revision="local", size_bytes=1, task="fidelity")
    others = {name: files.folder / name for name in files.others}
    manifest = save_artifact(out, Model(loaded, plugins.layers), architecture, base, others)
    assert manifest.architecture.name == "transformers"
    assert "quantization_config" not in json.loads((out / "config.json").read_text())
    again = zoopress.load(out)
    tokens = torch.tensor([[1, 3, 4]])
    with torch.inference_mode():
        assert torch.equal(again(tokens).logits, loaded(tokens).logits)
    text = "ab abc"
    assert load_tokenizer(out)(text)["input_ids"] == load_tokenizer(folder)(text)["input_ids"]


def test_a_task_may_choose_the_class(tmp_path: Path, plugins: Plugins) -> None:
    _write(tmp_path / "tiny.gguf")
    architecture, files = _open(tmp_path, plugins, model_class="AutoModel")
    assert type(architecture.load(files)).__name__ == "LlamaModel"
    architecture, files = _open(tmp_path, plugins, model_class="LlamaForSequenceClassification")
    with pytest.raises(SourceError, match=r"lack score\.weight"):
        architecture.load(files)


def test_a_file_without_tokenizer_or_of_an_unknown_kind_is_refused(
    tmp_path: Path, plugins: Plugins
) -> None:
    _write(tmp_path / "bare.gguf", tokenizer=False)
    with pytest.raises(SourceError, match="tokenizer cannot be loaded"):
        load_tokenizer(tmp_path)
    (tmp_path / "other").mkdir()
    _write(tmp_path / "other" / "odd.gguf", kind="wavtokenizer-dec")
    architecture, _ = _open(tmp_path / "other", plugins)
    with pytest.raises(SourceError, match="transformers cannot read it"):
        architecture.build()


@pytest.mark.parametrize("content", [b"", b"GGUF", b"GGUF" + b"\xff" * 100, b"not one" * 20])
def test_a_damaged_file_is_refused(content: bytes, tmp_path: Path, plugins: Plugins) -> None:
    _library()
    (tmp_path / "a.gguf").write_bytes(content)
    architecture, files = _open(tmp_path, plugins)
    with pytest.raises(SourceError, match=r"a\.gguf"):
        architecture.load(files)
