"""Factories that give parameters values of their own while they build."""

from __future__ import annotations

import pytest
import torch

from real_use_case import MakeCase, call

NET = """
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.turn, self.head = nn.Linear(6, 32), nn.Linear(32, 4)
        WRITE

    def forward(self, x):
        return self.head(torch.relu(self.turn(x)))


def build():
    return Net()


def inputs():
    return torch.randn(48, 6, generator=g())
"""
WAYS = [
    "self.turn.bias.data = torch.linspace(0, 1, 32)",
    "self.turn.weight.data.copy_(torch.ones(32, 6))",
    "self.turn.weight = nn.Parameter(torch.ones(32, 6))",
    "self.turn.bias.data.fill_(float(self.head.bias.detach().sum()))",
]


@pytest.mark.parametrize("write", WAYS)
def test_a_factory_may_write_values(case: MakeCase, write: str) -> None:
    it = case(NET.replace("WRITE", write))
    result = it.compress({"technique": "neuron_pruning", "sparsity": 0.25})
    loaded = it.load(result)
    assert loaded.turn.out_features == 24
    x = it.module.inputs()
    assert torch.isfinite(call(loaded, x)).all()
