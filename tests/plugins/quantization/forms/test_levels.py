"""A weight of levels computes what its definition says, wherever it hangs, in its packed size."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, strategies as st
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from zoopress.models.export_form import ExportForm
from zoopress.models.model import Model
from zoopress.models.packing import packed_weights, unpack
from zoopress.models.weights import as_matrix
from zoopress.plugins import load_plugins
from zoopress.testing.packed import wrong_codes, wrong_products
from zoopress_plugins.quantization.forms.digits import digit_bytes, pack_digits, unpack_digits
from zoopress_plugins.quantization.forms.levels import LevelsWeight
from zoopress_plugins.quantization.grids.fit import fit
from zoopress_plugins.quantization.grids.named import BITS, named_grid
from zoopress_plugins.quantization.level_quantization import levels_form, packed_levels

PLUGINS = load_plugins()
GRIDS = [(name, bits) for name, several in BITS.items() for bits in several]
KINDS = ("linear", "conv", "recurrent", "embedding", "parameter")
MODULES: dict[str, tuple[Callable[[], nn.Module], Callable[[], Tensor]]] = {
    "linear": (lambda: nn.Linear(33, 8), lambda: torch.randn(4, 33)),
    "conv": (lambda: nn.Conv2d(4, 6, 3), lambda: torch.randn(2, 4, 7, 7)),
    "grouped": (lambda: nn.Conv2d(8, 8, 3, groups=4), lambda: torch.randn(2, 8, 7, 7)),
    "depthwise": (lambda: nn.Conv1d(5, 5, 5, groups=5), lambda: torch.randn(2, 5, 9)),
    "transposed": (lambda: nn.ConvTranspose2d(4, 6, 3), lambda: torch.randn(2, 4, 5, 5)),
    "embedding": (lambda: nn.Embedding(11, 12), lambda: torch.arange(11)),
    "lstm": (lambda: nn.LSTM(7, 5, 2), lambda: torch.randn(3, 2, 7)),
    "gru": (lambda: nn.GRUCell(7, 5), lambda: torch.randn(3, 7)),
    "conv1d": (lambda: Conv1D(6, 9), lambda: torch.randn(2, 9)),
}


def packed_model(name: str, bits: int, module: nn.Module, group: int | None) -> Model:
    model = Model(nn.Sequential(module).eval(), PLUGINS.layers)
    for weight in list(model.weights(KINDS)):
        form = levels_form(weight.matrix(), name, bits, group)
        model.pack(weight, form.packing, form.arguments, form.tensors)
    return model


@given(rows=st.integers(1, 4), columns=st.integers(1, 23), seed=st.integers(0, 99))
def test_five_digits_go_into_a_byte_and_come_back(rows: int, columns: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    digits = torch.randint(3, (rows, columns), generator=generator, dtype=torch.uint8)
    packed = pack_digits(digits)
    assert packed.shape == (rows, digit_bytes(columns)) == (rows, -(-columns // 5))
    assert torch.equal(unpack_digits(packed, columns), digits)
    assert packed[0, 0] == sum(int(d) * 3**i for i, d in enumerate(digits[0, :5]))


@pytest.mark.parametrize("kind", list(MODULES))
@pytest.mark.parametrize(("name", "bits"), GRIDS)
def test_modules_compute_with_the_rounded_weights(name: str, bits: int, kind: str) -> None:
    torch.manual_seed(0)
    build, inputs = MODULES[kind]
    module, given_inputs = build(), inputs()
    dense = copy.deepcopy(module)
    model = packed_model(name, bits, module, 8)
    grid = named_grid(name, bits)
    for weight in Model(nn.Sequential(dense)).weights(KINDS):
        matrix = weight.matrix()
        size = min(8, matrix.shape[1])
        found = fit(matrix, grid, size)
        scale = found.scale.float().repeat_interleave(size, 1)[:, : matrix.shape[1]]
        rounded = weight.from_matrix(grid.values(found.codes) * scale)
        with torch.no_grad():
            weight.parameter.copy_(rounded)
        assert torch.equal(packed_weights(model.module)[weight.name].dense(), rounded)
    with torch.no_grad():
        first, second = model.module(given_inputs), dense(given_inputs)
    for one, other in zip(_flat(first), _flat(second), strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize(
    ("name", "bits", "group"),
    [("ternary", 2, None), ("ternary", 2, 16), ("nf4", 4, 0), ("power_of_two", 3, 16)],
)
def test_a_packed_weight_keeps_what_is_promised_of_it(
    name: str, bits: int, group: int | None
) -> None:
    torch.manual_seed(0)
    model = packed_model(name, bits, nn.Linear(70, 40), group)
    assert wrong_codes(model) is None
    assert wrong_products(model) is None


@pytest.mark.parametrize(("name", "bits"), GRIDS)
def test_memory_is_what_the_scheme_says(name: str, bits: int) -> None:
    torch.manual_seed(0)
    model = packed_model(name, bits, nn.Linear(640, 30, bias=False), 64)
    tensors = list(model.module.state_dict().values())
    each = 8 / 5 if name == "ternary" else bits
    assert 8 * sum(t.nbytes for t in tensors) == 640 * 30 * each + 30 * 10 * 16
    assert sum(p.numel() for p in model.module.parameters()) == 0
    before = packed_weights(model.module)["0.weight"].dense()
    unpack(model.module)
    assert torch.equal(model.module.get_parameter("0.weight"), before)


@pytest.mark.parametrize("group", [None, 0, 16])
@pytest.mark.parametrize(("name", "bits"), GRIDS)
def test_levels_that_are_integers_are_exported_as_integers(
    name: str, bits: int, group: int | None
) -> None:
    torch.manual_seed(0)
    packed = packed_weights(packed_model(name, bits, nn.Linear(40, 12), group).module)["0.weight"]
    form = packed.export_form()
    if name.startswith(("nf", "fp8")) or (name, bits) == ("power_of_two", 5):
        assert form is None
        return
    assert isinstance(form, ExportForm)
    assert form.codes.dtype == torch.int8
    limit = 1 << (form.bits - 1)
    assert -limit <= int(form.codes.min())
    assert int(form.codes.max()) < limit
    assert torch.equal(form.matrix(), packed.dense())


def test_negative_levels_may_have_a_scale_of_their_own() -> None:
    codes = torch.tensor([[0, 1, 2, 0, 2, 1]], dtype=torch.uint8)
    scale, negative = torch.tensor([[2.0]]).bfloat16(), torch.tensor([[3.0]]).bfloat16()
    form = packed_levels(codes, scale, "ternary", 2, 6, negative)
    model = Model(nn.Sequential(nn.Linear(6, 1)), PLUGINS.layers)
    (weight,) = model.weights()
    model.pack(weight, form.packing, form.arguments, form.tensors)
    packed = packed_weights(model.module)["0.weight"]
    assert packed.dense().tolist() == [[-3, 0, 2, -3, 2, 0]]
    assert packed.tunable() == ("scale", "negative_scale")
    assert packed.export_form() is None
    assert wrong_codes(model) is None


@pytest.mark.parametrize("two", [False, True])
def test_scales_have_gradients(two: bool) -> None:
    torch.manual_seed(0)
    codes = torch.randint(3, (4, 12), dtype=torch.uint8)
    scale = torch.rand(4, 2).bfloat16()
    form = packed_levels(codes, scale, "ternary", 2, 6, scale * 2 if two else None)
    weight = LevelsWeight(torch.Size((4, 12)), torch.float32, 0, **_arguments(form.arguments))
    weight.load_state_dict(dict(form.tensors))
    for name in weight.tunable():
        buffer = weight._buffers.pop(name)
        assert buffer is not None
        weight.register_parameter(name, nn.Parameter(buffer.float()))
    weight.dense().sum().backward()
    signs = codes.view(4, 2, 6).float() - 1
    if two:
        expected = {"scale": signs.clamp(min=0), "negative_scale": signs.clamp(max=0)}
    else:
        expected = {"scale": signs}
    for name, each in expected.items():
        gradient = getattr(weight, name).grad
        torch.testing.assert_close(gradient, each.sum(-1))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"grid": "nf5"}, "grid must be one of"),
        ({"bits": 3}, "bits of the grid"),
        ({"group_size": -1}, "group_size must be 0 to 12"),
        ({"group_size": 13}, "group_size must be 0 to 12"),
        ({"two_scales": 1}, "two_scales must be"),
    ],
)
def test_wrong_arguments_of_an_artifact_are_refused(change: dict[str, Any], message: str) -> None:
    arguments = {"grid": "nf4", "bits": 4, "group_size": 4, "two_scales": False, **change}
    with pytest.raises(ValueError, match=message):
        LevelsWeight(torch.Size((4, 12)), torch.float32, 0, **arguments)


def test_bytes_that_hold_no_digits_are_refused() -> None:
    model = packed_model("ternary", 2, nn.Linear(10, 2), None)
    packed = packed_weights(model.module)["0.weight"]
    assert torch.equal(as_matrix(packed.dense(), 0), packed.dense_rows(slice(2)))
    packed.codes[0, 0] = 243
    with pytest.raises(ValueError, match="codes must be 0 to 2"):
        packed.integers()


def _flat(output: Any) -> list[Tensor]:
    if isinstance(output, Tensor):
        return [output]
    return [tensor for part in output for tensor in _flat(part)]


def _arguments(arguments: Any) -> dict[str, Any]:
    return dict(arguments)
