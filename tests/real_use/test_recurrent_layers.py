"""Recurrent layers between others."""

from __future__ import annotations

import pytest

from real_use_case import MakeCase


@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
def test_units_of_recurrent_layers_behind_linear_ones_are_found(case: MakeCase, kind: str) -> None:
    it = case(f"""
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.i = nn.Linear(16, 32)
        self.r = nn.{kind}(32, 64, batch_first=True)
        self.o = nn.Linear(64, 8)

    def forward(self, x):
        return self.o(self.r(torch.relu(self.i(x)))[0][:, -1])


def build():
    return Net()


def inputs():
    return torch.randn(64, 5, 16, generator=g())
""")
    result = it.compress({"technique": "neuron_pruning", "sparsity": 0.25})
    assert it.load(result).r.hidden_size < 64
