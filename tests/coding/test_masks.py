"""Codes and masks in pieces: the same as all at once."""

from collections.abc import Iterator

import pytest
import torch
from hypothesis import given, strategies as st
from torch import Tensor

from zoopress.coding import masks as masks_module
from zoopress.coding.bits import pack_codes, unpack_codes, unpack_range
from zoopress.coding.masks import PackedMask

SEEDS = st.integers(0, 2**32 - 1)
BITS = st.integers(1, 8)


@pytest.fixture(autouse=True, scope="module")
def small_blocks() -> Iterator[None]:
    """Make blocks so small that a few codes fill several."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(masks_module, "BLOCK_CODES", 16)
        yield


def random_codes(shape: tuple[int, ...], bits: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 1 << bits, shape, generator=generator).to(torch.uint8)


@given(BITS, st.integers(0, 50), SEEDS, st.data())
def test_any_range_of_a_row_is_unpacked(
    bits: int, count: int, seed: int, data: st.DataObject
) -> None:
    codes = random_codes((count,), bits, seed)
    start = data.draw(st.integers(0, count))
    stop = data.draw(st.integers(start, count))
    assert torch.equal(unpack_range(pack_codes(codes, bits), bits, start, stop), codes[start:stop])


@given(
    st.integers(0, 9), st.integers(0, 41), st.sampled_from([torch.float32, torch.bfloat16]), SEEDS
)
def test_kept_weights_return_to_their_places(
    rows: int, columns: int, dtype: torch.dtype, seed: int
) -> None:
    bits = random_codes((rows, columns), 1, seed)
    mask = PackedMask(pack_codes(bits.reshape(1, -1), 1)[0], bits.shape)
    weight = torch.where(bits.bool(), torch.randn(rows, columns), 0.0).to(dtype)
    assert mask.count() == int(bits.sum())
    assert torch.equal(mask.unpack(), bits.bool())
    assert torch.equal(mask.scatter(weight[bits.bool()]), weight)


@given(BITS, st.integers(0, 9), st.integers(1, 41), SEEDS)
def test_kept_codes_return_to_their_places(bits: int, rows: int, columns: int, seed: int) -> None:
    keep = random_codes((rows, columns), 1, seed)
    codes, fill = (random_codes((rows, columns), bits, seed + i) for i in (1, 2))
    mask = PackedMask(pack_codes(keep.reshape(1, -1), 1)[0], keep.shape)
    kept = pack_codes(codes[keep.bool()][None], bits)[0]
    packed = mask.scatter_codes(kept, bits, lambda some: fill[some])
    expected = torch.where(keep.bool(), codes, fill)
    assert torch.equal(unpack_codes(packed, bits, columns), expected)
