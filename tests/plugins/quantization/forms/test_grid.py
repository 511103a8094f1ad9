"""A weight of integers times steps computes what its definition says, in every module."""

import copy
import itertools
from typing import Any

import pytest
import torch
from hypothesis import given, strategies as st
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from zoopress.coding.layout import Integers
from zoopress.models.model import Model
from zoopress.models.packed_call import packed_linear
from zoopress.models.packing import packed_weights, unpack
from zoopress.models.weights import Weight, from_matrix
from zoopress.plugins import load_plugins
from zoopress_plugins.quantization.forms.grid import GridWeight
from zoopress_plugins.quantization.rate_distortion.packing import Packing, pack, packing_of
from zoopress_plugins.quantization.rate_distortion.solver import Grid

PLUGINS = load_plugins()
ALL_KINDS = ("linear", "conv", "recurrent", "embedding", "parameter", "vector")


def random_grid(
    rows: int, columns: int, steps: str, largest: int, seed: int = 0, scale: float = 1.0
) -> Grid:
    generator = torch.Generator().manual_seed(seed)

    def step(size: int) -> Tensor:
        return (torch.rand(size, generator=generator) + 0.5).bfloat16() * scale

    codes = torch.randint(-largest, largest + 1, (rows, columns), generator=generator)
    return Grid(
        codes=codes.to(torch.int16),
        row_step=step(rows) if steps in ("row", "both") else None,
        column_step=step(columns) if steps in ("column", "both") else None,
        scan="columns",
        trellis=False,
        bits=0.0,
        distortion=0.0,
    )


def by_definition(grid: Grid) -> Tensor:
    """Multiply one number at a time, in double precision."""
    matrix = torch.zeros(grid.codes.shape, dtype=torch.float64)
    for r, c in itertools.product(*map(range, matrix.shape)):
        row = 1.0 if grid.row_step is None else float(grid.row_step[r])
        column = 1.0 if grid.column_step is None else float(grid.column_step[c])
        matrix[r, c] = int(grid.codes[r, c]) * row * column
    return matrix


def packed_by(packing: Packing, shape: torch.Size, dtype: torch.dtype, axis: int) -> GridWeight:
    weight = GridWeight(shape, dtype, axis, **packing.arguments)  # type: ignore[arg-type]
    for name, tensor in packing.tensors.items():
        assert getattr(weight, name).shape == tensor.shape
        assert getattr(weight, name).dtype == tensor.dtype
        setattr(weight, name, tensor)
    return weight


def pack_all(model: Model, steps: str = "both", largest: int = 20) -> list[Weight]:
    weights = list(model.weights(ALL_KINDS))
    packings = [
        packing_of(random_grid(*weight.matrix().shape, steps, largest, seed, 2**-6))
        for seed, weight in enumerate(weights)
    ]
    pack(model, weights, packings)
    return weights


def test_a_grid_worked_out_by_hand() -> None:
    grid = Grid(
        codes=torch.tensor([[1, -2, 0], [3, 0, 127]], dtype=torch.int16),
        row_step=torch.tensor([0.5, 2.0]).bfloat16(),
        column_step=torch.tensor([1.0, 0.25, 3.0]).bfloat16(),
        scan="rows",
        trellis=True,
        bits=0.0,
        distortion=0.0,
    )
    packing = packing_of(grid)
    assert packing.arguments == {"bits": 8, "steps": "both", "scan": "rows", "trellis": True}
    weight = packed_by(packing, torch.Size((2, 3)), torch.float32, 0)
    assert weight.dense().tolist() == [[0.5, -0.25, 0.0], [6.0, 0.0, 762.0]]
    assert weight.embedding(torch.tensor([[1], [0]])).tolist() == [
        [[6.0, 0.0, 762.0]],
        [[0.5, -0.25, 0.0]],
    ]
    assert weight.code_layouts() == {"codes": Integers("rows", True)}
    assert weight.tunable() == ("row_step", "column_step")


@given(
    rows=st.integers(1, 9),
    columns=st.integers(1, 9),
    steps=st.sampled_from(["row", "column", "both"]),
    largest=st.sampled_from([0, 1, 127, 128, 32767]),
    dtype=st.sampled_from([torch.float64, torch.float32, torch.bfloat16, torch.float16]),
    seed=st.integers(0, 99),
)
def test_the_dense_weight_is_the_definition_rounded_once(
    rows: int, columns: int, steps: str, largest: int, dtype: torch.dtype, seed: int
) -> None:
    grid = random_grid(rows, columns, steps, largest, seed)
    packing = packing_of(grid)
    assert (
        packing.tensors["codes"].dtype
        == (torch.int8 if int(grid.codes.abs().max()) <= 127 else torch.int16)
        or int(grid.codes.min()) == -128
    )
    weight = packed_by(packing, torch.Size((rows, columns)), dtype, 0)
    exact = by_definition(grid)
    between = exact.to(torch.promote_types(dtype, torch.float32))
    assert torch.equal(weight.dense(), between.to(dtype))
    indices = torch.tensor([rows - 1, 0])
    assert torch.equal(weight.embedding(indices), weight.dense()[indices])


@pytest.mark.parametrize("steps", ["row", "column"])
def test_steps_that_are_all_alike_are_stored_once(steps: str) -> None:
    grid = random_grid(4, 5, steps, 3)
    name = f"{steps}_step"
    alike = torch.full_like(getattr(grid, name), 0.75)
    packing = packing_of(Grid(**{**vars(grid), name: alike}))
    assert packing.arguments["steps"] == "tensor"
    assert packing.tensors["row_step"].tolist() == [0.75]
    weight = packed_by(packing, torch.Size((4, 5)), torch.float32, 0)
    assert torch.equal(weight.dense(), grid.codes * 0.75)
    assert torch.equal(weight.embedding(torch.tensor([2])), grid.codes[2:3] * 0.75)


def test_a_grid_without_steps_has_a_step_of_one() -> None:
    grid = random_grid(4, 5, "none", 3)
    packing = packing_of(grid)
    assert packing.arguments["steps"] == "tensor"
    weight = packed_by(packing, torch.Size((4, 5)), torch.float32, 0)
    assert torch.equal(weight.dense(), grid.codes.float())


@pytest.mark.parametrize(("axis", "shape"), [(0, (3, 2, 4)), (1, (2, 3, 4)), (0, (3,))])
def test_a_weight_of_any_shape_goes_back_into_it(axis: int, shape: tuple[int, ...]) -> None:
    columns = torch.Size(shape).numel() // 3
    grid = random_grid(3, columns, "row", 9)
    weight = packed_by(packing_of(grid), torch.Size(shape), torch.float32, axis)
    assert torch.equal(
        weight.dense(), from_matrix(by_definition(grid).float(), torch.Size(shape), axis)
    )


@given(
    inputs=st.integers(1, 140),
    rows=st.integers(1, 40),
    columns=st.sampled_from([5, 32, 64]),
    steps=st.sampled_from(["row", "column", "both"]),
    largest=st.sampled_from([127, 300]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
)
def test_every_product_agrees_with_the_dense_one(
    inputs: int, rows: int, columns: int, steps: str, largest: int, dtype: torch.dtype
) -> None:
    grid = random_grid(rows, columns, steps, largest)
    weight = packed_by(packing_of(grid), torch.Size((rows, columns)), torch.float32, 0)
    torch.manual_seed(0)
    input, bias = torch.randn(inputs, columns).to(dtype), torch.randn(rows).to(dtype)
    result = packed_linear(weight, input, bias)
    assert result.dtype == dtype
    matrix = by_definition(grid)  # not rounded to the type of inputs
    expected = input.double() @ matrix.T + bias.double()
    rounded = torch.finfo(dtype).eps * expected.abs()
    summed = 1e-6 * (input.double().abs() @ matrix.abs().T + bias.double().abs())
    assert bool(((result.double() - expected).abs() <= rounded + summed).all())
    assert torch.equal(packed_linear(weight, input[None], bias)[0], result)


@pytest.mark.parametrize("steps", ["row", "column", "both"])
def test_gradients_reach_the_steps(steps: str) -> None:
    grid = random_grid(3, 4, steps, 9)
    weight = packed_by(packing_of(grid), torch.Size((3, 4)), torch.float32, 0)
    factors = torch.randn(3, 4, generator=torch.Generator().manual_seed(1))
    for name in weight.tunable():
        setattr(weight, name, getattr(weight, name).float().requires_grad_())
    (weight.dense() * factors).sum().backward()
    codes = grid.codes * factors
    if weight.row_step is not None:
        column = 1.0 if grid.column_step is None else grid.column_step.float()
        torch.testing.assert_close(weight.row_step.grad, (codes * column).sum(1))
    if weight.column_step is not None:
        row = 1.0 if grid.row_step is None else grid.row_step.float()[:, None]
        torch.testing.assert_close(weight.column_step.grad, (codes * row).sum(0))


class Everything(nn.Module):
    """A module of each class that needs care, for ids [batch, length]."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(11, 32)
        self.recurrent = nn.LSTM(32, 32, batch_first=True)
        self.gpt2 = Conv1D(32, 32)
        self.attention = nn.MultiheadAttention(32, 4, batch_first=True)
        self.norm = nn.LayerNorm(32)
        self.conv = nn.Conv1d(32, 8, 3, padding=1, groups=2)
        self.up = nn.ConvTranspose1d(8, 32, 3, padding=1)
        self.batch_norm = nn.BatchNorm1d(32)
        self.scale = nn.Parameter(torch.randn(2, 32))
        self.head = nn.Linear(32, 11)
        self.head.weight = self.table.weight

    def forward(self, ids: Tensor) -> Tensor:
        hidden = self.gpt2(self.recurrent(self.table(ids))[0].contiguous())
        hidden = self.norm(hidden + self.attention(hidden, hidden, hidden)[0])
        hidden = self.batch_norm(self.up(self.conv(hidden.transpose(1, 2)))).transpose(1, 2)
        result: Tensor = self.head(hidden * self.scale.sum(0))
        return result


@pytest.mark.parametrize("steps", ["row", "both"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_every_kind_of_module_computes_with_the_dense_weights(
    steps: str, dtype: torch.dtype
) -> None:
    torch.manual_seed(0)
    module = Everything().to(dtype).eval()
    model = Model(module, PLUGINS.layers)
    weights = pack_all(model, steps, 300)
    assert {weight.kind for weight in weights} == set(ALL_KINDS)
    assert len(packed_weights(module)) == len(weights) + 1  # the tied one twice
    dense = copy.deepcopy(module)
    unpack(dense)
    assert not packed_weights(dense)
    assert dense.head.weight is dense.table.weight
    ids = torch.randint(11, (2, 40), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        found, expected = module(ids), dense(ids)
    # Sums are in another order, and outputs around 10⁶.
    bound = float(expected.abs().max()) * 10 * torch.finfo(dtype).eps
    torch.testing.assert_close(found, expected, rtol=0, atol=bound)


def test_a_bias_may_be_packed_before_its_weight() -> None:
    torch.manual_seed(0)
    model = Model(nn.Sequential(Conv1D(6, 4)).eval(), PLUGINS.layers)
    weights = list(model.weights(["vector"])) + list(model.weights(["linear"]))
    grids = [random_grid(*weight.matrix().shape, "row", 9) for weight in weights]
    pack(model, weights, [packing_of(grid) for grid in grids])
    bias, matrix = (by_definition(grid).float() for grid in grids)
    input = torch.randn(3, 4)
    with torch.inference_mode():
        torch.testing.assert_close(model.module(input), input @ matrix.T + bias.view(-1))


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ({"bits": 4}, "bits must be 8 or 16, not 4"),
        ({"bits": True}, "bits must be 8 or 16, not True"),
        ({"steps": "rows"}, "steps must be one of"),
        ({"scan": "diagonal"}, "scan must be one of"),
        ({"trellis": 1}, "trellis must be true or false, not 1"),
    ],
)
def test_arguments_out_of_range_are_refused(arguments: dict[str, Any], problem: str) -> None:
    good = {"bits": 8, "steps": "both", "scan": "rows", "trellis": False}
    with pytest.raises(ValueError, match=problem):
        GridWeight(torch.Size((2, 2)), torch.float32, 0, **{**good, **arguments})
