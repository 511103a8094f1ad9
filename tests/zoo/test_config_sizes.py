"""What of a config changes when neurons go: the fields that mean their number, and no other."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

import zoopress
from zoopress.artifacts.manifest import read_manifest
from zoopress.cards import load_card
from zoopress.pipeline.compress import compress
from zoopress.plugins import Plugins
from zoopress.recipes import load_recipe
from zoopress.store import Store

pytestmark = pytest.mark.usefixtures("brief_evaluation")

TEXT = "{input_ids: {shape: [9], dtype: int64, low: 3, high: 60}}"
BOTH = f"{TEXT[:-1]}, decoder_{TEXT[1:]}"
IMAGES = "{pixel_values: {shape: [3, 32, 32]}}"
DECODER = {
    "vocab_size": 60,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "pad_token_id": 0,
}
CASES: dict[str, tuple[Any, Any, str, dict[str, Any]]] = {
    # A window that is not there, beside a fused projection of twice the inner size.
    "phi3": (
        transformers.Phi3ForCausalLM,
        transformers.Phi3Config(**DECODER, max_position_embeddings=256, sliding_window=None),
        TEXT,
        {"intermediate_size": 48},
    ),
    "mixtral": (
        transformers.MixtralForCausalLM,
        transformers.MixtralConfig(
            **DECODER, num_local_experts=3, sliding_window=None, max_position_embeddings=256
        ),
        TEXT,
        {"intermediate_size": 48},
    ),
    # A limit on positions that equals an inner size.
    "llama": (
        transformers.LlamaForCausalLM,
        transformers.LlamaConfig(**DECODER, max_position_embeddings=64),
        TEXT,
        {"intermediate_size": 48},
    ),
    "deepseek_v3": (
        transformers.DeepseekV3ForCausalLM,
        transformers.DeepseekV3Config(
            **{**DECODER, "intermediate_size": 128},
            max_position_embeddings=128,
            moe_intermediate_size=64,
            n_routed_experts=4,
            n_group=1,
            topk_group=1,
            num_experts_per_tok=2,
            first_k_dense_replace=1,
            kv_lora_rank=16,
            q_lora_rank=24,
            qk_rope_head_dim=8,
            qk_nope_head_dim=8,
            v_head_dim=8,
        ),
        TEXT,
        {"intermediate_size": 96, "moe_intermediate_size": 48},
    ),
    # One width under two names.
    "bart": (
        transformers.BartModel,
        transformers.BartConfig(
            vocab_size=60,
            d_model=32,
            encoder_layers=1,
            decoder_layers=1,
            encoder_ffn_dim=64,
            decoder_ffn_dim=64,
            encoder_attention_heads=4,
            decoder_attention_heads=4,
            max_position_embeddings=64,
        ),
        BOTH,
        {"encoder_ffn_dim": 48, "decoder_ffn_dim": 48},
    ),
    # A ratio to another width.
    "dinov2": (
        transformers.Dinov2Model,
        transformers.Dinov2Config(
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=4,
            mlp_ratio=4,
            image_size=32,
            patch_size=8,
        ),
        IMAGES,
        {"mlp_ratio": 3},
    ),
    "swin": (
        transformers.SwinModel,
        transformers.SwinConfig(
            embed_dim=16,
            depths=[1, 1],
            num_heads=[2, 4],
            mlp_ratio=2.0,
            image_size=32,
            window_size=2,
        ),
        IMAGES,
        {"mlp_ratio": 1.5},
    ),
    "segformer": (
        transformers.SegformerModel,
        transformers.SegformerConfig(
            depths=[1, 1, 1, 1],
            hidden_sizes=[8, 16, 24, 32],
            mlp_ratios=[4, 4, 8, 8],
            num_attention_heads=[1, 2, 2, 4],
        ),
        IMAGES,
        {},
    ),
    # Of an open field follows the width, of others nothing.
    "gpt2": (
        transformers.GPT2LMHeadModel,
        transformers.GPT2Config(vocab_size=60, n_embd=32, n_layer=2, n_head=4, n_positions=128),
        TEXT,
        {"n_inner": 96},
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_only_what_means_the_size_changes(name: str, tmp_path: Path, plugins: Plugins) -> None:
    kind, config, inputs, expected = CASES[name]
    torch.manual_seed(0)
    kind(config).save_pretrained(tmp_path / "model")
    (tmp_path / "card.yaml").write_text(
        f"name: m\nsource: path:model\nmodel_class: {kind.__name__}\n"
        f"data: {{random: {inputs}, calibration_samples: 4, evaluation_samples: 4}}\n"
    )
    include = "['*fc1*', '*mlp*', '*intermediate*']"
    (tmp_path / "r.yaml").write_text(
        f"stages: [{{technique: neuron_pruning, sparsity: 0.25, include: {include}}}]\n"
    )
    card = load_card(str(tmp_path / "card.yaml"), plugins)
    recipe = load_recipe(str(tmp_path / "r.yaml"), plugins)
    compress(card, recipe, tmp_path / "out", Store(tmp_path / "store"), plugins)
    artifact = tmp_path / "out" / "artifact"
    assert read_manifest(artifact).native
    before = json.loads((tmp_path / "model" / "config.json").read_text())
    after = json.loads((artifact / "config.json").read_text())
    changed = {k: v for k, v in after.items() if before.get(k) != v and k != "architectures"}
    if name == "segformer":
        assert changed.pop("mlp_ratios") == [3, 3, 6, 6]
    assert changed == expected
    opened = kind.from_pretrained(artifact).eval()
    ours = zoopress.load(artifact)
    if inputs is IMAGES:
        given = {"pixel_values": torch.randn(2, 3, 32, 32)}
    else:  # longer than every size
        length = 60 if name == "bart" else 140 if name != "gpt2" else 128
        ids = torch.randint(3, 60, (1, length))
        given = {"input_ids": ids, **({"decoder_input_ids": ids} if inputs is BOTH else {})}
    with torch.inference_mode():
        assert torch.equal(opened(**given)[0], ours(**given)[0])
