"""GGUF files that are written: the artifact's integers, config and tokenizer, read back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from language_models import PLUGINS, TEXTS, compressed, decoder_card
from without_zoopress import run_without_zoopress
from zoopress.errors import DeploymentError
from zoopress.models.export_form import ExportForm
from zoopress.models.packing import packed_weights, unpack
from zoopress.pipeline.deployment import export_artifact
from zoopress.testing import reload_artifact, tiny_card
from zoopress_plugins.quantization.weight_quantization import quantize
from zoopress_zoo.exporters.ggml_blocks import (
    exact_blocks,
    fits_super_blocks,
    super_blocks,
    unfit,
)

pytest.importorskip("transformers")
pytest.importorskip("accelerate")
gguf = pytest.importorskip("gguf")

OPEN = """
import sys
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

for folder in sys.argv[1:]:
    model = AutoModelForCausalLM.from_pretrained(folder, gguf_file="model.gguf").eval()
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file="model.gguf")
    ids = load_file(folder + "/../ids.safetensors")["ids"]
    with torch.no_grad():
        save_file({"logits": model(ids).logits}, folder + "/../logits.safetensors")
"""


def form_of(bits: int, group_size: int | None, symmetric: bool) -> ExportForm:
    generator = torch.Generator().manual_seed(bits)
    matrix = torch.randn(6, 512, generator=generator) * 0.05
    codes, scale, zero_point = quantize(matrix, bits, group_size, symmetric, True)
    if symmetric:
        codes = codes.view(torch.int8)
        if bits < 8:
            half = 1 << (bits - 1)
            codes = (codes ^ half) - half
    return ExportForm(codes, bits, scale, zero_point, 0, group_size)


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("group_size", [32, 64, 256, None])
@pytest.mark.parametrize("symmetric", [True, False])
def test_blocks_are_what_the_library_reads_and_tell_how_far_weights_move(
    bits: int, group_size: int | None, symmetric: bool
) -> None:
    form = form_of(bits, group_size, symmetric)
    if bits == 8 and not symmetric:
        assert "symmetric: true" in str(unfit(form))
        return
    assert unfit(form) is None
    assert fits_super_blocks(form) == (bits <= 4)
    for make, most in ((exact_blocks, 0.02), *([(super_blocks, 0.5)] * fits_super_blocks(form))):
        blocks = make(form)
        kind = gguf.GGMLQuantizationType[blocks.kind]
        found = torch.from_numpy(gguf.quants.dequantize(blocks.data.numpy(), kind))
        step = form.scale.float().repeat_interleave(form.group_size or 512, 1)
        moved = float(((found - form.matrix()).abs() / step).max())
        assert moved == pytest.approx(blocks.rounding, rel=1e-2, abs=1e-6)
        assert moved <= most
        if symmetric and make is exact_blocks:
            assert torch.equal(found, form.matrix())


def test_one_scale_in_a_super_block_is_no_rounding_to_6_bits() -> None:
    for group_size, most in ((32, 0.5), (256, 0.01)):
        rounding = super_blocks(form_of(4, group_size, symmetric=False)).rounding
        assert rounding <= most
        assert (rounding > 0.01) == (group_size == 32)


def expected_logits(artifact: Path, card: Any, ids: torch.Tensor) -> torch.Tensor:
    module = reload_artifact(artifact, card, PLUGINS).module
    unpack(module, "all")
    with torch.no_grad():
        logits: torch.Tensor = module(ids).logits
    return logits


MIXED = (
    ("weight_quantization", {"bits": 8, "group_size": 32, "include": ["*embed*", "*q_proj*"]}),
    ("weight_quantization", {"bits": 4, "group_size": 32, "include": ["*k_*", "*gate*"]}),
    (
        "weight_quantization",
        {"bits": 4, "group_size": 32, "symmetric": False, "include": ["*up_*"]},
    ),
    ("weight_quantization", {"bits": 5, "include": ["*down_*"]}),
)


def test_transformers_opens_it_without_zoopress(tmp_path: Path) -> None:
    expected = {}
    for family, splits, config in (
        ("Llama", "gpt-2", {"tie_word_embeddings": True}),
        ("Qwen2", "smollm", {"rope_theta": 5000.0}),
        ("Llama", "sentencepiece", {"rms_norm_eps": 1e-5}),
    ):
        folder = tmp_path / splits
        card = decoder_card(folder, family, splits, **config)
        made = compressed(card, folder, *MIXED)
        done = export_artifact(made, "gguf", folder / "out", PLUGINS, card)
        assert done.difference is not None
        assert done.difference < 1e-3
        assert any("move" in note for note in done.notes)
        ids = torch.arange(24).view(2, 12)
        save_file({"ids": ids}, folder / "ids.safetensors")
        expected[folder] = expected_logits(made, card, ids)
    run_without_zoopress(OPEN, *(folder / "out" for folder in expected))
    for folder, logits in expected.items():
        found = load_file(folder / "logits.safetensors")["logits"]
        torch.testing.assert_close(found, logits, rtol=0, atol=1e-3 * float(logits.abs().max()))


def test_integers_scales_and_tokens_in_the_file_are_the_artifacts_own(tmp_path: Path) -> None:
    card = decoder_card(tmp_path)
    made = compressed(card, tmp_path, *MIXED)
    export_artifact(made, "gguf", tmp_path / "out", PLUGINS, card)
    reader = gguf.GGUFReader(tmp_path / "out" / "model.gguf")
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    kinds = {name: tensor.tensor_type.name for name, tensor in tensors.items()}
    assert kinds["token_embd.weight"] == kinds["blk.0.attn_q.weight"] == "Q8_0"
    assert kinds["blk.1.attn_k.weight"] == kinds["blk.1.ffn_gate.weight"] == "Q4_0"
    assert kinds["blk.0.ffn_up.weight"] == "Q4_1"
    assert kinds["blk.0.ffn_down.weight"] == "Q5_0"
    assert kinds["output.weight"] == "F32"
    packed = packed_weights(reload_artifact(made, card, PLUGINS).module)
    form = packed["model.layers.1.mlp.gate_proj.weight"].export_form()
    assert form is not None
    data = torch.from_numpy(tensors["blk.1.ffn_gate.weight"].data.copy()).view(96, 2, 18)
    assert torch.equal(data[..., :2].contiguous().view(torch.float16)[..., 0], form.scale.half())
    nibbles = torch.cat([data[..., 2:] & 15, data[..., 2:] >> 4], -1)
    assert torch.equal(nibbles.to(torch.int8) - 8, form.codes.view(96, 2, 32))
    assert reader.fields["tokenizer.ggml.pre"].contents() == "gpt-2"
    assert reader.fields["general.architecture"].contents() == "llama"


def test_q4_k_says_what_rounding_scales_again_does(tmp_path: Path) -> None:
    card = decoder_card(tmp_path, hidden_size=256, intermediate_size=256, num_hidden_layers=1)
    options = {"bits": 4, "group_size": 32, "symmetric": False}
    made = compressed(card, tmp_path, ("weight_quantization", options))
    plain = export_artifact(made, "gguf", tmp_path / "plain", PLUGINS, card)
    done = export_artifact(made, "gguf_q4_k", tmp_path / "out", PLUGINS, card)
    assert done.size_bytes < 0.93 * plain.size_bytes
    assert done.difference is not None
    assert plain.difference is not None
    assert plain.difference < done.difference < done.bound
    assert any("of its step at most" in note for note in done.notes)


@pytest.mark.parametrize(
    ("options", "config", "splits", "problem"),
    [
        ({"bits": 4, "group_size": 16}, {}, "gpt-2", "multiple of 32"),
        ({"bits": 8, "symmetric": False}, {}, "gpt-2", "'symmetric: true'"),
        ({"bits": 8}, {"mlp_bias": True}, "gpt-2", "config has mlp_bias: true"),
        (
            {"bits": 8},
            {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}},
            "gpt-2",
            "config has rope_parameters.*linear",
        ),
        ({"bits": 8}, {}, "odd", "splits text in a way that has no name"),
        ({"bits": 8}, {"hidden_act": "gelu"}, "gpt-2", "config has hidden_act"),
    ],
)
def test_what_gguf_cannot_say_is_refused(
    options: dict[str, Any], config: dict[str, Any], splits: str, problem: str, tmp_path: Path
) -> None:
    card = decoder_card(tmp_path, splits=splits, **config)
    made = compressed(card, tmp_path, ("weight_quantization", options))
    with pytest.raises(DeploymentError, match=problem):
        export_artifact(made, "gguf", tmp_path / "out", PLUGINS, card)
    assert not (tmp_path / "out").exists()


def test_other_models_and_grids_are_refused(tmp_path: Path) -> None:
    card = tiny_card("transformer", tmp_path)
    made = compressed(card, tmp_path / "made", ("weight_quantization", {"bits": 8}))
    with pytest.raises(DeploymentError, match="GGUF holds language models"):
        export_artifact(made, "gguf", tmp_path / "out", PLUGINS, card)
    card = decoder_card(tmp_path / "decoder")
    made = compressed(card, tmp_path / "codebook", ("codebook_quantization", {"bits": 4}))
    with pytest.raises(DeploymentError, match=r"CodebookWeight.*weight_quantization instead"):
        export_artifact(made, "gguf", tmp_path / "out", PLUGINS, card)


def test_texts_come_back_as_the_same_tokens(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    card = decoder_card(tmp_path, splits="sentencepiece")
    made = compressed(card, tmp_path, ("weight_quantization", {"bits": 8}))
    export_artifact(made, "gguf", tmp_path / "out", PLUGINS, card)
    own = AutoTokenizer.from_pretrained(made)
    read = AutoTokenizer.from_pretrained(tmp_path / "out", gguf_file="model.gguf")
    for text in TEXTS:
        assert own.encode(text) == read.encode(text)
