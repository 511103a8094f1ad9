"""Fewer bytes means fewer than the model came with, and only what it uses counts."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from real_use_case import MakeCase, call, error
from zoopress.errors import GateError, SourceError

NET = """
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Linear(64, 256)
        self.b = nn.Linear(256, 64)

    def forward(self, x):
        return self.b(torch.relu(self.a(x)))


def build():
    return Net()


def inputs():
    return torch.randn(64, 64, generator=g())
"""
PRUNED = {"technique": "magnitude_pruning", "sparsity": 0.1}


def in_type(dtype: torch.dtype) -> Any:
    return lambda model: {name: value.to(dtype) for name, value in model.state_dict().items()}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    "stage", [PRUNED, {"technique": "neuron_pruning", "sparsity": 0.1}], ids=["weights", "neurons"]
)
def test_a_model_that_came_in_16_bits_goes_on_in_16_bits(
    case: MakeCase, dtype: torch.dtype, stage: dict[str, Any]
) -> None:
    it = case(NET, in_type(dtype))
    result = it.compress(stage)
    assert result.report.last.weight_bytes < result.report.last.original_weight_bytes
    assert result.report.last.weight_bytes < (it.folder / "weights.pt").stat().st_size
    loaded = it.load(result)
    assert loaded.a.weight.dtype == torch.float32  # it computes as it did
    state = {name: value.float() for name, value in in_type(dtype)(it.model).items()}
    it.model.load_state_dict(state)
    kept = loaded.a.weight != 0
    if kept.shape == it.model.a.weight.shape:
        assert torch.equal(loaded.a.weight[kept], it.model.a.weight[kept])


def test_factors_in_32_bits_of_a_model_in_16_are_no_saving(case: MakeCase) -> None:
    it = case(NET, in_type(torch.float16))
    svd = {"technique": "truncated_svd", "parameters": 0.9}
    with pytest.raises(GateError, match=r"bytes_shrank.*did not shrink"):
        it.compress(svd)
    # An earlier stage that promises nothing does not lower the bar.
    with pytest.raises(GateError, match="bytes_shrank"):
        it.compress({"technique": "float_precision", "dtype": "float16"})


def test_an_optimizer_beside_the_weights_does_not_count(case: MakeCase) -> None:
    def save(model: nn.Module) -> dict[str, Any]:
        moments = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
        return {"model": model.state_dict(), "optimizer": {"state": [moments, moments]}, "step": 3}

    it = case(NET, save)
    result = it.compress({"technique": "weight_quantization"})
    used = sum(p.nbytes for p in it.model.parameters())
    report = result.report
    assert (it.folder / "weights.pt").stat().st_size > 1.9 * used
    assert used < report.original_size_bytes < 1.1 * used
    assert used < report.original_weight_bytes < 1.1 * used
    assert 3.3 < report.compression_ratio < 4
    # Asked of what is in the store, which was loaded by another process, it is the same.
    again = it.compress({"technique": "weight_quantization"}, targets={"min_compression_ratio": 3})
    assert again.report.original_size_bytes == report.original_size_bytes
    assert again.computed == ()


def test_buffers_that_code_makes_are_neither_stored_nor_counted(case: MakeCase) -> None:
    it = case(
        NET.replace(
            "        self.b = nn.Linear(256, 64)\n",
            "        self.b = nn.Linear(256, 64)\n"
            "        table = torch.sin(torch.arange(4096 * 64.0).view(4096, 64) / 100)\n"
            "        self.register_buffer('table', table, persistent=False)\n"
            "        self.register_buffer('drawn', torch.zeros(64), persistent=False)\n",
        ).replace("self.a(x)", "self.a(x + self.table[:1] + self.drawn)")
    )
    it.model.drawn.fill_(0.5)
    result = it.compress(PRUNED, {"technique": "weight_quantization"})
    for stage in result.report.stages:
        assert stage.weight_bytes < stage.original_weight_bytes < 140_000  # the table has 1 MB
    loaded, x = it.load(result), it.module.inputs()[:4]
    assert torch.equal(loaded.table, it.model.table)
    it.model.drawn.zero_()
    assert error(call(it.model, x), call(loaded, x)) < 0.1


def test_a_buffer_that_code_makes_otherwise_each_time_is_refused_by_name(case: MakeCase) -> None:
    it = case(
        NET.replace(
            "        self.b = nn.Linear(256, 64)\n",
            "        self.b = nn.Linear(256, 64)\n"
            "        self.register_buffer('noise', torch.randn(64), persistent=False)\n",
        ).replace("self.a(x)", "self.a(x + self.noise)")
    )
    with pytest.raises(SourceError, match="'noise' has other values each time"):
        it.compress(PRUNED)
