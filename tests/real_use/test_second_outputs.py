"""Outputs besides the first."""

from __future__ import annotations

from real_use_case import MakeCase, call


def test_pruning_keeps_the_shape_of_every_output(case: MakeCase) -> None:
    it = case("""
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Linear(32, 64)
        self.h = nn.Linear(64, 64)
        self.b = nn.Linear(64, 16)

    def forward(self, x):
        f = torch.relu(self.h(torch.relu(self.a(x))))
        return {"logits": self.b(f), "features": f}


def build():
    return Net()


def inputs():
    return torch.randn(64, 32, generator=g())
""")
    result = it.compress({"technique": "neuron_pruning", "sparsity": 0.25})
    x = it.module.inputs()[:4]
    found, wanted = call(it.load(result), x), call(it.model, x)
    assert {k: v.shape for k, v in found.items()} == {k: v.shape for k, v in wanted.items()}
