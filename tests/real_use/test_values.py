"""Layers of zeros, padding rows, −1e30 and tiny numbers, through whole runs."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from real_use_case import MakeCase, call, error
from zoopress.errors import SourceError, StageError

NET = """
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.e = nn.Embedding(50, 32, padding_idx=0)
        self.a = nn.Linear(32, 64)
        self.z = nn.Linear(64, 64)
        self.c = nn.Linear(64, 32)
        self.bias = nn.Parameter(torch.zeros(1, 32))
        nn.init.zeros_(self.z.weight)
        nn.init.zeros_(self.z.bias)

    def forward(self, x):
        h = torch.relu(self.a(self.e(x).mean(1)))
        return self.c(h + self.z(h)) + self.bias.clamp(-1, 1)


def build():
    return Net()


def inputs():
    return torch.randint(1, 50, (64, 6), generator=g())
"""
STAGES: list[dict[str, Any]] = [
    {"technique": "lattice_quantization", "bits_per_weight": 6},
    {"technique": "lattice_quantization", "step": 0.05, "steps": "row"},
    {"technique": "lattice_quantization", "step": 0.05, "dither": False},
    {"technique": "weight_quantization", "bits": 6},
    {"technique": "codebook_quantization", "bits": 6},
    {"technique": "rate_distortion_quantization", "target": {"cosine": 0.999}},
    {"technique": "float_precision", "dtype": "float16"},
]


@pytest.mark.parametrize("stage", STAGES, ids=lambda stage: "-".join(map(str, stage.values())))
def test_zeros_stay_zeros(case: MakeCase, stage: dict[str, Any]) -> None:
    it = case(NET)
    loaded = it.load(it.compress(stage), unpacking="all")
    x = it.module.inputs()[:8]
    assert error(call(it.model, x), call(loaded, x).float()) < 0.1
    assert not bool(loaded.z.weight.any())
    assert not bool(loaded.e.weight[0].any())


@pytest.mark.parametrize("stage", STAGES[:6], ids=lambda s: "-".join(map(str, s.values())))
def test_what_is_huge_beside_ordinary_values_is_left_and_named(
    case: MakeCase, stage: dict[str, Any]
) -> None:
    it = case(
        NET
        + """

def prepare(model):
    with torch.no_grad():
        model.bias.normal_(generator=g())
        model.bias[0, :4] = -1e30
"""
    )
    result = it.compress(stage)
    assert "1e+30" in result.report.last.notes["left"]["bias"]
    loaded, x = it.load(result, unpacking="all"), it.module.inputs()[:8]
    assert torch.equal(loaded.bias, it.model.bias)
    assert error(call(it.model, x), call(loaded, x)) < 0.1


def test_a_layer_that_16_bits_would_flush_to_zero_is_refused_by_name(case: MakeCase) -> None:
    it = case(NET + "\n\ndef prepare(model):\n    model.a.weight.data.mul_(1e-8)\n")
    with pytest.raises(StageError, match=r"a\.weight: .*too small.*bfloat16"):
        it.compress({"technique": "float_precision", "dtype": "float16"})
    it.compress({"technique": "float_precision", "dtype": "bfloat16"})


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_refused_by_name(case: MakeCase, value: float) -> None:
    it = case(
        NET
        + f"\n\ndef prepare(model):\n    model.a.weight.data[0, 0] = {value!r}\n".replace(
            "nan", "float('nan')"
        ).replace("inf\n", "float('inf')\n")
    )
    with pytest.raises(SourceError, match=r"a\.weight"):
        it.compress({"technique": "weight_quantization"})


def test_a_layer_of_which_little_is_left_is_named(case: MakeCase) -> None:
    it = case(NET + "\n\ndef prepare(model):\n    model.a.weight.data.mul_(0.01)\n")
    stage = {"technique": "magnitude_pruning", "sparsity": 0.74, "scope": "global"}
    result = it.compress(stage, targets={"min_cosine": -1, "min_label_loyalty": 0})
    text = (result.folder / "report.md").read_text(encoding="utf-8")
    assert "less than half of the norm is left of a.weight".lower() in text.lower()
    assert "Furthest from the original's" in text
