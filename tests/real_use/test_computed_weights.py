"""Models under weight norm, spectral norm and masks of torch's own, as people bring them."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

from real_use_case import MakeCase, call

NET = """
import warnings
from torch.nn.utils import parametrizations, prune, spectral_norm, weight_norm


def normed(layer):
    WAY
    return layer


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(
            normed(nn.Conv1d(2, 32, 3)), nn.ReLU(), normed(nn.Conv1d(32, 48, 3)), nn.ReLU()
        )
        self.head = nn.Linear(48, 5)

    def forward(self, x):
        return self.head(self.body(x).mean(-1))


def build():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return Net()


def inputs():
    return torch.randn(64, 2, 12, generator=g())
"""
WAYS = {
    "weight norm": "parametrizations.weight_norm(layer)",
    "spectral norm": "parametrizations.spectral_norm(layer)",
    "orthogonal": "parametrizations.orthogonal(layer)",
    "old weight norm": "weight_norm(layer)",
    "old spectral norm": "spectral_norm(layer)",
    "torch's pruning": "prune.l1_unstructured(layer, 'weight', 0.25)",
}
CHAINS: dict[str, list[dict[str, Any]]] = {
    "neurons": [{"technique": "neuron_pruning", "sparsity": 0.3}],
    "low rank": [{"technique": "truncated_svd", "parameters": 0.5}],
    "four bits": [
        {"technique": "magnitude_pruning", "sparsity": 0.5},
        {"technique": "weight_quantization", "bits": 4},
        {"technique": "entropy_coding"},
    ],
    "rate-distortion": [
        {"technique": "rate_distortion_quantization", "target": {"bits_per_weight": 6}}
    ],
}


@pytest.mark.parametrize("chain", CHAINS)
@pytest.mark.parametrize("way", WAYS)
def test_techniques_reach_computed_weights(case: MakeCase, way: str, chain: str) -> None:
    it = case(NET.replace("WAY", WAYS[way]))
    result = it.compress(*CHAINS[chain])
    loaded, x = it.load(result), it.module.inputs()[:4]
    names = {n for n, _ in loaded.named_parameters()} | {n for n, _ in loaded.named_buffers()}
    assert not any(name.endswith(("_v", "_orig", "original", "original0")) for name in names)
    assert call(loaded, x).shape == (4, 5)
    report = json.loads((result.folder / "report.json").read_text(encoding="utf-8"))
    notes = report["stages"][0]["notes"]
    if chain == "neurons":
        assert notes["neurons_before"] == 80
        assert set(notes["fixed"].values()) == {1}
        assert loaded.body[2].in_channels < 32


def test_sixteen_bits_keep_what_weights_are_computed_from(case: MakeCase) -> None:
    it = case(NET.replace("WAY", WAYS["weight norm"]))
    loaded = it.load(it.compress({"technique": "float_precision"}))
    assert loaded.state_dict().keys() == it.model.state_dict().keys()
    x = it.module.inputs()
    assert torch.allclose(call(loaded, x.bfloat16()).float(), call(it.model, x), atol=0.05)
