"""Branches, experts and heads that calibration does not reach."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

from real_use_case import Case, MakeCase, call

NET = """
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        {layers}

    def forward(self, x):
        {forward}


def build():
    return Net()


def inputs():
    return torch.randn(64, 32, generator=g())
"""

BRANCHES = {
    "reader": (
        "self.a, self.p, self.q = nn.Linear(32, 64), nn.Linear(64, 32), nn.Linear(64, 32)",
        """h = torch.relu(self.a(x))
        return self.p(h) if float(x.mean()) > LIMIT else self.q(h)""",
    ),
    "producer": (
        "self.a, self.b, self.p = nn.Linear(32, 64), nn.Linear(32, 64), nn.Linear(64, 32)",
        "return self.p(torch.relu(self.a(x) if float(x.mean()) > LIMIT else self.b(x)))",
    ),
    "norm": (
        "self.a, self.n, self.p = nn.Linear(32, 64), nn.BatchNorm1d(64), nn.Linear(64, 32)",
        """h = torch.relu(self.a(x))
        return self.p(h) if float(x.mean()) > LIMIT else self.p(self.n(h))""",
    ),
    "joined": (
        "self.a, self.p, self.q = nn.Linear(32, 64), nn.Linear(64, 32), nn.Linear(96, 32)",
        """h = torch.relu(self.a(x))
        return self.p(h) if float(x.mean()) > LIMIT else self.q(torch.cat([h, x], 1))""",
    ),
    "parameter": (
        """self.a, self.p = nn.Linear(32, 64), nn.Linear(64, 32)
        self.q = nn.Parameter(torch.ones(64))""",
        """h = torch.relu(self.a(x))
        return self.p(h) if float(x.mean()) > LIMIT else self.p(h * self.q)""",
    ),
}

EXPERTS = (
    """self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 32)) for _ in range(4)
        )""",
    """index = x[:, 0].mul(LIMIT).abs().floor().clamp_max(3).long()
        return torch.stack([self.experts[int(i)](row) for i, row in zip(index, x)])""",
)


def made(case: MakeCase, kind: tuple[str, str], limit: str) -> Case:
    return case(NET.format(layers=kind[0], forward=kind[1].replace("LIMIT", limit)))


def notes(result: Any) -> dict[str, Any]:
    report = json.loads((result.folder / "report.json").read_text(encoding="utf-8"))
    found: dict[str, Any] = report["stages"][0]["notes"]
    return found


@pytest.mark.parametrize("kind", BRANCHES)
def test_a_branch_that_other_inputs_reach_is_pruned_along(case: MakeCase, kind: str) -> None:
    it = made(case, BRANCHES[kind], "-5")
    result = it.compress({"technique": "neuron_pruning", "sparsity": 0.25})
    loaded, x = it.load(result), it.module.inputs()[:4]
    assert loaded.a.out_features == 48
    assert call(loaded, x - 20).shape == call(loaded, x).shape == (4, 32)
    assert notes(result)["unreached"] == []


@pytest.mark.parametrize("kind", BRANCHES)
def test_what_no_input_reaches_keeps_all_that_it_might_read(case: MakeCase, kind: str) -> None:
    # The condition asks for exactly one number, which nobody comes upon.
    it = made(case, BRANCHES[kind], "-5 or float(x[0, 0]) != 0.125")
    with pytest.raises(Exception, match="which the calibration data does not reach") as refused:
        it.compress({"technique": "neuron_pruning", "sparsity": 0.25})
    assert type(refused.value).__name__ == "StageError"


def test_neurons_elsewhere_still_go(case: MakeCase) -> None:
    layers, forward = BRANCHES["reader"]
    block = "self.block = nn.Sequential(nn.Linear(32, 80), nn.ReLU(), nn.Linear(80, 32))"
    it = made(
        case,
        (f"{layers}\n        {block}", f"x = x + self.block(x)\n        {forward}"),
        "-5 or float(x[0, 0]) != 0.125",
    )
    result = it.compress({"technique": "neuron_pruning", "sparsity": 0.25})
    loaded = it.load(result)
    assert loaded.a.out_features == 64
    assert loaded.block[0].out_features == 60
    assert notes(result)["unreached"] == ["q"]
    assert notes(result)["kept_for_unreached"] == {"a": "q"}


def test_experts_that_no_token_was_sent_to_still_fit(case: MakeCase) -> None:
    it = made(case, EXPERTS, "0.5")
    result = it.compress({"technique": "neuron_pruning", "sparsity": 0.25})
    loaded = it.load(result)
    hidden = [expert[0].out_features for expert in loaded.experts]
    assert min(hidden) == 48  # those that are reached are pruned, and hinder nobody
    for expert in range(4):
        x = torch.full((2, 32), 2.0 * expert + 0.5)
        assert call(loaded, x).shape == (2, 32)
