"""Truncated SVD gives the closest matrix of its rank, and layers that compute with it."""

from typing import Any

import pytest
import torch
from hypothesis import given, strategies as st
from pydantic import ValidationError
from torch import Tensor, nn

from zoopress.errors import StageError
from zoopress.models.model import Model
from zoopress.models.packing import packed_weights
from zoopress.plugins import load_plugins
from zoopress.techniques import MASKS, Outcome
from zoopress_plugins.low_rank.layers.factored import FactoredConv, FactoredLinear, product
from zoopress_plugins.low_rank.truncated_svd import (
    TruncatedSvd,
    TruncatedSvdConfig,
    rank_for_energy,
    truncate,
)

PLUGINS = load_plugins()


class Tracking:
    """As much of a context as the technique uses."""

    plugins, seed = PLUGINS, 0

    def track(self, items: list[object], record: object = None) -> list[object]:
        return items


def factor(module: nn.Module, **config: Any) -> tuple[Model, Outcome]:
    model = Model(nn.Sequential(module).eval(), PLUGINS.layers)
    technique = TruncatedSvd(TruncatedSvdConfig(**config))
    return model, technique.apply(model, Tracking())  # type: ignore[arg-type]


def closest(matrix: Tensor, rank: int) -> Tensor:
    u, s, vh = torch.linalg.svd(matrix.double(), full_matrices=False)
    s[rank:] = 0
    nearest: Tensor = ((u * s) @ vh).float()
    return nearest


@given(
    rows=st.integers(1, 12),
    columns=st.integers(1, 12),
    rank=st.integers(1, 12),
    seed=st.integers(0, 99),
)
def test_the_error_is_that_of_the_discarded_singular_values(
    rows: int, columns: int, rank: int, seed: int
) -> None:
    rank = min(rank, rows, columns)
    matrix = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))
    up, down = truncate(matrix, rank)
    assert (up.shape, down.shape) == ((rows, rank), (rank, columns))
    lost = torch.linalg.svdvals(matrix)[rank:].square().sum().sqrt()
    error = (matrix - up @ down).norm()
    assert float(error) == pytest.approx(float(lost), abs=1e-4)


def test_both_factors_carry_the_root_of_the_singular_values() -> None:
    up, down = truncate(torch.diag(torch.tensor([9.0, 4.0, 1.0])), 2)
    assert up.norm(dim=0).tolist() == pytest.approx([3, 2])
    assert down.norm(dim=1).tolist() == pytest.approx([3, 2])


def test_the_rank_for_an_energy_is_the_smallest_that_keeps_it() -> None:
    matrix = torch.diag(torch.tensor([3.0, 2.0, 1.0, 1.0]))  # squares 9, 4, 1, 1
    assert [rank_for_energy(matrix, e) for e in (0.5, 0.7, 0.9, 0.99)] == [1, 2, 3, 4]
    assert rank_for_energy(torch.zeros(3, 3), 0.5) <= 3


def test_a_linear_layer_computes_with_the_closest_matrix() -> None:
    torch.manual_seed(0)
    linear = nn.Linear(24, 18)
    expected, bias = closest(linear.weight.detach(), 3), linear.bias.detach().clone()
    model, outcome = factor(linear, rank=3)
    layer = model.module[0]  # type: ignore[index]
    assert isinstance(layer, FactoredLinear)
    torch.testing.assert_close(product(layer), expected, atol=1e-5, rtol=1e-4)
    inputs = torch.randn(5, 24)
    torch.testing.assert_close(layer(inputs), inputs @ expected.T + bias, atol=1e-4, rtol=1e-4)
    assert list(outcome.touched) == ["0"]


@pytest.mark.parametrize(
    ("conv", "size"),
    [
        (nn.Conv1d(8, 12, 3, padding="same"), (20,)),
        (nn.Conv2d(8, 12, (3, 2), stride=2, padding=1, padding_mode="circular"), (9, 8)),
        (nn.Conv2d(8, 12, 3, dilation=2, bias=False), (9, 9)),
        (nn.Conv3d(4, 12, 2), (5, 5, 5)),
    ],
    ids=["1d, same", "2d, circular", "2d, dilated", "3d"],
)
def test_a_convolution_computes_with_the_closest_flattened_kernel(
    conv: nn.Conv2d, size: tuple[int, ...]
) -> None:
    torch.manual_seed(0)
    kernel = conv.weight.detach().clone()
    expected = closest(kernel.flatten(1), 4)
    inputs = torch.randn(2, conv.in_channels, *size)
    with torch.no_grad():
        conv.weight.copy_(expected.view_as(kernel))
        reference = conv(inputs)
        conv.weight.copy_(kernel)
    model, _ = factor(conv, rank=4)
    layer = model.module[0]  # type: ignore[index]
    assert isinstance(layer, FactoredConv)
    torch.testing.assert_close(product(layer), expected, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(layer(inputs), reference, atol=1e-4, rtol=1e-4)


def test_the_share_of_parameters_is_kept_or_less() -> None:
    model, outcome = factor(nn.Linear(64, 64, bias=False), parameters=0.5)
    assert model.parameter_count() == 16 * 128 == 64 * 64 // 2
    assert outcome.claims[0].reached == 0.5


def test_factors_can_be_quantized() -> None:
    torch.manual_seed(0)
    model, _ = factor(nn.Conv2d(16, 32, 3), parameters=0.5)
    before = {weight.name: weight.parameter.detach().clone() for weight in model.weights()}
    quantization: Any = PLUGINS.technique("weight_quantization")
    quantization(quantization.config_type(bits=8)).apply(model, Tracking())
    packed = packed_weights(model.module)
    assert set(packed) == set(before) == {"0.down.weight", "0.up.weight"}
    for name, weight in packed.items():
        assert (weight.dense() - before[name]).abs().max() < before[name].abs().max() / 50
    assert model.module(torch.randn(1, 16, 5, 5)).isfinite().all()


@pytest.mark.parametrize(
    ("module", "reason"),
    [
        (nn.Conv2d(8, 8, 3, groups=8), "groups"),
        (nn.ConvTranspose2d(8, 8, 3), "no factored form"),
        (nn.MultiheadAttention(16, 2), "not a layer of its own"),
        (nn.Linear(2, 2), "not make it smaller"),
    ],
)
def test_a_layer_that_cannot_be_factored_is_named_with_the_reason(
    module: nn.Module, reason: str
) -> None:
    with pytest.raises(StageError, match=rf"None of the \d selected.*{reason}"):
        factor(module, rank=2)


def test_a_tied_layer_is_left_alone() -> None:
    tied = nn.Sequential(nn.Embedding(32, 32), nn.Linear(32, 32, bias=False), nn.Linear(32, 32))
    tied[1].weight = tied[0].weight
    model, outcome = factor(tied, rank=2)
    assert list(outcome.touched) == ["0.2"]
    assert model.module[0][1].weight is model.module[0][0].weight  # type: ignore[index]


def test_pruning_before_factoring_is_declared_in_vain() -> None:
    assert MASKS in TruncatedSvd(TruncatedSvdConfig(rank=2)).effects().destroys


@pytest.mark.parametrize("config", [{}, {"rank": 2, "energy": 0.9}, {"rank": 2, "kinds": ["x"]}])
def test_a_config_without_exactly_one_goal_is_refused(config: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        TruncatedSvdConfig(**config)


def test_kinds_without_a_factored_form_are_refused() -> None:
    with pytest.raises(ValidationError, match="only linear and conv"):
        TruncatedSvdConfig(rank=2, kinds=("embedding",))
