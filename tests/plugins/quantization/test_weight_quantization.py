"""Quantization rounds to the nearest point of a grid that holds zero, and really takes the bits."""

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, strategies as st
from torch import Tensor, nn

from zoopress.errors import StageError
from zoopress.models.model import Model
from zoopress.models.packing import packed_weights
from zoopress.plugins import load_plugins
from zoopress.techniques import Outcome, Technique
from zoopress.testing import run_chain, tiny_card
from zoopress_plugins.quantization.forms.quantized import QuantizedWeight, dequantized
from zoopress_plugins.quantization.weight_quantization import (
    WeightQuantization,
    WeightQuantizationConfig,
    quantize,
)

pytestmark = pytest.mark.usefixtures("brief_latency")

PLUGINS = load_plugins()


class Tracking:
    """As much of a context as the technique uses."""

    plugins = PLUGINS
    seed = 0

    def track(self, items: list[object]) -> list[object]:
        return items


def apply(model: Model, **config: Any) -> Outcome:
    technique = WeightQuantization(WeightQuantizationConfig(**config))
    return technique.apply(model, Tracking())  # type: ignore[arg-type]


def rebuilt(
    codes: Tensor, scale: Tensor, zero_point: Tensor | None, bits: int, group_size: int
) -> Tensor:
    """Dequantize one number at a time, straight from the definition."""
    values = torch.zeros(codes.shape)
    for i, j in itertools.product(*map(range, codes.shape)):
        code = int(codes[i, j])
        if zero_point is None:
            level = code - 2**bits if code >= 2 ** (bits - 1) else code
        else:
            level = code - int(zero_point[i, j // group_size])
        values[i, j] = level * float(scale[i, j // group_size])
    return values


def test_four_bits_on_a_grid_worked_out_by_hand() -> None:
    matrix = torch.tensor([[7.0, -3.0, 0.4, -6.6], [0.0, 0.0, 0.0, 0.0]])
    codes, scale, zero_point = quantize(matrix, 4, None, symmetric=True, clipping=False)
    assert scale.tolist() == [[1.0], [1.0]]
    assert codes.tolist() == [[7, 16 - 3, 0, 16 - 7], [0, 0, 0, 0]]
    assert zero_point is None


def test_an_asymmetric_grid_spans_from_lowest_to_highest() -> None:
    matrix = torch.tensor([[-2.0, 0.0, 5.5, 1.0]])
    codes, scale, zero_point = quantize(matrix, 4, None, symmetric=False, clipping=False)
    assert scale.tolist() == [[0.5]]
    assert zero_point is not None
    assert zero_point.tolist() == [[4]]
    assert codes.tolist() == [[0, 4, 15, 6]]


@given(
    bits=st.integers(2, 8),
    symmetric=st.booleans(),
    group=st.sampled_from([None, 8, 16]),
    columns=st.integers(1, 40),
    power=st.integers(-8, 8),
    seed=st.integers(0, 999),
)
def test_rounding_errs_by_half_a_step_or_at_the_ends_of_an_asymmetric_grid_by_one_more(
    bits: int, symmetric: bool, group: int | None, columns: int, power: int, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    matrix = torch.randn(3, columns, generator=generator) * 10.0**power
    matrix[0, 0] = 0.0
    codes, scale, zero_point = quantize(matrix, bits, group, symmetric, clipping=False)
    size = min(group or columns, columns)
    assert scale.dtype == torch.bfloat16
    assert scale.shape == (3, -(-columns // size))
    values = rebuilt(codes, scale, zero_point, bits, size)
    steps = scale.float().repeat_interleave(size, 1)[:, :columns]
    # Rounding the zero point shifts the ends of the range by half a step, and rounding the scale to
    # bfloat16's 8 bits moves them by up to another half.
    allowed = (0.5 if symmetric else 1.5) * steps * (1 + 1e-5)
    assert bool(((values - matrix).abs() <= allowed).all())
    assert values[0, 0] == 0


@given(bits=st.integers(2, 8), symmetric=st.booleans(), seed=st.integers(0, 999))
def test_clipping_never_has_a_larger_squared_error(bits: int, symmetric: bool, seed: int) -> None:
    matrix = torch.randn(2, 24, generator=torch.Generator().manual_seed(seed))
    errors = []
    for clipping in (False, True):
        parts = quantize(matrix, bits, None, symmetric, clipping)
        errors.append((rebuilt(*parts, bits, 24) - matrix).square().sum(1))
    assert bool((errors[1] <= errors[0] * (1 + 1e-6) + 1e-12).all())


def test_clipping_helps_where_an_outlier_stretches_the_grid() -> None:
    matrix = torch.cat([torch.linspace(-1, 1, 63), torch.tensor([1.6])])[None]
    errors = [
        (rebuilt(*quantize(matrix, 2, None, True, clipping), 2, 64) - matrix).square().sum()
        for clipping in (False, True)
    ]
    assert errors[1] < 0.8 * errors[0]


@pytest.mark.parametrize("symmetric", [True, False])
def test_subnormal_weights_become_zero_and_not_nan(symmetric: bool) -> None:
    matrix = torch.full((2, 16), 1e-41)
    codes, scale, zero_point = quantize(matrix, 4, None, symmetric, clipping=True)
    assert scale.isfinite().all()
    assert bool((rebuilt(codes, scale, zero_point, 4, 16).abs() <= 1e-40).all())


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("symmetric", [True, False])
def test_the_packed_weight_computes_with_the_rounded_weights(bits: int, symmetric: bool) -> None:
    torch.manual_seed(bits)
    linear = nn.Linear(40, 16)
    matrix, bias = linear.weight.detach().clone(), linear.bias.detach().clone()
    model = Model(nn.Sequential(linear).eval(), PLUGINS.layers)
    apply(model, bits=bits, group_size=16, symmetric=symmetric)
    expected = rebuilt(*quantize(matrix, bits, 16, symmetric, True), bits, 16)
    (packed,) = packed_weights(model.module).values()
    assert isinstance(packed, QuantizedWeight)
    torch.testing.assert_close(dequantized(packed), expected)
    inputs = torch.randn(3, 40)
    torch.testing.assert_close(model.module(inputs), inputs @ expected.T + bias)


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(4, 6, 3),
        nn.ConvTranspose1d(4, 6, 3),
        nn.Embedding(9, 12),
        nn.GRU(6, 8, bidirectional=True),
    ],
    ids=lambda layer: type(layer).__name__,
)
def test_any_layer_holds_its_quantized_weight_in_its_own_shape(layer: nn.Module) -> None:
    model = Model(nn.Sequential(layer).eval(), PLUGINS.layers)
    before = {weight.name: weight.parameter.detach().clone() for weight in model.weights()}
    outcome = apply(model, bits=8, clipping="none")
    packed = packed_weights(model.module)
    assert set(outcome.touched) == set(before) == set(packed)
    assert not list(model.weights())
    for name, weight in packed.items():
        assert weight.dense().shape == before[name].shape
        error = (weight.dense() - before[name]).abs().max()
        assert error <= before[name].abs().max() / 127 * 0.51


def test_the_claim_counts_the_bits_that_are_stored() -> None:
    model = Model(nn.Sequential(nn.Linear(64, 32, bias=False)), PLUGINS.layers)
    outcome = apply(model, bits=4, group_size=32)
    (claim,) = outcome.claims
    stored = sum(tensor.nbytes for tensor in model.tensors().values())
    assert outcome.notes["bits_per_weight"] == 8 * stored / (64 * 32) == 4.5
    assert (claim.requested, claim.reached) == (28, 27.5)


def test_a_weight_that_costs_more_than_it_saves_is_left_and_alone_refused() -> None:
    narrow, wide = nn.Linear(1, 32, bias=False), nn.Linear(32, 8, bias=False)
    outcome = apply(Model(nn.Sequential(narrow, wide).half(), PLUGINS.layers), bits=8)
    assert outcome.touched == ["1.weight"]
    assert set(outcome.notes["left"]) == {"0.weight"}
    with pytest.raises(StageError, match="takes fewer bytes"):
        apply(Model(nn.Sequential(nn.Linear(1, 32, bias=False)).half(), PLUGINS.layers), bits=8)


def chain(folder: Path, *stages: tuple[str, dict[str, Any]]) -> int:
    """Return the bytes of the artifact's tensor file."""
    techniques: list[Technique[Any]] = []
    for name, config in stages:
        kind = PLUGINS.technique(name)
        techniques.append(kind(kind.config_type(**config)))
    result = run_chain(techniques, tiny_card("cnn", folder), folder / "out", PLUGINS)
    return result.report.last.weight_bytes


@pytest.mark.parametrize("coding", [(), (("entropy_coding", {}),)], ids=["plain", "coded"])
def test_pruned_weights_take_fewer_bytes_after_quantization(
    coding: tuple[tuple[str, dict[str, Any]], ...], tmp_path: Path
) -> None:
    prune = ("magnitude_pruning", {"sparsity": 0.8})
    four_bits = ("weight_quantization", {"bits": 4, "group_size": 32})
    dense = chain(tmp_path / "dense", four_bits, *coding)
    pruned = chain(tmp_path / "pruned", prune, four_bits, *coding)
    assert pruned < 0.75 * dense
