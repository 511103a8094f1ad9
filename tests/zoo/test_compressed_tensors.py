"""compressed-tensors: the artifact's own integers, opened by transformers without zoopress."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from language_models import PLUGINS, compressed, llama_card
from text_models import VOCABULARY
from without_zoopress import run_without_zoopress
from zoopress.errors import DeploymentError
from zoopress.models.packing import packed_weights, unpack
from zoopress.pipeline.deployment import export_artifact
from zoopress.testing import reload_artifact, tiny_card

pytest.importorskip("transformers")
pytest.importorskip("compressed_tensors")

IDS = torch.arange(24).view(2, 12) % VOCABULARY

OPEN = """
import json, sys
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

for folder in sys.argv[1:]:
    model, told = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not told["missing_keys"] and not told["unexpected_keys"], told
    ids = load_file(folder + "/../ids.safetensors")["ids"]
    with torch.no_grad():
        logits = model.eval()(ids).logits
    save_file({"logits": logits}, folder + "/../logits.safetensors")
"""


MIXED = (
    ("weight_quantization", {"bits": 8, "include": ["*q_proj*"]}),
    ("weight_quantization", {"bits": 4, "include": ["*k_proj*"]}),
    ("weight_quantization", {"bits": 4, "group_size": 8, "symmetric": False, "include": ["*v_*"]}),
    ("weight_quantization", {"bits": 8, "symmetric": False, "include": ["*o_proj*"]}),
    ("weight_quantization", {"bits": 3, "group_size": 8, "include": ["*up_*", "*down_*"]}),
)


def test_transformers_opens_it_without_zoopress(tmp_path: Path) -> None:
    expected = {}
    for name, stages in (
        ("uniform", (("weight_quantization", {"bits": 4, "group_size": 8, "kinds": ["linear"]}),)),
        ("mixed", MIXED),
    ):
        folder = tmp_path / name
        card = llama_card(folder)
        made = compressed(card, folder, *stages)
        done = export_artifact(made, "compressed_tensors", folder / "out", PLUGINS, card)
        assert done.difference == 0
        module = reload_artifact(made, card, PLUGINS).module
        unpack(module, "all")
        with torch.no_grad():
            expected[name] = module(IDS).logits
        save_file({"ids": IDS}, folder / "ids.safetensors")
        wider = [note for note in done.notes if "one bit more" in note]
        assert len(wider) == (name == "mixed")
        assert all("v_proj: written" in note for note in wider)
    run_without_zoopress(OPEN, *(tmp_path / name / "out" for name in expected))
    for name, logits in expected.items():
        found = load_file(tmp_path / name / "logits.safetensors")["logits"]
        assert torch.equal(found, logits), name


def test_the_integers_and_scales_written_are_the_artifacts_own(tmp_path: Path) -> None:
    from compressed_tensors.compressors.pack_quantized.helpers import unpack_from_int32

    card = llama_card(tmp_path)
    made = compressed(card, tmp_path, ("weight_quantization", {"bits": 4, "group_size": 8}))
    export_artifact(made, "compressed_tensors", tmp_path / "out", PLUGINS, card)
    stored = load_file(tmp_path / "out" / "model.safetensors")
    packed = packed_weights(reload_artifact(made, card, PLUGINS).module)
    name = "model.layers.0.mlp.up_proj.weight"
    form = packed[name].export_form()
    assert form is not None
    codes = unpack_from_int32(stored[f"{name}_packed"], 4, form.codes.shape)
    assert torch.equal(codes, form.codes)
    assert torch.equal(stored[f"{name}_scale"], form.scale.float())
    assert name not in stored
    config = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]
    assert config["quant_method"] == "compressed-tensors"
    assert config["config_groups"]["group_0"]["weights"]["group_size"] == 8
    assert config["ignore"] == []


def test_layers_in_their_own_bits_and_dense_ones_are_told_apart(tmp_path: Path) -> None:
    card = llama_card(tmp_path)
    made = compressed(card, tmp_path, *MIXED)
    export_artifact(made, "compressed_tensors", tmp_path / "out", PLUGINS)
    config = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]
    layer = "model.layers.0"
    found = {
        name.removeprefix("model.layers.0."): (w["num_bits"], w["symmetric"], w["group_size"])
        for group in config["config_groups"].values()
        for w, names in [(group["weights"], group["targets"])]
        for name in names
    }
    assert found == {
        "self_attn.q_proj": (8, True, None),
        "self_attn.k_proj": (4, True, None),
        "self_attn.v_proj": (5, True, 8),
        "self_attn.o_proj": (8, False, None),
        "mlp.up_proj": (3, True, 8),
        "mlp.down_proj": (3, True, 8),
    }
    assert config["ignore"] == [f"{layer}.mlp.gate_proj", "lm_head"]


def test_tied_embeddings_are_dense_and_said_to_be(tmp_path: Path) -> None:
    card = llama_card(tmp_path, tie_word_embeddings=True, dtype="bfloat16")
    made = compressed(card, tmp_path, ("weight_quantization", {"bits": 8}))
    done = export_artifact(made, "compressed_tensors", tmp_path / "out", PLUGINS, card)
    assert done.difference == 0
    assert len(done.notes) == 1
    assert "model.embed_tokens.weight, lm_head.weight: written dense" in done.notes[0]


def test_a_chain_of_pruning_grid_and_coding_is_written(tmp_path: Path) -> None:
    card = llama_card(tmp_path)
    made = compressed(
        card,
        tmp_path,
        ("magnitude_pruning", {"sparsity": 0.6}),
        ("rate_distortion_quantization", {"steps": "row", "slope": 1e-4}),
    )
    done = export_artifact(made, "compressed_tensors", tmp_path / "out", PLUGINS, card)
    assert done.difference == 0
    stored = load_file(tmp_path / "out" / "model.safetensors")
    assert "model.layers.0.mlp.up_proj.weight_packed" in stored


@pytest.mark.parametrize(
    ("technique", "options", "problem"),
    [
        ("weight_quantization", {"bits": 4, "group_size": 9}, "do not divide its 16 columns"),
        ("codebook_quantization", {"bits": 4}, r"CodebookWeight.*Quantize it with"),
        ("weight_quantization", {"bits": 4, "kinds": ["embedding"]}, "nothing to write as integ"),
        ("truncated_svd", {"energy": 0.8}, "structure was changed"),
    ],
)
def test_what_the_format_cannot_hold_is_refused_with_the_remedy(
    technique: str, options: dict[str, Any], problem: str, tmp_path: Path
) -> None:
    card = llama_card(tmp_path)
    made = compressed(card, tmp_path, (technique, options))
    with pytest.raises(DeploymentError, match=problem):
        export_artifact(made, "compressed_tensors", tmp_path / "out", PLUGINS, card)
    assert not (tmp_path / "out").exists()


def test_a_model_of_another_library_is_refused(tmp_path: Path) -> None:
    card = tiny_card("transformer", tmp_path)
    made = compressed(card, tmp_path / "made", ("weight_quantization", {"bits": 8}))
    with pytest.raises(DeploymentError, match="format for models of transformers"):
        export_artifact(made, "compressed_tensors", tmp_path / "out", PLUGINS, card)
