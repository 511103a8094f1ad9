"""What calibration did not reach is unknown, not worthless: it loses no more than the rest."""

from __future__ import annotations

from typing import Any

import pytest
from torch import Tensor

from real_use_case import MakeCase, call, error

ROUTED = """
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Linear(16, 64)
        EXPERTS
        self.o = nn.Linear(64, 8)

    def forward(self, x):
        h = torch.relu(self.a(x))
        which = x[:, 0].long().clamp(0, 3)
        y = torch.zeros_like(h)
        for i in range(4):
            mine = which == i
            if mine.any():
                y[mine] = self.expert(i, h[mine])
        return self.o(y)

    def expert(self, i, h):
        COMPUTE


def build():
    return Net()


def inputs():
    x = torch.randn(64, 16, generator=g())
    x[:, 0] = torch.arange(64) % 3 + 0.5
    return x


def rare(x):
    x[:, 0] = 3.5
    return x
"""
BRANCHES = """
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Linear(16, 64)
        self.left = nn.Linear(64, 64)
        self.right = nn.Linear(64, 64)
        self.o = nn.Linear(64, 8)

    def forward(self, x):
        h = torch.relu(self.a(x))
        sides = torch.relu(self.left(h)), torch.relu(self.right(h))
        return self.o(torch.where(x[:, :1] > 0, *sides))


def build():
    return Net()


def inputs():
    x = torch.randn(64, 16, generator=g())
    x[:, 0] = 1
    return x


def rare(x):
    x[:, 0] = -1
    return x
"""
TOKENS = """
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.e = nn.Embedding(512, 64)
        self.a = nn.Linear(64, 64)
        self.o = nn.Linear(64, 8)

    def forward(self, x):
        return self.o(torch.relu(self.a(self.e(x))).mean(1))


def build():
    return Net()


def inputs():
    return torch.randint(0, 40, (64, 8), generator=g())


def rare(x):
    return x + 100
"""
EXPERTS = {
    "modules": (
        "layers = [nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64))"
        " for _ in range(4)]\n        self.experts = nn.ModuleList(layers)",
        "return self.experts[i](h)",
    ),
    "fused": (
        "self.experts = nn.Parameter(torch.randn(4, 64, 64, generator=g()) * 0.1)\n"
        "        self.more_experts = nn.Parameter(torch.randn(4, 64, 64, generator=g(3)) * 0.1)",
        "return torch.relu(h @ self.experts[i].T) @ self.more_experts[i].T",
    ),
}
SOURCES = {
    **{
        name: ROUTED.replace("EXPERTS", made).replace("COMPUTE", computed)
        for name, (made, computed) in EXPERTS.items()
    },
    "branch": BRANCHES,
    "tokens": TOKENS,
}
STAGES: dict[str, dict[str, Any]] = {
    "rate": {"technique": "rate_distortion_quantization", "target": {"cosine": 0.99}},
    "codebook": {
        "technique": "codebook_quantization",
        "bits": 4,
        "weighting": "fisher",
        "entropy_weight": 0.05,
    },
    "gradual": {
        "technique": "gradual_pruning",
        "sparsity": 0.5,
        "training": {"steps": 30},
        "interval": 5,
    },
    "fisher": {
        "technique": "magnitude_pruning",
        "sparsity": 0.5,
        "scope": "global",
        "criterion": "fisher",
    },
}
LOOSE = {"min_cosine": -1, "min_label_loyalty": 0}


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("source", SOURCES)
def test_what_no_sample_reached_is_as_good_as_the_rest(
    case: MakeCase, source: str, stage: str
) -> None:
    it = case(SOURCES[source])
    result = it.compress(STAGES[stage], targets=LOOSE)
    common: Tensor = it.module.inputs()[:8]
    loaded = it.load(result)
    rare = it.module.rare(common.clone())
    seen, unseen = (error(call(it.model, x), call(loaded, x)) for x in (common, rare))
    assert unseen <= max(0.4, 3 * seen)


@pytest.mark.parametrize("stage", ["rate", "codebook", "gradual"])
def test_the_notes_name_what_no_sample_reached(case: MakeCase, stage: str) -> None:
    notes = case(SOURCES["fused"]).compress(STAGES[stage], targets=LOOSE).report.last.notes
    (found,) = [value for key, value in notes.items() if key.startswith("not_reached")]
    assert 0.25 <= found["experts"] < 0.5  # a quarter, and neurons that no sample moves


def test_a_branch_that_no_input_reaches_is_named_as_that() -> None:
    import torch
    from torch import nn

    from zoopress.dependencies import find_dependencies

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.unused = nn.Linear(4, 8), nn.Linear(8, 2), nn.Linear(8, 2)

        def forward(self, x: Tensor, other: bool = False) -> Tensor:
            return (self.unused if other else self.b)(self.a(x).relu())

    module = Net().eval()
    found = find_dependencies(module, lambda: module(torch.randn(3, 4)))
    assert found.fixed["unused"] == "the calibration data does not reach it"
    assert "which the calibration data does not reach" in found.fixed["a"]
