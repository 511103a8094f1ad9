"""What a stage reached and what it left is told, and experts are reached like any layer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import zoopress
from real_use_case import MakeCase, call, error
from zoopress.cards import load_card
from zoopress.models.packing import packed_weights
from zoopress.pipeline.compress import Result, compress
from zoopress.plugins import load_plugins
from zoopress.progress import Reporter
from zoopress.recipes import load_recipe
from zoopress.results import Coverage, StageResult
from zoopress.store import Store

NET = """
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Linear(32, 64)
        self.experts = nn.Parameter(torch.randn(16, 64, 64, generator=g()) * 0.1)
        self.b = nn.Linear(64, 8)

    def forward(self, x):
        h = torch.relu(self.a(x))
        return self.b(torch.relu(torch.einsum("bi,eoi->beo", h, self.experts)).mean(1))


def build():
    return Net()


def inputs():
    return torch.randn(64, 32, generator=g())
"""
OTHERS = """
from torch.nn.utils.parametrizations import weight_norm


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = weight_norm(nn.Linear(32, 64))
        self.mix = nn.Parameter(torch.randn(64, 4, 16, generator=g()) * 0.1)
        self.spectrum = nn.Parameter(torch.randn(33, 64, dtype=torch.complex64, generator=g()))
        self.position = nn.Parameter(torch.randn(1, 64, generator=g()) * 0.02)
        self.scale = nn.Parameter(torch.ones(()))
        self.empty = nn.Parameter(torch.empty(0, 3))
        self.counts = nn.Parameter(torch.arange(64), requires_grad=False)
        self.b = nn.Linear(64, 8)

    def forward(self, x):
        h = torch.relu(self.a(x)) + self.position
        h = torch.einsum("bi,ihd->bhd", h, self.mix).flatten(1) * self.scale
        h = h + torch.fft.irfft((torch.fft.rfft(h) * self.spectrum[:, 0]), n=64) * 0.1
        return self.b(h)


def build():
    return Net()


def inputs():
    return torch.randn(64, 32, generator=g())
"""


class Heard(Reporter):
    """Remembers what was said."""

    def __init__(self) -> None:
        super().__init__()
        self.said: list[str] = []

    def line(self, text: str) -> None:
        self.said.append(text)

    def warn(self, text: str, loud: bool = False) -> None:
        self.said.append(f"{'LOUD ' if loud else ''}{text}")


def head(result: Result) -> str:
    return (result.folder / "report.md").read_text(encoding="utf-8").split("## ")[0]


def coverage(result: Result) -> Coverage:
    found = result.report.last.coverage
    assert found is not None
    return found


@pytest.mark.parametrize(
    "stage",
    [
        {"technique": "weight_quantization"},
        {"technique": "codebook_quantization", "bits": 5},
        {"technique": "lattice_quantization", "bits_per_weight": 5},
        {"technique": "magnitude_pruning", "sparsity": 0.3},
        {"technique": "rate_distortion_quantization", "target": {"bits_per_weight": 5}},
    ],
    ids=lambda stage: stage["technique"],
)
def test_experts_in_one_parameter_are_reached(case: MakeCase, stage: dict[str, Any]) -> None:
    it = case(NET)
    result = it.compress(stage)
    assert coverage(result).byte_share > 0.99
    assert "experts (experts)" in head(result)
    loaded, x = it.load(result), it.module.inputs()[:8]
    assert error(call(it.model, x), call(loaded, x)) < 0.3
    assert result.report.last.weight_bytes < 0.8 * it.model.experts.nbytes


def test_eight_bits_have_a_scale_for_each_row_of_each_expert(case: MakeCase) -> None:
    it = case(NET)
    loaded = it.load(it.compress({"technique": "weight_quantization"}), unpacking="none")
    assert loaded.experts.shape == (16, 64, 64)
    assert packed_weights(loaded)["experts"].scale.shape == (16 * 64, 1)
    assert error(it.model.experts.detach(), loaded.experts) < 0.01


def test_what_is_left_is_named_with_the_reason(case: MakeCase) -> None:
    it = case(OTHERS)
    result = it.compress({"technique": "magnitude_pruning", "sparsity": 0.5})
    kinds = {kind.kind: kind for kind in coverage(result).kinds}
    told = {"spectrum": "no technique takes numbers of this type"}
    assert kinds["complex parameters"].left == told
    assert kinds["integer parameters"].reached == 0
    assert kinds["parametrized weights"].named == [  # made an ordinary weight, of both
        f"a.parametrizations.weight.original{number}" for number in (1, 0)
    ]
    assert kinds["other parameters"].named == ["mix"]
    assert "embedding" in kinds["embeddings"].left["position"]
    parameters = sum(each.parameters for each in kinds.values())
    assert parameters == sum(p.numel() for p in it.model.parameters())
    assert "spectrum" in head(result)
    assert coverage(result) == Coverage.from_dict(
        StageResult.from_dict(result.report.last.as_dict()).as_dict()["coverage"]
    )


def test_a_stage_that_reaches_little_of_a_model_is_told_loudly(
    case: MakeCase, tmp_path: Path
) -> None:
    it = case(
        NET.replace("dtype", "dtype")
        .replace(
            "torch.randn(16, 64, 64, generator=g()) * 0.1)",
            "torch.randn(16, 64, 64, generator=g(), dtype=torch.complex64) * 0.1)",
        )
        .replace("self.experts)", "self.experts.real)")
    )
    it.compress({"technique": "weight_quantization"})
    plugins, heard = load_plugins(), Heard()
    card = load_card(str(it.folder / "card.yaml"), plugins)
    recipe = load_recipe(str(it.folder / "recipe-0.yaml"), plugins)
    result = compress(card, recipe, tmp_path / "again", Store(it.folder / "store"), plugins, heard)
    (loud,) = [text for text in heard.said if text.startswith("LOUD MOST OF THE MODEL")]
    assert "reached 1.9 % of the bytes" in loud
    assert "experts" in loud
    assert "complex parameters, 98" in loud
    assert "MOST OF THE MODEL IS AS IT WAS" in head(result)
    recipe_file = it.folder / "narrow.yaml"
    stage = {"technique": "weight_quantization", "kinds": ["linear"]}
    recipe_file.write_text(yaml.safe_dump({"name": "r", "stages": [stage]}))
    heard = Heard()
    recipe = load_recipe(str(recipe_file), plugins)
    compress(card, recipe, tmp_path / "narrow", Store(it.folder / "store"), plugins, heard)
    assert not any("MOST OF THE MODEL" in text for text in heard.said)
    assert any("reached 1.9 % of the bytes" in text for text in heard.said)


BASE = {
    "vocab_size": 61,
    "hidden_size": 40,
    "intermediate_size": 36,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "num_experts_per_tok": 2,
}
MIXTURES = {
    "MixtralForCausalLM": {"num_local_experts": 5},
    "OlmoeForCausalLM": {"num_experts": 5},
    "Qwen3MoeForCausalLM": {"num_experts": 5, "moe_intermediate_size": 36, "head_dim": 10},
    "GptOssForCausalLM": {
        "num_local_experts": 5,
        "head_dim": 10,
        "layer_types": ["full_attention"],
    },
}


@pytest.mark.parametrize("name", MIXTURES)
def test_mixtures_of_experts_of_transformers_are_reached(
    name: str, tmp_path: Path, brief_evaluation: None
) -> None:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    kind = getattr(transformers, name)
    model = kind(kind.config_class(**BASE, **MIXTURES[name])).eval()
    model.save_pretrained(tmp_path / "model")
    plugins = load_plugins()
    card, recipe = tmp_path / "card.yaml", tmp_path / "recipe.yaml"
    tokens = {"shape": [9], "dtype": "int64", "high": 61}
    data = {"random": {"input_ids": tokens}, "calibration_samples": 4, "evaluation_samples": 4}
    card.write_text(yaml.safe_dump({"name": "moe", "source": "path:model", "data": data}))
    stages = [
        {"technique": "magnitude_pruning", "sparsity": 0.2},
        {"technique": "weight_quantization", "bits": 6},
        {"technique": "entropy_coding"},
    ]
    recipe.write_text(yaml.safe_dump({"name": "r", "stages": stages}))
    result = compress(
        *(load_card(str(card), plugins), load_recipe(str(recipe), plugins), tmp_path / "out"),
        *(Store(tmp_path / "store"), plugins),
    )
    for stage in result.report.stages:
        assert stage.coverage is not None
        assert {k.kind: k.reached for k in stage.coverage.kinds if k.kind == "experts"}["experts"]
        assert stage.coverage.byte_share > 0.9
    assert result.report.last.weight_bytes < 0.3 * result.report.original_weight_bytes
    loaded = zoopress.load(result.artifact)
    ids = torch.randint(0, 61, (2, 9), generator=torch.Generator().manual_seed(0))
    found = call(loaded, ids).logits
    assert error(call(model, ids).logits, found) < 0.5
    again = kind.from_pretrained(result.artifact)
    assert torch.allclose(call(again, ids).logits, found, atol=1e-5)
