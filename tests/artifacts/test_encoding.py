"""Forms of tensors in a file: exact, and refused where they do not fit."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, strategies as st
from torch import Tensor

from zoopress.artifacts.encoding import Alias, Boolean, Expected, Masked, Zeros, decode, encode
from zoopress.coding.bits import pack_codes
from zoopress.coding.layout import Integers, PackedCodes, StoredTensor
from zoopress.errors import ArtifactError, StageError
from zoopress.models.packing import CodeLayout

DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.int64, torch.uint8]


def reader(stored: dict[str, StoredTensor]) -> Callable[[str], Tensor]:
    def read(name: str) -> Tensor:
        if name not in stored:
            raise ArtifactError(name)
        return stored[name].tensor

    return read


def decoded(
    tensors: dict[str, Tensor],
    entries: Any,
    stored: dict[str, StoredTensor],
    layouts: dict[str, CodeLayout | Integers],
) -> dict[str, tuple[Tensor, Tensor | None]]:
    def get(name: str) -> tuple[Tensor, Tensor | None]:
        entry = entries.get(name)
        if isinstance(entry, Alias):
            return get(entry.of)
        expected = Expected(tensors[name].shape, tensors[name].dtype)
        return decode(
            name, entry, expected, layouts.get(name), reader(stored), lambda other: get(other)[0]
        )

    return {name: get(name) for name in tensors}


@given(
    shapes=st.lists(st.lists(st.integers(0, 4), max_size=3), min_size=1, max_size=4),
    dtype=st.sampled_from([*DTYPES, torch.bool]),
    prune=st.booleans(),
    seed=st.integers(0, 99),
)
def test_tensors_come_back_bit_for_bit_with_their_masks(
    shapes: list[list[int]], dtype: torch.dtype, prune: bool, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    tensors, masks = {}, {}
    for i, shape in enumerate(shapes):
        tensor = (torch.randn(shape, generator=generator) * 3).to(dtype)
        if prune and dtype.is_floating_point:
            masks[f"t{i}"] = torch.rand(shape, generator=generator) < 0.5
            tensor = torch.where(masks[f"t{i}"], tensor, torch.zeros((), dtype=dtype))
        tensors[f"t{i}"] = tensor
    entries, stored = encode(tensors, masks, {})
    for name, (tensor, mask) in decoded(tensors, entries, stored, {}).items():
        assert tensor.dtype == dtype
        assert tensor.shape == tensors[name].shape
        assert torch.equal(tensor, tensors[name])
        if name in masks:
            assert mask is not None
            assert torch.equal(mask, masks[name])
        else:
            assert mask is None


@given(
    bits=st.integers(2, 8),
    rows=st.integers(1, 4),
    columns=st.integers(1, 21),
    group=st.integers(1, 21),
    symmetric=st.booleans(),
    seed=st.integers(0, 99),
)
def test_masked_codes_come_back_exactly_at_every_width_and_group(
    bits: int, rows: int, columns: int, group: int, symmetric: bool, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    groups = -(-columns // group)
    zero = torch.randint(0, 1 << bits, (rows, groups), generator=generator, dtype=torch.uint8)
    if symmetric:
        zero.zero_()
    codes = torch.randint(0, 1 << bits, (rows, columns), generator=generator, dtype=torch.uint8)
    mask = torch.rand(rows, columns, generator=generator) < 0.5
    codes = torch.where(mask, codes, zero.repeat_interleave(group, 1)[:, :columns])
    layout = CodeLayout(bits, columns, 0 if symmetric else "zero_point", group)
    tensors = {"w.codes": pack_codes(codes, bits), "w.zero_point": zero}
    entries, stored = encode(tensors, {"w.codes": mask}, {"w.codes": layout})
    back, found = decoded(tensors, entries, stored, {"w.codes": layout})["w.codes"]
    assert torch.equal(back, tensors["w.codes"])
    assert found is not None
    assert torch.equal(found, mask)
    if symmetric and (~mask).any():
        codes[~mask] = 1
        tensors["w.codes"] = pack_codes(codes, bits)
        with pytest.raises(StageError, match="without its mask"):
            encode(tensors, {"w.codes": mask}, {"w.codes": layout})


@given(
    bits=st.integers(1, 8),
    rows=st.integers(1, 4),
    columns=st.integers(1, 21),
    fill=st.integers(0, 255),
    seed=st.integers(0, 99),
)
def test_codes_whose_zeros_tell_the_mask_are_stored_without_one(
    bits: int, rows: int, columns: int, fill: int, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    fill %= 1 << bits
    codes = torch.randint(0, 1 << bits, (rows, columns), generator=generator, dtype=torch.uint8)
    mask = codes != fill
    tensors = {"w.codes": pack_codes(codes, bits)}
    layouts: dict[str, CodeLayout | Integers] = {
        "w.codes": CodeLayout(bits, columns, fill, columns, signed=True)
    }
    entries, stored = encode(tensors, {"w.codes": mask}, layouts)
    assert entries == {"w.codes": Zeros()}
    assert stored == {"w.codes": StoredTensor(tensors["w.codes"], PackedCodes(bits, columns, True))}
    back, found = decoded(tensors, entries, stored, layouts)["w.codes"]
    assert torch.equal(back, tensors["w.codes"])
    assert found is not None
    assert torch.equal(found, mask)
    if mask.any():  # one more is pruned than the codes tell: it has to be zero
        row, column = mask.nonzero()[0]
        mask[row, column] = False
        with pytest.raises(StageError, match="without its mask"):
            encode(tensors, {"w.codes": mask}, layouts)
    elif columns > 1:  # one that is kept is zero
        mask[0, 0] = True
        assert encode(tensors, {"w.codes": mask}, layouts)[0] == {"w.codes": Masked()}


@given(
    dtype=st.sampled_from([torch.int8, torch.int16, torch.int32]),
    implied=st.booleans(),
    seed=st.integers(0, 99),
)
def test_masked_integers_come_back_with_their_mask(
    dtype: torch.dtype, implied: bool, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(-2, 3, (5, 7), generator=generator).to(dtype)
    mask = codes != 0
    if not implied:
        mask[0, 0] = True
        codes[0, 0] = 0
    layout = Integers("columns", trellis=True)
    entries, stored = encode({"w": codes}, {"w": mask}, {"w": layout})
    assert entries == {"w": Zeros() if implied else Masked()}
    if implied:
        assert stored["w"].layout == layout
    back, found = decoded({"w": codes}, entries, stored, {"w": layout})["w"]
    assert torch.equal(back, codes)
    assert found is not None
    assert torch.equal(found, mask)


def test_a_mask_is_stored_with_the_width_of_its_rows() -> None:
    mask = torch.rand(6, 3, 5) < 0.5
    _, stored = encode({"w": mask.float()}, {"w": mask}, {})
    assert stored["w@mask"].layout == PackedCodes(1, 90, width=15)
    _, stored = encode({"b": mask[0, 0].float()}, {"b": mask[0, 0]}, {})
    assert stored["b@mask"].layout == PackedCodes(1, 5)


@pytest.mark.parametrize("value", [1e-30, -1.0, float("nan"), float("inf")])
def test_a_pruned_weight_changed_behind_its_mask_is_refused(value: float) -> None:
    tensor = torch.tensor([1.0, 0.0, 2.0])
    mask = torch.tensor([True, False, True])
    assert encode({"w": tensor}, {"w": mask}, {})
    tensor[1] = value
    with pytest.raises(StageError, match=r"'w' has values other than zero where its mask prunes"):
        encode({"w": tensor}, {"w": mask}, {})


def test_a_kept_weight_may_be_anything_at_all() -> None:
    tensor = torch.tensor([float("nan"), 0.0, float("inf")])
    mask = torch.tensor([True, False, True])
    entries, stored = encode({"w": tensor}, {"w": mask}, {})
    back, _ = decoded({"w": tensor}, entries, stored, {})["w"]
    assert torch.equal(back.view(torch.int32), tensor.view(torch.int32))


def test_equal_tensors_are_stored_once_and_tied_only_if_they_are_the_same() -> None:
    shared = torch.randn(4, 4)
    tensors = {"a": shared, "b": shared, "c": shared.clone(), "d": shared.clone().double()}
    entries, stored = encode(tensors, {}, {})
    assert entries["b"] == Alias(of="a", tied=True)
    assert entries["c"] == Alias(of="a", tied=False)
    assert set(entries) == {"b", "c"}
    assert set(stored) == {"a", "d"}


def test_equal_tensors_under_different_masks_are_stored_each_with_its_own() -> None:
    tensors = {name: torch.tensor([1.0, 0.0, 0.0]) for name in "abc"}
    masks = {"a": torch.tensor([True, False, True]), "b": torch.tensor([True, False, False])}
    entries, stored = encode(tensors, masks, {})
    back = decoded(tensors, entries, stored, {})
    assert {name: type(entry) for name, entry in entries.items()} == {
        "a": Masked,
        "b": Masked,
    }
    for name, mask in masks.items():
        found = back[name][1]
        assert found is not None
        assert torch.equal(found, mask)
    assert back["c"][1] is None


F8 = Expected(torch.Size([8]), torch.float32)
I8 = Expected(torch.Size([8]), torch.int64)
B8 = Expected(torch.Size([8]), torch.bool)
U8 = Expected(torch.Size([1, 8]), torch.uint8)
BITS = torch.tensor([0b00001111], dtype=torch.uint8)
CODES = CodeLayout(4, 16, "zero_point", 16)


@pytest.mark.parametrize(
    ("entry", "expected", "layout", "stored"),
    [
        (None, F8, None, {"m.w": torch.zeros(7)}),
        (None, F8, None, {"m.w": torch.zeros(8, dtype=torch.int64)}),
        (None, I8, None, {"m.w": torch.zeros(8, dtype=torch.int32)}),
        (None, B8, None, {"m.w": torch.full((8,), 7, dtype=torch.uint8).view(torch.bool)}),
        (None, F8, None, {}),
        (Boolean(), F8, None, {"m.w": BITS}),
        (Boolean(), B8, None, {"m.w": torch.zeros(2, dtype=torch.uint8)}),
        (Boolean(), B8, None, {"m.w": torch.zeros(1)}),
        (Masked(), F8, None, {"m.w@mask": BITS, "m.w@kept": torch.zeros(5)}),
        (Masked(), F8, None, {"m.w@mask": BITS, "m.w@kept": torch.zeros(4, 1)}),
        (Masked(), F8, None, {"m.w@mask": BITS, "m.w@kept": torch.zeros(4, dtype=torch.int8)}),
        (Masked(), I8, None, {"m.w@mask": BITS, "m.w@kept": torch.zeros(4)}),
        (Masked(), F8, None, {"m.w@mask": BITS}),
        (Masked(), F8, None, {"m.w@kept": torch.zeros(4)}),
        (Masked(), U8, CODES, {"m.w@mask": BITS, "m.w@kept": torch.zeros(2, dtype=torch.uint8)}),
        (Masked(), I8, Integers(), {"m.w@mask": BITS, "m.w@kept": torch.zeros(4)}),
        (Zeros(), F8, None, {"m.w": torch.zeros(8)}),
        (Zeros(), U8, CODES, {"m.w": torch.zeros(1, 8, dtype=torch.uint8)}),
        (Zeros(), U8, Integers(), {"m.w": torch.zeros(1, 7, dtype=torch.uint8)}),
        (Zeros(), I8, Integers(), {"m.w": torch.zeros(8)}),
        (
            Masked(),
            U8,
            CODES,
            {
                "m.w@mask": torch.zeros(2, dtype=torch.uint8),
                "m.w@kept": torch.zeros(0, dtype=torch.uint8),
                "m.zero_point": torch.full((1, 1), 255, dtype=torch.uint8),
            },
        ),
    ],
)
def test_what_does_not_fit_the_architecture_is_refused_with_the_tensors_name(
    entry: Any, expected: Expected, layout: CodeLayout | Integers | None, stored: dict[str, Tensor]
) -> None:
    read = reader({name: StoredTensor(tensor) for name, tensor in stored.items()})
    with pytest.raises(ArtifactError, match=r"m\.w"):
        decode("m.w", entry, expected, layout, read, read)


def test_a_tie_is_found_beside_another_tensor_of_the_same_content() -> None:
    zeros = torch.zeros(3, 2, dtype=torch.uint8)
    codes = torch.zeros(3, 2, dtype=torch.uint8)
    masks = {"codes": torch.zeros(3, 2, dtype=torch.bool)}
    tensors = {"codes": codes, "one": zeros, "two": zeros}
    entries, stored = encode(tensors, masks, {})
    assert entries["two"] == Alias(of="one", tied=True)
    assert "two" not in stored
