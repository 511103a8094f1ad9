"""Products with coded weights are those of the weights that the codes stand for, of any size."""

import threading

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings, strategies as st
from torch import Tensor

from zoopress.coding.bits import pack_codes
from zoopress.kernels.products import CodedRows, multiply

KINDS = ("row", "zero point", "groups", "groups, zero point", "table", "table, groups")


def coded(
    outputs: int, columns: int, bits: int, kind: str, group: int, signed: bool
) -> tuple[CodedRows, Tensor]:
    """Return a weight and its matrix, by the definition of its codes."""
    codes = torch.randint(0, 2**bits, (outputs, columns))
    signed = signed and "table" not in kind
    table = torch.randn(2**bits) if "table" in kind else None
    values = torch.where(codes >= 2 ** (bits - 1), codes - 2**bits, codes) if signed else codes
    matrix = values.double() if table is None else table[codes].double()
    size = min(group, columns) if "groups" in kind else columns
    groups = torch.arange(columns) // size
    count = int(groups[-1]) + 1
    scale = (torch.rand(outputs, count) + 0.5).bfloat16()
    zero = None
    if "zero point" in kind:
        zero = torch.randint(0, 2**bits, (outputs, count)).to(torch.uint8)
        matrix = matrix - zero[:, groups].double()
    packed = pack_codes(codes.to(torch.uint8), bits)
    whole = "groups" not in kind
    weight = CodedRows(
        packed,
        columns,
        bits,
        signed,
        scale.view(-1) if whole else scale,
        zero,
        None if whole else size,
        table,
    )
    return weight, matrix * scale[:, groups].double()


@settings(max_examples=150, deadline=None)
@given(
    rows=st.integers(1, 40),
    outputs=st.integers(1, 70),
    columns=st.integers(1, 150) | st.sampled_from([384, 2000]),
    bits=st.integers(1, 8),
    kind=st.sampled_from(KINDS),
    group=st.sampled_from([1, 7, 8, 32, 64]),
    signed=st.booleans(),
)
def test_a_product_is_that_of_the_values(
    rows: int, outputs: int, columns: int, bits: int, kind: str, group: int, signed: bool
) -> None:
    torch.manual_seed(0)
    weight, matrix = coded(outputs, columns, bits, kind, group, signed and bits > 1)
    input, bias = torch.randn(rows, columns), torch.randn(outputs)
    bound = 1e-6 * (input.double().abs() @ matrix.abs().T + bias.double().abs())
    for added in (bias, None):
        found = multiply(input, weight, added)
        expected = F.linear(input.double(), matrix, None if added is None else added.double())
        assert bool(((found.double() - expected).abs() <= bound).all())


@pytest.mark.parametrize("dtype", [torch.int8, torch.int16])
def test_integers_of_one_byte_or_two_are_read_as_they_are(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    limit = torch.iinfo(dtype).max
    codes = torch.randint(-limit - 1, limit + 1, (21, 45)).to(dtype)
    scale = torch.tensor([0.5])
    weight = CodedRows(codes, 45, 8 * dtype.itemsize, True, scale)
    input = torch.randn(3, 45)
    expected = input.double() @ (codes.double() * 0.5).T
    assert torch.allclose(multiply(input, weight, None).double(), expected, rtol=0, atol=0.1)


def test_threads_share_the_work_and_callers_may_be_threads_themselves() -> None:
    torch.manual_seed(0)
    weight, matrix = coded(130, 64, 5, "row", 0, True)
    input = torch.randn(700, 64)
    alone, before = multiply(input, weight, None), torch.get_num_threads()
    found: list[Tensor] = []
    try:
        torch.set_num_threads(2)
        callers = [
            threading.Thread(target=lambda: found.append(multiply(input, weight, None)))
            for _ in range(4)
        ]
        for caller in callers:
            caller.start()
        for caller in callers:
            caller.join()
    finally:
        torch.set_num_threads(before)
    assert len(found) == 4
    assert all(torch.equal(each, alone) for each in found)
    assert torch.allclose(alone.double(), input.double() @ matrix.T, atol=1e-3)


def test_a_bias_that_learns_gets_its_gradient() -> None:
    weight, _ = coded(6, 16, 8, "row", 0, True)
    bias = torch.zeros(6, requires_grad=True)
    multiply(torch.randn(5, 16), weight, bias).sum().backward()
    assert bias.grad is not None
    assert torch.equal(bias.grad, torch.full((6,), 5.0))


def test_what_is_no_number_stays_none() -> None:
    weight, _ = coded(5, 20, 4, "groups", 8, True)
    input = torch.randn(3, 20)
    input[1, 7] = torch.nan
    found = multiply(input, weight, None)
    assert bool(found[1].isnan().all())
    assert bool(found[[0, 2]].isfinite().all())
