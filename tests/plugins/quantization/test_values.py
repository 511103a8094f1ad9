"""Whatever the values of a weight: what is rounded is finite and close, and zeros stay zeros."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import Tensor, nn

from zoopress.errors import StageError
from zoopress.models.fitness import norm_kept, unfit_for_few_bits
from zoopress.models.model import Model
from zoopress.models.packing import packed_weights
from zoopress.plugins import load_plugins
from zoopress.techniques import Outcome
from zoopress_plugins.quantization.rate_distortion.packing import (
    pack,
    quantize_weights,
    starting_slope,
)
from zoopress_plugins.quantization.rate_distortion.solver import Settings

PLUGINS = load_plugins()


class Alone:
    """As much of a context as techniques use that look at weights alone."""

    seed = 0
    plugins = PLUGINS

    def track(self, items: Iterable[Any]) -> Iterable[Any]:
        return items

    def progress(self, name: str, fraction: float | None = None) -> None:
        pass

    def generator(self) -> torch.Generator:
        return torch.Generator().manual_seed(0)

    def batches(self) -> list[torch.Tensor]:
        return [torch.randn(4, 32, generator=self.generator())]

    def call(self, module: nn.Module, batch: torch.Tensor) -> torch.Tensor:
        dtype = next(module.parameters()).dtype
        with torch.no_grad():
            output: torch.Tensor = module(batch.to(dtype))
        return output.float()


@st.composite
def matrices(draw: st.DrawFn) -> Tensor:
    """A matrix as models have them, or as they should not: rows of zeros, one huge number, …"""
    rows, columns = draw(st.integers(1, 12)), draw(st.sampled_from([8, 16, 24, 40, 33]))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 1 << 16)))
    matrix = torch.randn(rows, columns, generator=generator)
    matrix *= 10.0 ** draw(st.sampled_from([-40, -20, -12, -7, -1, 0, 3, 12, 30]))
    kinds = draw(
        st.lists(
            st.sampled_from(["zero row", "constant row", "zeros", "outlier", "all zero"]),
            max_size=3,
            unique=True,
        )
    )
    for kind in kinds:
        row = draw(st.integers(0, rows - 1))
        if kind == "zero row":
            matrix[row] = 0
        elif kind == "constant row":
            matrix[row] = matrix[row, 0]
        elif kind == "zeros":
            matrix[torch.rand(matrix.shape, generator=generator) < 0.4] = 0
        elif kind == "outlier":
            matrix[row, 0] = draw(st.sampled_from([1e30, -1e30, 1e8, -300.0]))
        else:
            matrix.zero_()
    return matrix


def rate_distortion(model: Model, quantizer: str, steps: str) -> Outcome:
    weights = list(model.weights())
    slope = starting_slope(weights, {}, 7.0)
    given_settings = Settings(quantizer, True, steps)  # type: ignore[arg-type]
    packings = quantize_weights(weights, {}, {}, given_settings, max(slope, 1e-300))
    return Outcome(pack(model, weights, packings))


def named(name: str, **config: Any) -> Callable[[Model], Outcome]:
    kind = PLUGINS.technique(name)
    made = kind(kind.config_type(**config))
    return lambda model: made.apply(model, Alone())


ROUNDINGS = {
    "grid": named("weight_quantization", bits=8),
    "grid in groups": named("weight_quantization", bits=6, group_size=8, symmetric=False),
    "codebook": named("codebook_quantization", bits=7),
    "codebook, entropy": named("codebook_quantization", bits=7, entropy_weight=1e-5),
    "lattice": named("lattice_quantization", step=0.03),
    "lattice, rows": named("lattice_quantization", step=0.03, steps="row"),
    "lattice, plain": named("lattice_quantization", step=0.03, dither=False, lattice="Z"),
    "lattice, no dither": named("lattice_quantization", step=0.03, dither=False),
    "trellis": lambda model: rate_distortion(model, "trellis", "both"),
    "uniform": lambda model: rate_distortion(model, "uniform", "row"),
}


@pytest.mark.parametrize("rounding", ROUNDINGS)
@settings(max_examples=60)
@given(matrices())
def test_what_is_rounded_is_finite_and_close_and_zeros_stay_zeros(
    rounding: str, matrix: Tensor
) -> None:
    linear = nn.Linear(matrix.shape[1], len(matrix), bias=False)
    with torch.no_grad():
        linear.weight.copy_(matrix)
    model = Model(nn.Sequential(linear), PLUGINS.layers)
    (weight,) = model.weights()
    unfit = unfit_for_few_bits(weight)
    refusal = None
    try:
        ROUNDINGS[rounding](model)
    except StageError as error:
        refusal = str(error)
    if refusal is not None:
        assert "selected weights" in refusal
        assert "fewer bytes" in refusal or (unfit is not None and unfit in refusal)
        return
    packed = packed_weights(model.module)
    if not packed:
        return  # it takes fewer bits as it is, or steps cannot stand for it
    dense = packed["0.weight"].value()
    assert bool(dense.isfinite().all())
    assert not bool(dense[matrix == 0].any())
    assert 0.9 < norm_kept(matrix, dense) < 1.1
    assert norm_kept(matrix, dense - matrix) < (0.15 if bool(matrix.any()) else 1.1)


@pytest.mark.parametrize("name", ["weight_quantization", "codebook_quantization"])
def test_a_weight_of_two_magnitudes_is_left_and_named(name: str) -> None:
    net = nn.Sequential(nn.Linear(32, 16, bias=False), nn.Linear(16, 8, bias=False))
    with torch.no_grad():
        net[1].weight[0, 0] = -1e30
    outcome = named(name)(Model(net, PLUGINS.layers))
    assert outcome.touched == ["0.weight"]
    assert "1e+30" in outcome.notes["left"]["1.weight"]


def test_sixteen_bits_refuse_what_they_would_make_nothing_of() -> None:
    for value, said in ((1e-9, "too small"), (1e9, "too large")):
        net = nn.Sequential(nn.Linear(32, 16), nn.Linear(16, 8))
        with torch.no_grad():
            net[1].weight.mul_(value)
        lower = named("float_precision", dtype="float16")
        with pytest.raises(StageError, match=rf"1\.weight: .*{said}.*bfloat16"):
            lower(Model(net, PLUGINS.layers))
        assert net[0].weight.dtype == torch.float32  # nothing was changed before
        named("float_precision", dtype="bfloat16")(Model(net, PLUGINS.layers))
        assert bool(net[1].weight.any())


def test_a_tiny_bias_is_rounded_to_zero_and_told() -> None:
    net = nn.Sequential(nn.Linear(32, 16))
    with torch.no_grad():
        net[0].bias.fill_(1e-9)
    outcome = named("float_precision", dtype="float16")(Model(net, PLUGINS.layers))
    assert outcome.notes["rounded_to_zero"] == ["0.bias"]
