"""MACs against what one counts by hand."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, strategies as st
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from held_data import HeldTask, compare
from zoopress.evaluation.computation import measure, total
from zoopress.evaluation.macs import Macs, count_macs
from zoopress.models.model import Model
from zoopress.models.packing import unpack
from zoopress.plugins import Plugins
from zoopress.techniques import Context
from zoopress.testing.models import ResidualBlock


def count(
    module: nn.Module, inputs: Any, masks: Mapping[str, Tensor] | None = None
) -> dict[str, Macs]:
    return count_macs(HeldTask(inputs), module.eval(), inputs, masks)


def macs(module: nn.Module, *inputs: Tensor) -> int:
    return total(count(module, inputs).values()).dense


def compress(plugins: Plugins, model: Model, technique: str, **config: Any) -> None:
    """Apply a technique that needs no data."""
    kind = plugins.technique(technique)
    context = Context(
        seed=0,
        device=torch.device("cpu"),
        batches=lambda: [],
        call=lambda module, batch: module(batch),
        progress=lambda *_: None,
        checkpoint=Path(),
    )
    kind(kind.config_type(**config)).apply(model, context)


class Attention(nn.Module):
    """Attention written out, or as torch's function."""

    def __init__(self, eager: bool, causal: bool = False) -> None:
        super().__init__()
        self.eager, self.causal = eager, causal

    def forward(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        if self.eager:
            return (query @ key.transpose(-1, -2)).softmax(-1) @ value
        return scaled_dot_product_attention(query, key, value, is_causal=self.causal)


class Products(nn.Module):
    """Products of matrices and vectors of which torch's counter knows none."""

    def forward(self, matrices: Tensor, vectors: Tensor) -> Tensor:
        matrix, vector = matrices[0], vectors[0]
        product = matrix @ vector  # 3 × 3
        product = torch.addmv(vector, matrix, product)  # 3 × 3
        summed = torch.addbmm(matrix, matrices, matrices)  # 2 × 3 × 3 × 3
        return (summed @ product) * torch.dot(vector, vector)  # 3 × 3, 3


class Experts(nn.Module):
    """A product in groups of rows, as mixtures of experts compute."""

    def forward(self, tokens: Tensor, experts: Tensor, ends: Tensor) -> Tensor:
        return torch._grouped_mm(tokens, experts, offs=ends)


@pytest.mark.parametrize("shape", [(1, 8), (8,), (1, 5, 8), (2, 5, 8)])
@pytest.mark.parametrize("bias", [True, False])
def test_a_linear_layer_takes_a_mac_for_each_weight_and_row(
    shape: tuple[int, ...], bias: bool
) -> None:
    rows = torch.Size(shape[:-1]).numel()
    assert macs(nn.Linear(8, 3, bias), torch.randn(shape)) == rows * 8 * 3


@given(
    groups=st.integers(1, 3),
    inputs=st.integers(1, 3),
    outputs=st.integers(1, 3),
    kernel=st.integers(1, 3),
    stride=st.integers(1, 2),
    axes=st.integers(1, 3),
)
def test_a_convolution_takes_a_kernel_for_each_output(
    groups: int, inputs: int, outputs: int, kernel: int, stride: int, axes: int
) -> None:
    kind = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[axes - 1]
    layer = kind(groups * inputs, groups * outputs, kernel, stride, groups=groups)
    side = (5 - kernel) // stride + 1
    expected = side**axes * groups * outputs * inputs * kernel**axes
    assert macs(layer, torch.randn(1, groups * inputs, *[5] * axes)) == expected


@given(groups=st.integers(1, 3), kernel=st.integers(1, 3), stride=st.integers(1, 3))
def test_a_transposed_convolution_takes_a_kernel_for_each_input(
    groups: int, kernel: int, stride: int
) -> None:
    layer = nn.ConvTranspose2d(groups * 2, groups * 3, kernel, stride, groups=groups)
    assert macs(layer, torch.randn(1, groups * 2, 4, 4)) == 16 * groups * 2 * 3 * kernel**2


@pytest.mark.parametrize(("kind", "gates"), [(nn.RNN, 1), (nn.GRU, 3), (nn.LSTM, 4)])
@pytest.mark.parametrize("bidirectional", [False, True])
def test_a_recurrent_layer_takes_its_weights_once_a_step(
    kind: type[nn.RNNBase], gates: int, bidirectional: bool
) -> None:
    layer = kind(4, 3, num_layers=2, bidirectional=bidirectional, batch_first=True)  # type: ignore[arg-type]
    directions = 1 + bidirectional
    first, second = 3 * (4 + 3), 3 * (3 * directions + 3)
    assert macs(layer, torch.randn(1, 5, 4)) == 5 * gates * directions * (first + second)


@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
def test_a_recurrent_projection_counts() -> None:
    # Gates of the input and the projected state, then 2 outputs of 3.
    assert macs(nn.LSTM(4, 3, proj_size=2), torch.randn(5, 1, 4)) == 5 * (12 * 4 + 12 * 2 + 2 * 3)


@pytest.mark.parametrize("eager", [True, False])
def test_attention_takes_a_product_for_the_scores_and_one_for_the_values(eager: bool) -> None:
    query, key, value = torch.randn(1, 2, 5, 4), torch.randn(1, 2, 7, 4), torch.randn(1, 2, 7, 4)
    assert macs(Attention(eager), query, key, value) == 2 * (5 * 4 * 7 + 5 * 7 * 4)


def test_attention_with_values_of_another_size_counts() -> None:
    query, key, value = torch.randn(1, 2, 5, 4), torch.randn(1, 2, 7, 4), torch.randn(1, 2, 7, 6)
    assert macs(Attention(False), query, key, value) == 2 * (5 * 4 * 7 + 5 * 7 * 6)


def test_causal_attention_counts_as_full() -> None:
    inputs = [torch.randn(1, 2, 6, 4) for _ in range(3)]
    assert macs(Attention(False, causal=True), *inputs) == macs(Attention(True), *inputs)


def test_multi_head_attention_and_encoder_layers_count_all_their_parts() -> None:
    x = torch.randn(1, 5, 8)
    attention = 5 * 8 * 24 + 2 * 5 * 5 * 8 + 5 * 8 * 8
    assert macs(nn.MultiheadAttention(8, 2, batch_first=True), x, x, x) == attention
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    assert count(layer, x) == {
        "self_attn": Macs(attention, attention),
        "linear1": Macs(640, 640),
        "linear2": Macs(640, 640),
    }


def test_products_with_vectors_count() -> None:
    assert macs(Products(), torch.randn(2, 3, 3), torch.randn(2, 3)) == 9 + 9 + 54 + 9 + 3


def test_grouped_products_and_bilinear_layers_count() -> None:
    tokens, experts = torch.randn(6, 8).bfloat16(), torch.randn(3, 8, 16).bfloat16()
    ends = torch.tensor([1, 2, 6], dtype=torch.int32)
    assert macs(Experts(), tokens, experts, ends) == 6 * 8 * 16
    assert macs(nn.Bilinear(4, 3, 2), torch.randn(1, 4), torch.randn(1, 3)) == 2 * 4 * 3


def test_look_ups_and_norms_cost_nothing() -> None:
    layer = nn.Sequential(nn.Embedding(9, 8), nn.LayerNorm(8), nn.GELU())
    assert macs(layer, torch.tensor([[1, 2, 3]])) == 0


def test_macs_belong_to_the_module_that_computes_them() -> None:
    found = count(ResidualBlock(4), torch.randn(1, 4, 6, 6))
    each = 36 * 4 * 4 * 9
    assert found == {"conv1": Macs(each, each), "conv2": Macs(each, each)}


def test_a_module_that_runs_twice_counts_twice_and_a_shared_one_once() -> None:
    layer = nn.Linear(4, 4)
    assert count(nn.Sequential(layer, nn.ReLU(), layer), torch.randn(1, 4)) == {"0": Macs(32, 32)}


def test_masked_weights_are_run_but_not_effective() -> None:
    model = Model(nn.Sequential(nn.Linear(8, 4), nn.Conv1d(1, 2, 3)))
    linear, conv = model.weights()
    model.mask(linear, torch.arange(32).view(4, 8) % 4 == 0)
    model.mask(conv, torch.tensor([[[True, False, False]], [[True, True, True]]]))
    found = count(model.module, torch.randn(1, 1, 8), model.masks)
    assert found == {"0": Macs(32, 8), "1": Macs(2 * 2 * 3, 2 * 4)}


def test_a_mask_counts_in_the_part_of_a_weight_that_is_used() -> None:
    attention = nn.MultiheadAttention(4, 1, batch_first=True)
    model = Model(attention)
    weight = next(w for w in model.weights() if w.attribute == "in_proj_weight")
    keep = torch.zeros(12, 4, dtype=torch.bool)
    keep[:4] = True  # the queries' third alone
    model.mask(weight, keep)
    query, key = torch.randn(1, 2, 4), torch.randn(1, 3, 4)  # so that each part is used by itself
    found = total(count(attention, (query, key, key), model.masks).values())
    products = 2 * 3 * 4 * 2
    assert found.dense == 2 * 16 + 3 * 16 + 3 * 16 + products + 2 * 16
    assert found.effective == 2 * 16 + products + 2 * 16


def test_masks_of_recurrent_weights_count() -> None:
    model = Model(nn.LSTM(4, 3, batch_first=True))
    for weight in list(model.weights()):
        keep = torch.zeros_like(weight.parameter, dtype=torch.bool)
        keep[:, 0] = True
        model.mask(weight, keep)
    found = total(count(model.module, torch.randn(1, 5, 4), model.masks).values())
    assert found == Macs(5 * 12 * (4 + 3), 5 * 12 * 2)


@pytest.mark.parametrize("name", ["cnn", "lstm", "transformer"])
@pytest.mark.parametrize(("bits", "group_size"), [(8, None), (4, 8)])
def test_packed_weights_count_as_the_dense_ones_with_their_masks(
    name: str,
    bits: int,
    group_size: int | None,
    plugins: Plugins,
    tiny: Callable[..., nn.Module],
    tiny_input: Callable[[str], Tensor],
) -> None:
    model = Model(tiny(name), plugins.layers)
    inputs = tiny_input(name)[:1]
    compress(plugins, model, "magnitude_pruning", sparsity=0.5)
    before = count(model.module, inputs, model.masks)
    assert total(before.values()).effective < 0.9 * total(before.values()).dense
    kinds = ("linear", "conv", "recurrent", "embedding")
    compress(plugins, model, "weight_quantization", bits=bits, group_size=group_size, kinds=kinds)
    assert count(model.module, inputs, model.masks) == before
    unpack(model.module, "all")
    assert count(model.module, inputs, model.masks) == before


def test_packed_weights_that_kernels_serve_count(plugins: Plugins) -> None:
    model = Model(nn.Sequential(nn.Linear(64, 32)), plugins.layers)
    compress(plugins, model, "weight_quantization", bits=8)
    output = model.module(torch.ones(1, 64))
    assert count(model.module, torch.randn(1, 64)) == {"0": Macs(64 * 32, 64 * 32)}
    assert torch.equal(model.module(torch.ones(1, 64)), output)  # by the kernel again


def test_a_report_lists_what_took_a_layers_place_as_that_layer(plugins: Plugins) -> None:
    original = nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 2))
    model = Model(nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 2)), plugins.layers)
    compress(plugins, model, "truncated_svd", rank=8, include=("0.*",))
    task = HeldTask(torch.randn(6, 32), batch_size=2)
    found = measure(compare(task, original, model, plugins), lambda *_: None)

    factored = 32 * 8 * 2
    assert found == {
        "inputs": [1, 32],
        "original_macs": 1024 + 64,
        "compressed_macs": factored + 64,
        "effective_macs": factored + 64,
        "reduction": (1024 + 64) / (factored + 64),
        "effective_reduction": (1024 + 64) / (factored + 64),
        "layers": [
            {
                "name": "0",
                "original_macs": 1024,
                "compressed_macs": factored,
                "effective_macs": factored,
            },
            {"name": "2", "original_macs": 64, "compressed_macs": 64, "effective_macs": 64},
        ],
        "layers_left_out": 0,
    }
    json.dumps(found, allow_nan=False)


def test_a_model_without_products_has_no_reduction(plugins: Plugins) -> None:
    task = HeldTask(torch.randn(4, 3))
    found = measure(compare(task, nn.ReLU(), nn.ReLU(), plugins), lambda *_: None)
    assert (found["original_macs"], found["reduction"]) == (0, None)
