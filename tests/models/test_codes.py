"""Codes of any packing: integers and the code of zero, masks kept, stored near their entropy."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, strategies as st
from torch import Tensor, nn

from zoopress.artifacts.artifact import load_artifact, save_artifact
from zoopress.artifacts.encoding import CodesEntry, Expected, Masked, Zeros, decode, encode
from zoopress.artifacts.manifest import Base
from zoopress.coding.bits import pack_codes
from zoopress.coding.layout import Integers
from zoopress.errors import ArtifactError, StageError
from zoopress.models.codes import AnyLayout, CodeLayout, OwnCodes, read_codes, write_codes
from zoopress.models.model import Model
from zoopress.models.packing import PackedWeight, packed_weights
from zoopress.models.weights import from_matrix
from zoopress.plugins import load_plugins
from zoopress.testing.packed import wrong_codes
from zoopress_zoo.factory import Factory

BASE = Base(name="b", source="path:b", revision="local", size_bytes=9, task="fidelity")


def pack_base(codes: Tensor, base: int, digits: int) -> Tensor:
    """Pack codes below `base` as numbers of `digits` digits each, int64: no power of two helps."""
    padded = nn.functional.pad(codes.long(), (0, -codes.shape[1] % digits))
    powers = base ** torch.arange(digits)
    return (padded.view(len(codes), -1, digits) * powers).sum(-1)


def unpack_base(packed: Tensor, base: int, digits: int, count: int) -> Tensor:
    found = [packed // base**i % base for i in range(digits - 1)] + [packed // base ** (digits - 1)]
    return torch.stack(found, -1).flatten(1)[:, :count]


class Digits(PackedWeight):
    """A weight of `levels` values around zero, `digits` codes a number; zero is `levels` // 2."""

    codes_: Tensor
    scale: Tensor

    def __init__(
        self,
        shape: torch.Size,
        dtype: torch.dtype,
        output_axis: int,
        levels: int,
        digits: int,
        has_zero: bool = True,
    ) -> None:
        super().__init__(shape, dtype, output_axis)
        if type(levels) is not int or not 2 <= levels <= 1000:
            raise ValueError(f"levels must be 2 to 1000, not {levels!r}")
        if type(digits) is not int or not digits >= 1 or levels**digits > 2**62:
            raise ValueError(f"digits must be at least 1 and fit into 62 bits, not {digits!r}")
        self.levels, self.digits, self.has_zero = levels, digits, has_zero
        self.rows = shape[output_axis]
        self.columns = shape.numel() // self.rows
        size = -(-self.columns // digits)
        self.register_buffer("codes_", torch.empty(self.rows, size, dtype=torch.int64))
        self.register_buffer("scale", torch.empty(self.rows, 1, dtype=dtype))

    def dense(self) -> Tensor:
        codes = unpack_base(self.codes_, self.levels, self.digits, self.columns)
        values = codes.to(self.dtype) - self.levels // 2 + (0 if self.has_zero else 0.5)
        return from_matrix(values * self.scale, self.shape, self.output_axis)

    def code_layouts(self) -> dict[str, AnyLayout]:
        def unpack(packed: Tensor) -> Tensor:
            codes = unpack_base(packed, self.levels, self.digits, self.columns)
            return codes.to(torch.uint8 if self.levels <= 256 else torch.int32)

        return {
            "codes_": OwnCodes(
                self.rows,
                self.columns,
                self.levels,
                unpack,
                lambda codes: pack_base(codes, self.levels, self.digits),
                fill=self.levels // 2 if self.has_zero else None,
            )
        }


LAYERS = {"digits": Digits}
BYTE = torch.uint8


def packed_model(
    levels: int = 3, digits: int = 5, sparsity: float = 0.6, seed: int = 0
) -> tuple[Model, Callable[..., nn.Module]]:
    """Return a pruned, then packed layer, and what builds it."""

    def build() -> nn.Module:
        return nn.Sequential(nn.Linear(83, 40), nn.ReLU(), nn.Linear(40, 7))

    torch.manual_seed(seed)
    model = Model(build().eval(), LAYERS)
    for weight in list(model.weights()):
        matrix = weight.matrix()
        if sparsity:
            threshold = matrix.abs().flatten().kthvalue(int(sparsity * matrix.numel())).values
            model.mask(weight, weight.from_matrix(matrix.abs() > threshold))
            matrix = weight.matrix()
        half = levels // 2
        scale = matrix.abs().amax(1, keepdim=True) / max(1, (levels - 1) // 2)
        codes = (matrix / scale).round().clamp(-half, levels - 1 - half) + half
        tensors = {"codes_": pack_base(codes, levels, digits), "scale": scale}
        model.pack(weight, "digits", {"levels": levels, "digits": digits}, tensors)
    return model, build


def saved(model: Model, build: Callable[..., nn.Module], folder: Path, storage: str) -> Model:
    folder.mkdir()
    model.storage = storage
    factory = Factory(folder, {"factory": "f.py:build", "arguments": {}})
    save_artifact(folder, model, factory, BASE, {})
    return reloaded(folder, build)


def reloaded(folder: Path, build: Callable[..., nn.Module]) -> Model:
    plugins = load_plugins()
    plugins.__dict__["layers"] = LAYERS
    plugins.references["layers"]["digits"] = f"{__name__}:Digits"
    return load_artifact(folder, plugins, build)[0]


@pytest.mark.parametrize("storage", ["safetensors", "zpz"])
@pytest.mark.parametrize(("levels", "digits"), [(3, 5), (3, 39), (5, 3), (11, 7), (300, 7)])
def test_codes_of_any_base_keep_masks_and_come_back_exactly(
    levels: int, digits: int, storage: str, tmp_path: Path
) -> None:
    model, build = packed_model(levels, digits)
    assert model.masks.keys() == {"0.weight.codes_", "2.weight.codes_"}
    assert wrong_codes(model) is None
    again = saved(model, build, tmp_path / "saved", storage)
    assert again.tensors().keys() == model.tensors().keys()
    for name, tensor in model.tensors().items():
        assert torch.equal(again.tensors()[name], tensor), name
    assert again.masks.keys() == model.masks.keys()
    for name, mask in model.masks.items():
        assert torch.equal(again.masks[name], mask)
        codes = again.integers()[name]
        assert torch.equal(codes.values != levels // 2, mask)
        assert codes.levels == levels
    inputs = torch.randn(4, 83)
    assert torch.equal(again.module(inputs), model.module(inputs))
    assert model.pruned_count() == int(sum((~m).sum() for m in model.masks.values()))


@pytest.mark.parametrize("sparsity", [0.0, 0.3, 0.9])
def test_coded_digits_take_little_more_than_their_entropy(sparsity: float, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Model(nn.Linear(2000, 400).eval(), LAYERS)
    weight = next(model.weights())
    codes = torch.where(torch.rand(400, 2000) < sparsity, 1, torch.randint(0, 3, (400, 2000)))
    if sparsity:
        model.mask(weight, codes != 1)
    tensors = {"codes_": pack_base(codes, 3, 39), "scale": torch.ones(400, 1)}
    model.pack(weight, "digits", {"levels": 3, "digits": 39}, tensors)
    saved(model, lambda: nn.Linear(2000, 400), tmp_path / "saved", "zpz")
    shares = codes.flatten().bincount() / codes.numel()
    least = -float((shares * shares.log2()).sum()) * codes.numel() / 8
    size = (tmp_path / "saved" / "model.zpz").stat().st_size
    assert size < 1.02 * least + 400 * 4 + 400 * 4 + 1000  # scales, biases, index


@pytest.mark.parametrize(
    ("share", "coded", "form"),
    [(0.5, True, "codes"), (0.9, True, "codes"), (0.5, False, "zeros"), (0.9, False, "masked")],
)
def test_what_is_stored_is_what_takes_less(share: float, coded: bool, form: str) -> None:
    layout = OwnCodes(
        *(40, 100, 3),
        lambda packed: unpack_base(packed, 3, 5, 100).to(BYTE),
        lambda codes: pack_base(codes, 3, 5).to(BYTE),
        fill=1,
    )
    torch.manual_seed(0)
    codes = torch.where(torch.rand(40, 100) < share, 1, 2 * torch.randint(0, 2, (40, 100)))
    buffer = layout.buffer_of(codes.to(BYTE))
    entries, stored = encode({"w": buffer}, {"w": codes != 1}, {"w": layout}, coded=coded)
    assert entries["w"].form == form
    size = sum(item.tensor.nbytes for item in stored.values())
    assert (form == "codes") or size <= buffer.nbytes
    tensors = {name: item.tensor for name, item in stored.items()}
    expected = Expected(buffer.shape, buffer.dtype)
    entry: Any = entries["w"]
    read = tensors.__getitem__
    back, mask = decode("w", entry, expected, layout, read, read)
    assert torch.equal(back, buffer)
    assert mask is not None
    assert torch.equal(mask, codes != 1)
    entries, stored = encode({"w": buffer}, {}, {"w": layout}, coded=coded)
    assert entries.keys() == ({"w"} if coded else set())
    assert coded or stored["w"].tensor is buffer


def test_a_packing_without_a_zero_is_refused_under_a_mask_and_kept_without() -> None:
    model = Model(nn.Linear(10, 4).eval(), LAYERS)
    weight = next(model.weights())
    codes = torch.randint(0, 2, (4, 10))
    tensors = {"codes_": pack_base(codes, 2, 5), "scale": torch.ones(4, 1)}
    arguments = {"levels": 2, "digits": 5, "has_zero": False}
    free = Model(nn.Linear(10, 4).eval(), LAYERS)
    free.pack(next(free.weights()), "digits", arguments, tensors)
    assert wrong_codes(free) is None
    assert not free.integers()["weight.codes_"].zeros().any()
    model.mask(weight, torch.rand(4, 10) < 0.5)
    with pytest.raises(StageError, match=r"none of the codes in 'codes_' stands for zero"):
        model.pack(weight, "digits", arguments, tensors)


class WrongZero(Digits):
    """Calls another code that of zero."""

    def code_layouts(self) -> dict[str, AnyLayout]:
        (layout,) = super().code_layouts().values()
        assert isinstance(layout, OwnCodes)
        return {"codes_": replace(layout, fill=0)}


def test_a_packing_whose_zero_is_none_is_refused_under_a_mask() -> None:
    model = Model(nn.Linear(10, 4).eval(), {"digits": WrongZero})
    weight = next(model.weights())
    model.mask(weight, torch.arange(40).reshape(4, 10) % 2 == 0)
    codes = torch.where(model.masks[weight.name], 2, 0)
    tensors = {"codes_": pack_base(codes, 3, 5), "scale": torch.ones(4, 1)}
    with pytest.raises(StageError, match=r"a pruned weight is no longer zero.*`fill`"):
        model.pack(weight, "digits", {"levels": 3, "digits": 5}, tensors)


def test_codes_beyond_the_levels_are_refused_under_a_mask_in_words() -> None:
    model = Model(nn.Linear(10, 4).eval(), LAYERS)
    weight = next(model.weights())
    model.mask(weight, weight.parameter > 0)
    tensors = {"codes_": torch.full((4, 2), 3**5), "scale": torch.ones(4, 1)}
    with pytest.raises(StageError, match="packing 'digits': codes must be 0 to 2"):
        model.pack(weight, "digits", {"levels": 3, "digits": 5}, tensors)


def test_codes_that_are_changed_under_a_mask_are_refused_when_they_are_written() -> None:
    model, _ = packed_model()
    packed = packed_weights(model.module)["0.weight"]
    values = packed.integers()["codes_"].values.clone()
    values[~model.masks["0.weight.codes_"]] = 0
    packed._buffers["codes_"] = packed.pack_integers("codes_", values)
    with pytest.raises(StageError, match="where its mask prunes"):
        encode(model.tensors(), model.masks, model.code_layouts())


def test_a_packing_that_does_not_give_its_codes_back_is_refused() -> None:
    layout = OwnCodes(2, 3, 4, lambda b: b % 4, lambda codes: codes, fill=0)
    tensors = {"w.codes": torch.tensor([[0, 1, 2], [3, 4, 5]], dtype=torch.uint8)}
    with pytest.raises(StageError, match=r"not the buffer again.*bug in the packed weight"):
        encode(tensors, {}, {"w.codes": layout})


@pytest.mark.parametrize("levels", [3, 300])
def test_integers_outside_of_the_levels_are_refused(levels: int) -> None:
    packed = packed_weights(packed_model(levels, 5)[0].module)["0.weight"]
    values = packed.integers()["codes_"].values.clone()
    values[0, 0] = -1 if levels > 256 else levels
    with pytest.raises(ValueError, match=f"codes must be 0 to {levels - 1}, but one is"):
        packed.pack_integers("codes_", values)
    with pytest.raises(ValueError, match=r"codes must be .* of shape"):
        packed.pack_integers("codes_", values[:, 1:])


TERNARY = OwnCodes(
    4,
    10,
    3,
    lambda b: unpack_base(b, 3, 5, 10).to(torch.uint8),
    lambda codes: pack_base(codes, 3, 5),
    fill=1,
)
EXPECTED = Expected(torch.Size((4, 2)), torch.int64)


@pytest.mark.parametrize(
    ("entry", "stored", "message"),
    [
        (None, {"w": torch.full((4, 2), 3**5)}, "codes must be 0 to 2, but one is 3"),
        (None, {"w": torch.zeros(4, 3, dtype=torch.int64)}, "the architecture has"),
        (Zeros(), {"w": torch.full((4, 2), -1)}, "codes must be 0 to 2, but one is"),
        (CodesEntry(), {"w": torch.full((4, 3), 255, dtype=BYTE)}, "codes must be 0 to 2"),
        (CodesEntry(), {"w": torch.zeros(4, 2, dtype=BYTE)}, "4 rows of 10 codes of 2 bits"),
        (CodesEntry(), {"w": torch.zeros(4, 3)}, "4 rows of 10 codes of 2 bits"),
        (
            Masked(),
            {"w@mask": torch.full((5,), 255, dtype=BYTE), "w@kept": torch.zeros(3, dtype=BYTE)},
            "its mask keeps 40 codes of 2 bits",
        ),
        (
            Masked(),
            {"w@mask": torch.zeros(4, dtype=BYTE), "w@kept": torch.zeros(0, dtype=BYTE)},
            "40 bits are expected",
        ),
        (
            Masked(),
            {
                "w@mask": torch.tensor([15, 0, 0, 0, 0], dtype=BYTE),
                "w@kept": torch.tensor([255], dtype=BYTE),
            },
            "codes must be 0 to 2, but one is 3",
        ),
    ],
)
def test_hostile_codes_are_refused(entry: Any, stored: dict[str, Tensor], message: str) -> None:
    with pytest.raises(ArtifactError, match=rf"'w'.*{message}"):
        decode("w", entry, EXPECTED, TERNARY, stored.__getitem__, stored.__getitem__)


def test_the_form_codes_is_refused_where_no_layer_packs_itself() -> None:
    stored = {"w": torch.zeros(4, 2, dtype=BYTE)}
    for layout in (None, CodeLayout(2, 8, 0, 8), Integers()):
        with pytest.raises(ArtifactError, match="no layer packs it itself"):
            decode("w", CodesEntry(), EXPECTED, layout, stored.__getitem__, stored.__getitem__)


@pytest.mark.parametrize(
    "arguments", [{"levels": 1}, {"levels": 10**9}, {"digits": 0}, {"digits": 400}, {"levels": "3"}]
)
def test_hostile_arguments_of_an_artifact_are_refused(
    arguments: dict[str, Any], tmp_path: Path
) -> None:
    model, build = packed_model()
    saved(model, build, tmp_path / "saved", "zpz")
    path = tmp_path / "saved" / "zoopress.json"
    manifest = json.loads(path.read_text())
    manifest["edits"][0]["arguments"].update(arguments)
    path.write_text(json.dumps(manifest))
    with pytest.raises(ArtifactError, match=r"field 'edits'.*must be"):
        reloaded(tmp_path / "saved", build)


@given(
    bits=st.integers(1, 8),
    signed=st.booleans(),
    rows=st.integers(1, 4),
    columns=st.integers(1, 21),
    seed=st.integers(0, 99),
)
def test_integers_of_bit_packed_codes_are_what_was_packed(
    bits: int, signed: bool, rows: int, columns: int, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(0, 1 << bits, (rows, columns), generator=generator, dtype=torch.uint8)
    layout = CodeLayout(bits, columns, 0, 1, signed)
    buffer = pack_codes(codes, bits)
    read = read_codes(buffer, layout)
    wanted = codes.long()
    if signed:
        wanted = torch.where(wanted >= 1 << (bits - 1), wanted - (1 << bits), wanted)
    assert torch.equal(read.values.long(), wanted)
    assert read.levels == 1 << bits
    assert torch.equal(write_codes(read.values, layout), buffer)
    assert torch.equal(read.zeros(), codes == 0)
    assert read.used() == len(set(codes.flatten().tolist()))


def test_zero_points_tell_zeros_group_by_group() -> None:
    codes = torch.tensor([[3, 3, 5, 5, 5]], dtype=torch.uint8)
    fill = torch.tensor([[3, 5, 0]], dtype=torch.uint8)
    read = read_codes(pack_codes(codes, 4), CodeLayout(4, 5, "zero_point", 2), fill)
    assert read.zeros().tolist() == [[True, True, True, True, False]]


def test_bits_that_do_not_fit_a_signed_code_are_refused() -> None:
    layout = CodeLayout(3, 2, 0, 1, signed=True)
    with pytest.raises(ValueError, match="int8 from -4 to 3"):
        write_codes(torch.tensor([[4, 0]], dtype=torch.int8), layout)
    with pytest.raises(ValueError, match=r"\[rows, 2\]"):
        write_codes(torch.tensor([[1, 0, 0]], dtype=torch.int8), layout)
