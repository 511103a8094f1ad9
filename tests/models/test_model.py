"""The model: masks, edits and packed weights stay right whatever is done to it."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import Tensor, nn

from zoopress.coding.bits import pack_codes, unpack_codes
from zoopress.errors import StageError
from zoopress.models.edits import apply_edit, submodule
from zoopress.models.model import Model
from zoopress.models.packing import CodeLayout, PackedWeight, packed_weights, unpack
from zoopress.models.weights import WEIGHT_KINDS, as_matrix, from_matrix
from zoopress.plugins import Plugins
from zoopress.testing import seeded
from zoopress_plugins.quantization.forms.quantized import QuantizedWeight
from zoopress_plugins.quantization.weight_quantization import quantize

Build = Callable[..., nn.Module]
GRIDS = st.tuples(
    st.integers(2, 8), st.sampled_from([None, 3, 5, 32]), st.booleans()
)  # bits, group size, symmetric


def pack(model: Model, weight: Any, bits: int, group: int | None, symmetric: bool) -> None:
    """Quantize one weight as the technique does."""
    codes, scale, zero = quantize(weight.matrix(), bits, group, symmetric, False)
    tensors = {"codes": pack_codes(codes, bits), "scale": scale}
    if zero is not None:
        tensors["zero_point"] = zero
    size = min(group or codes.shape[1], codes.shape[1])
    arguments = {"bits": bits, "group_size": size, "symmetric": symmetric}
    model.pack(weight, "quantized", arguments, tensors)


def dequantized_by_hand(packed: QuantizedWeight) -> Tensor:
    """Compute the dense weight element by element from the definition of the grid."""
    codes = unpack_codes(packed.codes, packed.bits, packed.columns).to(torch.int64)
    groups = torch.arange(packed.columns) // packed.group_size
    if packed.zero_point is None:
        levels = torch.where(codes >= 1 << (packed.bits - 1), codes - (1 << packed.bits), codes)
    else:
        levels = codes - packed.zero_point.to(torch.int64)[:, groups]
    matrix = levels.to(packed.dtype) * packed.scale.to(packed.dtype)[:, groups]
    return from_matrix(matrix, packed.shape, packed.output_axis)


class Odd(nn.Module):
    """Every other place that holds a weight."""

    def __init__(self) -> None:
        super().__init__()
        from transformers.pytorch_utils import Conv1D

        self.gpt2 = Conv1D(6, 10)
        self.attention = nn.MultiheadAttention(6, 2, kdim=4, vdim=5, batch_first=True)
        self.gru = nn.GRU(6, 5, batch_first=True)
        self.cell = nn.LSTMCell(5, 4)
        self.bilinear = nn.Bilinear(4, 3, 2)
        self.bag = nn.EmbeddingBag(9, 3)
        self.free = nn.Parameter(torch.randn(2, 3))

    def forward(self, input: Tensor) -> Tensor:
        hidden = self.gpt2(input)
        other = torch.ones(len(input), 2, 4), torch.ones(len(input), 2, 5)
        hidden = hidden + self.attention(hidden, *other)[0]
        hidden, _ = self.cell(self.gru(hidden)[0][:, -1])
        bags = self.bag(torch.arange(2 * len(input)).view(len(input), 2) % 9)
        result: Tensor = self.bilinear(hidden, bags) @ self.free
        return result


def odd() -> tuple[nn.Module, Tensor]:
    torch.manual_seed(3)
    return Odd().eval(), torch.randn(3, 4, 10)


@pytest.mark.parametrize("name", ["cnn", "lstm", "transformer", "odd"])
@settings(max_examples=12)
@given(grid=GRIDS)
def test_packed_layers_compute_what_their_dequantized_weights_compute(
    name: str,
    grid: tuple[int, int | None, bool],
    tiny: Build,
    tiny_input: Callable[[str], Tensor],
    plugins: Plugins,
) -> None:
    module, input = odd() if name == "odd" else (tiny(name), tiny_input(name))
    dense = copy.deepcopy(module)
    model = Model(module, plugins.layers)
    for weight in list(model.weights()):
        pack(model, weight, *grid)
    for path, packed in packed_weights(module).items():
        owner, _, attribute = path.rpartition(".")
        assert isinstance(packed, QuantizedWeight)
        with torch.no_grad():
            submodule(dense, owner)._parameters[attribute].copy_(  # type: ignore[union-attr]
                dequantized_by_hand(packed)
            )
    with torch.inference_mode():
        expected = dense(input)
        torch.testing.assert_close(module(input), expected)
        torch.testing.assert_close(copy.deepcopy(module)(input), expected)
    assert not list(model.weights())


@pytest.mark.parametrize("name", ["cnn", "lstm", "transformer"])
def test_unpacked_layers_compute_what_they_did_while_packed(
    name: str, tiny: Build, tiny_input: Callable[[str], Tensor], plugins: Plugins
) -> None:
    module, input = tiny(name), tiny_input(name)
    model = Model(module, plugins.layers)
    for weight in list(model.weights()):
        pack(model, weight, 4, None, False)
    with torch.inference_mode():
        expected = module(input)
    copied = copy.deepcopy(module)
    unpack(copied)
    assert not packed_weights(copied)
    assert {w.name for w in Model(copied).weights()} >= packed_weights(module).keys() - {
        "output.weight"
    }
    with torch.inference_mode():
        torch.testing.assert_close(copied(input), expected)
        torch.testing.assert_close(copy.deepcopy(copied)(input), expected)


@given(
    rows=st.integers(1, 140),
    outputs=st.integers(1, 40) | st.sampled_from([16, 32, 48]),
    columns=st.integers(1, 80) | st.sampled_from([32, 64, 96, 128, 256]),
    bits=st.sampled_from([8, 4, 3]),
    group=st.sampled_from([None, 32, 64, 7]),
    symmetric=st.booleans(),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
)
def test_every_kernel_agrees_with_the_dequantized_product(
    rows: int,
    outputs: int,
    columns: int,
    bits: int,
    group: int | None,
    symmetric: bool,
    dtype: torch.dtype,
) -> None:
    torch.manual_seed(0)
    matrix, input = torch.randn(outputs, columns), torch.randn(rows, columns).to(dtype)
    codes, scale, zero = quantize(matrix, bits, group, symmetric, False)
    size = min(group or columns, columns)
    packed = QuantizedWeight(matrix.shape, torch.float32, 0, bits, size, symmetric)
    packed.codes, packed.scale, packed.zero_point = pack_codes(codes, bits), scale, zero
    bias = torch.randn(outputs).to(dtype)
    expected = input.float() @ dequantized_by_hand(packed).T + bias
    result = packed.linear(input, bias)
    assert result.dtype == dtype
    # bfloat16 keeps 8 bits; errors of a sum grow with the root of its terms' squares.
    bound = 2**-7 * (input.float().abs() @ matrix.abs().T + bias.abs() + 1)
    assert bool(((result.float() - expected).abs() <= bound).all())
    assert torch.equal(packed.linear(input[None, :, :], bias)[0], result)


def test_no_rows_of_input_give_no_rows_of_output(plugins: Plugins) -> None:
    for bits in (4, 8):
        module = nn.Sequential(nn.Linear(32, 16))
        model = Model(module.eval(), plugins.layers)
        for weight in list(model.weights()):
            pack(model, weight, bits, 32, True)
        assert module(torch.empty(0, 32)).shape == (0, 16)


@given(data=st.data(), shape=st.lists(st.integers(1, 4), min_size=2, max_size=5))
def test_a_matrix_goes_back_into_the_shape_it_came_from(
    data: st.DataObject, shape: list[int]
) -> None:
    axis = data.draw(st.integers(0, len(shape) - 1))
    tensor = torch.randn(shape)
    matrix = as_matrix(tensor, axis)
    assert matrix.shape[0] == shape[axis]
    assert torch.equal(from_matrix(matrix, tensor.shape, axis), tensor)


@pytest.mark.parametrize("name", ["cnn", "lstm", "transformer"])
@given(seed=st.integers(0, 9), times=st.integers(1, 3))
def test_a_mask_prunes_for_good_and_only_what_it_says(
    name: str, seed: int, times: int, tiny: Build
) -> None:
    model = Model(tiny(name))
    generator = torch.Generator().manual_seed(seed)
    for weight in list(model.weights()):
        before = weight.parameter.detach().clone()
        kept = torch.ones_like(before, dtype=torch.bool)
        for _ in range(times):
            keep = torch.rand(before.shape, generator=generator) < 0.7
            model.mask(weight, keep)
            kept &= keep
        assert torch.equal(model.masks[weight.name], kept)
        assert torch.equal(weight.parameter, torch.where(kept, before, 0.0))
        assert not bool((weight.parameter[~kept].signbit()).any())
    assert model.pruned_count() == sum(int((~mask).sum()) for mask in model.masks.values())


def test_a_mask_of_another_shape_or_type_is_refused(tiny: Build) -> None:
    model = Model(tiny("cnn"))
    weight = next(model.weights())
    for keep in (torch.ones(2, dtype=torch.bool), torch.ones(weight.parameter.shape)):
        with pytest.raises(StageError, match="a mask must be bool of shape"):
            model.mask(weight, keep)


def replayed(model: Model, fresh: nn.Module, plugins: Plugins) -> nn.Module:
    for edit in model.edits:
        with torch.device("meta"):
            apply_edit(fresh, edit, plugins.layers)
    return fresh


def shapes(module: nn.Module) -> dict[str, Any]:
    return {n: (t.shape, t.dtype) for n, t in Model(module).tensors().items()}


@pytest.mark.parametrize("name", ["cnn", "lstm", "transformer"])
@given(data=st.data(), grid=GRIDS)
def test_edits_replayed_on_a_fresh_copy_give_equal_shapes(
    name: str,
    data: st.DataObject,
    grid: tuple[int, int | None, bool],
    tiny: Build,
    factories: dict[str, type[nn.Module]],
    plugins: Plugins,
) -> None:
    model = Model(tiny(name), plugins.layers)
    if name != "lstm":  # shrink a layer, then the input of the next
        path, after = {"cnn": ("third", "head"), "transformer": ("block.linear1", "block.linear2")}[
            name
        ]
        size = {"cnn": 6, "transformer": 24}[name]
        index = torch.tensor(
            sorted(data.draw(st.sets(st.integers(0, size - 1), min_size=1, max_size=size - 1)))
        )
        axis, attribute = (1, "out_channels") if name == "cnn" else (0, "out_features")
        model.select(path, {"weight": (axis, index), "bias": (0, index)}, {attribute: len(index)})
        model.select(after, {"weight": (1, index)}, {"in_features": len(index)})
    for weight in list(model.weights()):
        action = data.draw(st.sampled_from(["leave", "mask", "factor", "pack", "mask and pack"]))
        if action == "factor" and type(weight.module) is nn.Linear and not weight.locations[1:]:
            up, down = weight.matrix()[:, :1], weight.matrix()[:1]
            tensors = {"up.weight": up, "down.weight": down, "up.bias": weight.module.bias}
            model.replace(weight.path, "factored_linear", {"rank": 1}, tensors)
            continue
        if action.startswith("mask"):
            model.mask(weight, torch.rand(weight.parameter.shape) < 0.5)
        if action.endswith("pack"):
            pack(model, weight, *grid)
    with torch.device("meta"):
        fresh = factories[name]()
    replayed(model, fresh, plugins)
    assert shapes(fresh) == shapes(model.module)
    layouts = model.code_layouts()
    for key, mask in model.masks.items():
        tensor = model.tensors()[key]
        layout = layouts.get(key)
        assert mask.shape == (
            (len(tensor), layout.per_row) if isinstance(layout, CodeLayout) else tensor.shape
        )


def test_masks_shrink_with_the_weights_that_are_selected(tiny: Build) -> None:
    model = Model(tiny("transformer"))
    weight = next(model.weights(include=["block.linear1.weight"]))
    keep = torch.rand(24, 16) < 0.5
    model.mask(weight, keep)
    index = torch.tensor([1, 5, 7])
    model.select("block.linear1", {"weight": (0, index)}, {"out_features": 3})
    assert torch.equal(model.masks["block.linear1.weight"], keep[index])


@pytest.mark.parametrize(
    ("indices", "attributes"),
    [
        ({"weight": (0, torch.arange(24).repeat(2))}, {}),
        ({"weight": (0, torch.arange(0))}, {}),
        ({"weight": (0, torch.arange(2))}, {"out_features": 99}),
        ({"weight": (0, torch.arange(2))}, {"training": 1}),
        ({"weight": (0, torch.arange(2))}, {"no_such": 1}),
    ],
)
def test_a_selection_that_grows_or_empties_a_layer_is_refused(
    indices: Any, attributes: Any, tiny: Build
) -> None:
    with pytest.raises(StageError, match=r"Cannot resize module 'block\.linear1'"):
        Model(tiny("transformer")).select("block.linear1", indices, attributes)


def test_replacing_a_masked_layer_is_refused_with_a_remedy(tiny: Build, plugins: Plugins) -> None:
    model = Model(tiny("cnn"), plugins.layers)
    weight = next(model.weights(include=["head.weight"]))
    model.mask(weight, weight.parameter > 0)
    with pytest.raises(StageError, match=r"discard the pruning mask of head\.weight.*before"):
        model.replace("head", "factored_linear", {"rank": 1}, {})


@pytest.mark.parametrize("change", ["missing", "extra", "shape", "dtype"])
def test_tensors_that_do_not_fit_a_new_layer_are_refused(
    change: str, tiny: Build, plugins: Plugins
) -> None:
    model = Model(tiny("cnn"), plugins.layers)
    tensors = {
        "down.weight": torch.zeros(1, 6),
        "up.weight": torch.zeros(5, 1),
        "up.bias": torch.zeros(5),
    }
    if change == "missing":
        del tensors["up.bias"]
    elif change == "extra":
        tensors["other"] = torch.zeros(1)
    elif change == "shape":
        tensors["up.bias"] = torch.zeros(4)
    else:
        tensors["up.bias"] = torch.zeros(5, dtype=torch.float64)
    with pytest.raises(StageError, match="head"):
        model.replace("head", "factored_linear", {"rank": 1}, tensors)


def test_an_unknown_layer_is_refused_with_the_registered_ones(
    tiny: Build, plugins: Plugins
) -> None:
    model = Model(tiny("cnn"), plugins.layers)
    with pytest.raises(StageError, match=r"layer 'nothing' is not registered.*factored_linear"):
        model.replace("head", "nothing", {}, {})
    with pytest.raises(StageError, match="is a packed weight"):
        model.replace("head", "quantized", {}, {})
    with pytest.raises(StageError, match="packed weight 'factored_linear' is not registered"):
        model.pack(next(model.weights()), "factored_linear", {}, {})


def test_a_tied_weight_is_found_once_and_packed_in_every_place(
    tiny: Build, plugins: Plugins
) -> None:
    model = Model(tiny("transformer"), plugins.layers)
    (weight,) = model.weights(["embedding"])
    assert [place.name for place in weight.locations] == ["embedding.weight", "output.weight"]
    before = model.parameter_count()
    pack(model, weight, 4, None, True)
    assert model.parameter_count() == before
    packed = packed_weights(model.module)
    assert packed["embedding.weight"].codes.data_ptr() == packed["output.weight"].codes.data_ptr()


@given(patterns=st.lists(st.text("ab.*[]!?\\", max_size=6), max_size=3))
def test_any_pattern_selects_or_leaves_out_without_a_crash(
    patterns: list[str], tiny: Build
) -> None:
    model = Model(tiny("lstm"))
    everything = [weight.name for weight in model.weights()]
    chosen = [weight.name for weight in model.weights(include=patterns)]
    left = [weight.name for weight in model.weights(exclude=patterns)]
    assert sorted(chosen + left) == sorted(everything)


def test_a_packed_weight_cannot_be_resized(tiny: Build, plugins: Plugins) -> None:
    model = Model(tiny("cnn"), plugins.layers)
    pack(model, next(model.weights(include=["head.weight"])), 8, None, True)
    assert isinstance(submodule(model.module, "head.weight"), PackedWeight)
    for indices in ({"codes": (0, torch.arange(2))}, {"scale": (0, torch.arange(2))}, {}):
        with pytest.raises(StageError, match="fixed sizes"):
            model.select("head.weight", indices, {"rows": 2})


def test_a_mask_of_packed_codes_keeps_those_that_are_not_zero(plugins: Plugins) -> None:
    """Rounded to two bits, many weights that no mask prunes become zero."""
    for symmetric in (True, False):
        model = Model(nn.Sequential(nn.Linear(40, 7)).eval(), plugins.layers)
        weight = next(model.weights())
        keep = torch.rand(7, 40) < 0.5
        model.mask(weight, keep)
        pack(model, weight, 2, None, symmetric)
        codes = unpack_codes(model.tensors()["0.weight.codes"], 2, 40)
        kept = model.masks["0.weight.codes"]
        if symmetric:
            assert torch.equal(kept, codes != 0)
            assert not (kept & ~keep).any()
            assert kept.sum() < keep.sum()
        else:
            assert torch.equal(kept, keep)


class Norms(nn.Module):
    """Vectors of every sort."""

    def __init__(self) -> None:
        super().__init__()
        from transformers.models.llama.modeling_llama import LlamaRMSNorm

        self.conv = nn.ConvTranspose1d(4, 6, 3)
        self.batch = nn.BatchNorm1d(6)
        self.linear = nn.Linear(6, 6)
        self.layer = nn.LayerNorm(6)
        self.rms = LlamaRMSNorm(6)
        self.torch_rms = nn.RMSNorm(6)
        self.group = nn.GroupNorm(2, 6)
        self.attention = nn.MultiheadAttention(6, 2, batch_first=True)
        self.lstm = nn.LSTM(6, 6, batch_first=True)
        self.cell = nn.GRUCell(6, 6)
        self.scale = nn.Parameter(torch.ones(6))
        self.tied = nn.Linear(6, 6)
        self.tied.bias = self.linear.bias

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.group(self.batch(self.conv(x))).transpose(1, 2)
        hidden = self.rms(self.layer(self.tied(self.linear(hidden).relu())))
        hidden = self.attention(hidden, hidden, hidden)[0] + self.torch_rms(hidden)
        hidden = self.lstm(hidden)[0]
        result: Tensor = self.cell(hidden[:, -1] * self.scale)
        return result


def test_vectors_are_found_only_if_asked_for() -> None:
    model = Model(Norms().eval())
    assert not [w for w in model.weights() if w.parameter.ndim < 2]
    vectors = {w.name: w for w in model.weights(["vector"])}
    expected = {name for name, parameter in model.module.named_parameters() if parameter.ndim == 1}
    assert set(vectors) == expected
    assert [place.name for place in vectors["linear.bias"].locations] == [
        "linear.bias",
        "tied.bias",
    ]
    for weight in vectors.values():
        assert weight.matrix().shape == (len(weight.parameter), 1)
        assert torch.equal(weight.from_matrix(weight.matrix()), weight.parameter)
    every = {w.name for w in model.weights([*WEIGHT_KINDS, "vector"])}
    assert every == {name for name, _ in model.module.named_parameters()}


@pytest.mark.parametrize("weights_too", [False, True])
def test_packed_vectors_compute_as_their_dense_form_and_unpack(
    weights_too: bool, plugins: Plugins
) -> None:
    model = Model(seeded(Norms).eval(), plugins.layers)
    inputs = torch.randn(2, 4, 5)
    kinds = ["vector", *(WEIGHT_KINDS if weights_too else ())]
    dense = copy.deepcopy(model.module)
    for weight in list(model.weights(kinds)):
        pack(model, weight, 8, None, True)
    packed = packed_weights(model.module)
    for name, parameter in dense.named_parameters():
        if name in packed:
            parameter.data = packed[name].dense()
    with torch.inference_mode():
        expected = dense(inputs)
        assert torch.allclose(model.module(inputs), expected, rtol=1e-4, atol=1e-5)
    counts = unpack(model.module, "auto")
    left = packed_weights(model.module)
    assert not [name for name, weight in left.items() if len(weight.shape) == 1]
    assert sum(counts.values()) == len(packed)
    with torch.inference_mode():
        assert torch.allclose(model.module(inputs), expected, rtol=1e-4, atol=1e-5)
    unpack(model.module, "all")
    assert {name for name, _ in model.module.named_parameters()} == {
        name for name, _ in dense.named_parameters()
    }
    assert type(model.module.batch) is nn.BatchNorm1d
