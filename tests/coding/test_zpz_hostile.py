"""Damaged and hostile `.zpz` files: never a crash, much memory, or a wrong tensor."""

from __future__ import annotations

import contextlib
import tracemalloc
import zlib
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings, strategies as st
from torch import Tensor

from zoopress.coding.bits import pack_codes
from zoopress.coding.layout import Integers, PackedCodes, StoredTensor
from zoopress.coding.varint import varint
from zoopress.coding.zpz import ZpzReader, index, write_zpz, writer
from zoopress.coding.zpz.writer import FOOT, HEAD
from zoopress.errors import ArtifactError

_RELAXED = settings(
    deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def _read_all(path: Path) -> dict[str, Tensor]:
    with ZpzReader(path) as reader:
        return {name: reader.read(name) for name in reader.names()}


def _small_tensors() -> dict[str, StoredTensor]:
    codes = (torch.arange(300) % 17 // 13).reshape(3, 100).to(torch.uint8)
    return {
        "w.codes": StoredTensor(pack_codes(codes, 3), PackedCodes(3, 100)),
        "w.grid": StoredTensor((codes * 2).short(), Integers("columns")),
        "w.scale": StoredTensor(torch.arange(100, dtype=torch.float32) / 64),
        "w.zero": StoredTensor(torch.zeros(50, dtype=torch.int64)),
        "mask": StoredTensor(torch.arange(40) % 3 == 0),
        "step": StoredTensor(torch.tensor(7)),
    }


@pytest.fixture
def small(tmp_path: Path) -> Path:
    write_zpz(tmp_path / "m.zpz", _small_tensors())
    return tmp_path / "m.zpz"


def test_every_prefix_is_refused(small: Path) -> None:
    data = small.read_bytes()
    for size in range(len(data)):
        small.write_bytes(data[:size])
        with pytest.raises(ArtifactError, match=r"m\.zpz"):
            _read_all(small)


def test_a_file_with_more_bytes_is_refused(small: Path) -> None:
    data = small.read_bytes()
    for changed in (data + b"\0", HEAD + b"\0" + data[len(HEAD) :]):
        small.write_bytes(changed)
        with pytest.raises(ArtifactError, match=r"m\.zpz"):
            _read_all(small)


def _assert_refused_or_right(path: Path, tensors: dict[str, StoredTensor]) -> None:
    """A changed bit may leave what is decoded as it was, but must not change it unnoticed."""
    with contextlib.suppress(ArtifactError):
        read = _read_all(path)
        assert read.keys() == tensors.keys()
        for name, stored in tensors.items():
            assert read[name].dtype == stored.tensor.dtype
            assert torch.equal(read[name], stored.tensor), name


def test_every_flipped_bit_of_the_data_is_noticed_or_changes_nothing(small: Path) -> None:
    data = small.read_bytes()
    tensors = _small_tensors()
    _, length = FOOT.unpack(data[-FOOT.size :])
    for bit in range(8 * len(HEAD), 8 * (len(data) - FOOT.size - length)):
        damaged = bytearray(data)
        damaged[bit // 8] ^= 1 << bit % 8
        small.write_bytes(damaged)
        _assert_refused_or_right(small, tensors)


def test_every_flipped_bit_of_head_index_and_foot_is_refused(small: Path) -> None:
    data = small.read_bytes()
    _, length = FOOT.unpack(data[-FOOT.size :])
    places = [*range(len(HEAD)), *range(len(data) - FOOT.size - length, len(data))]
    for bit in (8 * place + bit for place in places for bit in range(8)):
        damaged = bytearray(data)
        damaged[bit // 8] ^= 1 << bit % 8
        small.write_bytes(damaged)
        with pytest.raises(ArtifactError, match=r"m\.zpz"):
            ZpzReader(small)


def _write_raw(path: Path, columns: bytes, data: bytes = b"", head: bytes = HEAD) -> None:
    """Write a file whose foot is right, whatever its index says."""
    stored = b"\0" + columns
    path.write_bytes(head + data + stored + FOOT.pack(zlib.crc32(stored), len(stored)))


def _index(types: bytes, coding: bytes, sizes: bytes, name: bytes = b"a") -> bytes:
    """Return an index of one tensor, whose checksum is zero."""
    return b"\1\0" + _names(name) + types + coding + sizes + bytes(4)


def _names(*names: bytes, shared: int = 0) -> bytes:
    lengths = b"".join(varint(shared) + varint(len(name)) for name in names)
    return lengths + b"".join(names)


def _codes(bits: int, spare: int, width: bytes = b"") -> bytes:
    return bytes((3 | (bits - 1) << 3 | bool(width) << 7, spare)) + width


_ROW = b"\x21\x04"  # uint8 [4]


@pytest.mark.parametrize(
    ("columns", "data", "message"),
    [
        (_index(b"\x1f", b"\0", b"\1"), b"x", "'a'.*dtype number 31"),
        (_index(b"\x01", b"\5", b"\1"), b"x", "'a'.*coding 5"),
        (_index(b"\x01", b"\x08", b"\1"), b"x", "'a'.*coding 8"),
        (_index(b"\x05", b"\2", b"\1" * 8), b"x" * 8, "'a'.*no such planes"),
        (_index(b"\xe1\x41" + b"\1" * 65, b"\0", b"\1"), b"x", "65 dimensions"),
        (_index(b"\xe1\x06" + b"\1" * 6, b"\0", b"\1"), b"x", "shortest form"),
        (_index(b"\x41" + varint(2**62) * 2, b"\0", b""), b"", "too large"),
        (_index(b"\x48" + varint(2**62) + b"\1", b"\0", b""), b"", "too large"),
        (_index(b"\x61" + varint(2**62) * 2 + b"\0", b"\0", b""), b"", "too large"),
        (_index(b"\x21" + varint(2**42), b"\0", b"\2"), b"xx", "chunks than there are"),
        (_index(_ROW, b"\0", b"\0"), b"", "chunks than there are"),
        (_index(b"\x21" + varint(1 << 21), b"\0", b"\0\2"), b"xx", "in 0 bytes"),
        (_index(_ROW, b"\0", b"\4"), b"x", "ends at byte 4 of the data"),
        (_index(_ROW, b"\0", b"\4"), b"x" * 9, "every byte"),
        (_index(b"\x01", b"\0", b"\1\0"), b"x", "every byte"),
        (b"\2\0" + _names(b"a"), b"", "cannot hold the 2"),
        (b"\2\0" + _names(b"a", b"a") + bytes(20), b"", "twice"),
        (b"\2\0" + _names(b"b", b"a") + bytes(20), b"", "out of order"),
        (_index(b"\x01", b"\0", b"\1", b"a\0"), b"x", "NUL"),
        (_index(b"\x01", b"\0", b"\1", b"\xff"), b"x", "UTF-8"),
        (_index(b"\x01", b"\0", b"\1", b""), b"x", "length"),
        (b"\1\0" + _names(b"b", shared=3) + bytes(9), b"", "length"),
        (_index(b"\x01", b"\0", b"\1", b"x" * 1025), b"x", "length"),
        (varint(2**60), b"", "cannot hold the"),
        (b"\0" + varint(2**60), b"", "ends too early"),
        (_index(b"\x28\x01", _codes(4, 0), b"\1"), b"x", "rows of uint8"),
        (_index(_ROW, _codes(4, 9), b"\1"), b"x", "fill rows"),
        (_index(_ROW, _codes(4, 0, b"\3"), b"\1"), b"x", "lines of 3 codes"),
        (_index(b"\x41\1\4", _codes(4, 0, b"\0"), b"\1"), b"x", "lines of 0 codes"),
        (_index(b"\x41\2\4", _codes(4, 0, b"\4"), b"\1"), b"x", "one row"),
        (_index(b"\x42\2\2", b"\x2c", b"\1"), b"x", "coding 44"),
        (_index(b"\x22\2", b"\4", b"\1"), b"x", "of two axes"),
        (_index(b"\x42\1" + varint(1 << 21), b"\x14", b"\1"), b"x", "must be whole"),
    ],
)
def test_impossible_indexes_are_refused(
    tmp_path: Path, columns: bytes, data: bytes, message: str
) -> None:
    path = tmp_path / "m.zpz"
    _write_raw(path, columns, data)
    with pytest.raises(ArtifactError, match=message):
        ZpzReader(path)


def test_a_small_file_that_declares_gigabytes_is_refused(tmp_path: Path) -> None:
    """A chunk of one value holds a million in three bytes, so chunks alone bound nothing."""
    path = tmp_path / "m.zpz"
    chunks = 1000
    _write_raw(
        path, _index(b"\x21" + varint(chunks << 20), b"\0", b"\2" * chunks), b"\1\0" * chunks
    )
    with pytest.raises(ArtifactError, match="would decode to"):
        ZpzReader(path)


def test_an_index_that_inflates_without_bound_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "m.zpz"
    bomb = zlib.compressobj(9, zlib.DEFLATED, -15)
    stored = b"\1" + bomb.compress(bytes(50_000_000)) + bomb.flush()
    path.write_bytes(HEAD + stored + FOOT.pack(zlib.crc32(stored), len(stored)))
    tracemalloc.start()
    with pytest.raises(ArtifactError, match="larger than an index of its size may be"):
        ZpzReader(path)
    assert tracemalloc.get_traced_memory()[1] < 200 * path.stat().st_size
    tracemalloc.stop()


def test_the_writer_stores_raw_what_would_expand_too_much(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (index, writer):
        monkeypatch.setattr(module, "FREE_BYTES", 10_000)
    zeros = torch.zeros(9000, dtype=torch.uint8)
    path = tmp_path / "m.zpz"
    write_zpz(path, {name: StoredTensor(zeros) for name in "abcd"})
    assert all(torch.equal(tensor, zeros) for tensor in _read_all(path).values())
    assert 9000 < path.stat().st_size < 9200  # raw once; that pays for the others


def test_other_versions_and_other_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "m.zpz"
    for version in (1, 4):
        _write_raw(path, b"\0\0", head=HEAD[:-1] + bytes((version,)))
        with pytest.raises(ArtifactError, match=rf"version {version}.*reads versions 2 and 3"):
            ZpzReader(path)
    for content in (b"PK\x03\x04" + bytes(60), b"", b"\x89ZPZ"):
        path.write_bytes(content)
        with pytest.raises(ArtifactError, match=r"not a \.zpz|ends after"):
            ZpzReader(path)
    with pytest.raises(ArtifactError, match="cannot be opened"):
        ZpzReader(tmp_path / "missing.zpz")


@pytest.mark.parametrize(
    ("dtype", "message"), [(b"\x20", "other than 0 and 1"), (b"\x21", "checksum")]
)
def test_impossible_contents_are_refused(tmp_path: Path, dtype: bytes, message: str) -> None:
    path = tmp_path / "m.zpz"
    _write_raw(path, _index(dtype + b"\1", b"\0", b"\3"), b"\0\1\2")
    with ZpzReader(path) as reader, pytest.raises(ArtifactError, match=f"'a'.*{message}"):
        reader.read("a")


@_RELAXED
@given(st.binary(max_size=60), st.binary(max_size=30), st.data())
def test_random_indexes_give_only_artifact_errors(
    tmp_path: Path, tail: bytes, data: bytes, draw: st.DataObject
) -> None:
    path = tmp_path / "m.zpz"
    heads = [b"", b"\1\0" + _names(b"a"), b"\1\0" + _names(b"a") + b"\x21\x1e\0"]
    _write_raw(path, draw.draw(st.sampled_from(heads)) + tail, data)
    with contextlib.suppress(ArtifactError):
        _read_all(path)


@_RELAXED
@given(st.data())
def test_changed_bytes_behind_right_checksums_are_refused_or_change_nothing(
    small: Path, data: st.DataObject
) -> None:
    """Whoever forges the index's checksum can still not have a wrong tensor pass its own."""
    content = bytearray(small.read_bytes())
    _, length = FOOT.unpack(content[-FOOT.size :])
    start = len(content) - FOOT.size - length
    original = bytes(content)
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(len(HEAD), start - 1))] = data.draw(st.integers(0, 255))
    small.write_bytes(content)
    _assert_refused_or_right(small, _small_tensors())
    small.write_bytes(original)
