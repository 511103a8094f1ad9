from __future__ import annotations

import io
import math
import random
import time
import zlib
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings, strategies as st
from torch import Tensor

from zoopress.coding.bits import pack_codes, packed_size, unpack_codes
from zoopress.coding.layout import Integers, PackedCodes, StoredTensor
from zoopress.coding.trellis import NEXT, ODD
from zoopress.coding.zpz import ZpzReader, bands, sources, write_zpz, writer
from zoopress.coding.zpz.bands import (
    DTYPES,
    FLOATS,
    ITEMSIZES,
    BytePlanes,
    Coding,
    Cut,
    Octets,
    Plane,
)
from zoopress.coding.zpz.checksums import combine_crc32
from zoopress.coding.zpz.parallel import map_in_order
from zoopress.coding.zpz.repack import pack_rows, unpack_rows
from zoopress.errors import ArtifactError

_RELAXED = settings(
    deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def _bits(tensor: Tensor) -> bytes:
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def _assert_same(read: Tensor, written: Tensor) -> None:
    assert (read.dtype, read.shape) == (written.dtype, written.shape)
    assert _bits(read) == _bits(written)


def _read_all(path: Path) -> dict[str, Tensor]:
    with ZpzReader(path) as reader:
        return {name: reader.read(name) for name in reader.names()}


def _round_trip(
    folder: Path, tensors: Mapping[str, StoredTensor], threads: int | None = None
) -> int:
    path = folder / "model.zpz"
    write_zpz(path, tensors, threads=threads)
    read = _read_all(path)
    assert sorted(read) == sorted(tensors)
    for name, stored in tensors.items():
        _assert_same(read[name], stored.tensor)
    return path.stat().st_size


def _entropy_bytes(symbols: Tensor) -> float:
    share = torch.bincount(symbols.flatten().long()).double() / symbols.numel()
    share = share[share > 0]
    return float(-(share * share.log2()).sum()) * symbols.numel() / 8


def _gaussian_codes(rows: int, columns: int, bits: int) -> Tensor:
    weight = torch.randn(rows, columns, generator=torch.Generator().manual_seed(bits))
    half = 2 ** (bits - 1)
    scale = weight.abs().amax(1, keepdim=True) / (half - 1)
    codes: Tensor = ((weight / scale).round() + half).to(torch.uint8)
    return codes


@st.composite
def _tensors(draw: st.DrawFn) -> Tensor:
    """Any dtype, any shape of up to 4 dimensions, bytes random, repeated or mostly zero."""
    dtype: torch.dtype = getattr(torch, draw(st.sampled_from([name for name, _ in DTYPES])))
    shape = draw(st.lists(st.integers(0, 5), max_size=4))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32 - 1)))
    size = math.prod(shape) * dtype.itemsize
    raw = torch.randint(0, draw(st.sampled_from([1, 2, 256])), (size,), generator=generator)
    if dtype == torch.bool:
        raw = raw % 2
    tensor: Tensor = raw.to(torch.uint8).view(dtype).reshape(shape)
    return tensor


@_RELAXED
@given(
    st.dictionaries(
        st.text(st.characters(exclude_characters="\0", codec="utf-8"), min_size=1, max_size=12),
        _tensors(),
        max_size=5,
    )
)
def test_any_tensors_come_back_bit_by_bit(tmp_path: Path, tensors: dict[str, Tensor]) -> None:
    _round_trip(tmp_path, {name: StoredTensor(tensor) for name, tensor in tensors.items()})


@_RELAXED
@given(st.integers(1, 8), st.integers(0, 40), st.lists(st.integers(0, 4), max_size=2), st.data())
def test_packed_codes_come_back(
    bits: int, count: int, rows: list[int], data: st.DataObject
) -> None:
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 2**32 - 1)))
    codes = torch.randint(0, 2**bits, (*rows, count), generator=generator).to(torch.uint8)
    packed = pack_codes(codes, bits)
    assert packed.shape == (*rows, packed_size(count, bits))
    assert torch.equal(unpack_codes(packed, bits, count), codes)
    if not rows:
        stream = sum(code << j * bits for j, code in enumerate(codes.tolist()))
        assert bytes(packed.tolist()) == stream.to_bytes(len(packed), "little")


def test_codes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="below 8"):
        pack_codes(torch.tensor([8], dtype=torch.uint8), 3)
    with pytest.raises(ValueError, match="not 9"):
        pack_codes(torch.tensor([8], dtype=torch.uint8), 9)
    with pytest.raises(ValueError, match="uint8"):
        pack_codes(torch.tensor([1]), 3)
    with pytest.raises(ValueError, match="take 2 bytes"):
        unpack_codes(torch.zeros(3, dtype=torch.uint8), 3, 5)


@pytest.mark.parametrize("name", [name for name, _ in DTYPES])
def test_compressible_tensors_of_every_dtype_come_back(tmp_path: Path, name: str) -> None:
    values = torch.randn(70, 100, generator=torch.Generator().manual_seed(0))
    if "float" not in name:
        values = (values * 20).abs().clamp(max=100)
    tensor = values.to(getattr(torch, name))
    if name == "bool":
        tensor = values > 35
    size = _round_trip(tmp_path, {"weight": StoredTensor(tensor)})
    assert size < 0.96 * tensor.numel() * tensor.element_size()


@pytest.mark.parametrize("name", ["float64", "float32", "float16", "bfloat16"])
def test_special_floats_keep_every_bit(tmp_path: Path, name: str) -> None:
    dtype: torch.dtype = getattr(torch, name)
    special = [0.0, -0.0, math.inf, -math.inf, math.nan, 1e-45, 1.0]
    tensor = torch.tensor(special * 300, dtype=dtype)
    payloads = torch.full((64 * dtype.itemsize,), 255, dtype=torch.uint8)
    payloads[:: dtype.itemsize] = torch.arange(64)
    _round_trip(
        tmp_path, {"special": StoredTensor(tensor), "nan": StoredTensor(payloads.view(dtype))}
    )


def test_strided_and_degenerate_tensors_come_back(tmp_path: Path) -> None:
    base = torch.randn(60, 80)
    tensors = {
        "transposed": base.t(),
        "strided": base[::3, 1::2],
        "expanded": base[:1].expand(50, 80),
        "gradient": torch.nn.Parameter(base),
        "zeros": torch.zeros(100, 100),
        "one value": torch.full((5000,), 3.25),
        "scalar": torch.tensor(7),
        "empty": torch.empty(3, 0, 2),
        "empty scalar row": torch.empty(0, dtype=torch.bool),
    }
    _round_trip(tmp_path, {name: StoredTensor(tensor) for name, tensor in tensors.items()})


def test_no_tensors_at_all_come_back(tmp_path: Path) -> None:
    assert _round_trip(tmp_path, {}) == 16


@pytest.mark.parametrize("bits", range(1, 9))
def test_coded_rows_come_back(tmp_path: Path, bits: int) -> None:
    codes = torch.randint(0, 2**bits, (37, 203)).to(torch.uint8) & torch.randint(0, 2**bits, (203,))
    packed = pack_codes(codes.to(torch.uint8), bits)
    _round_trip(
        tmp_path,
        {
            "codes": StoredTensor(packed, PackedCodes(bits, 203)),
            "deep": StoredTensor(packed.reshape(37, 1, -1), PackedCodes(bits, 203)),
            "empty": StoredTensor(packed[:0], PackedCodes(bits, 203)),
        },
    )


def test_codes_with_padding_bits_set_come_back(tmp_path: Path) -> None:
    packed = pack_codes(_gaussian_codes(64, 101, 4), 4)
    packed[:, -1] |= 0xF0
    _round_trip(tmp_path, {"codes": StoredTensor(packed, PackedCodes(4, 101))})


@pytest.mark.parametrize("bits", [3, 4, 5, 8])
def test_a_million_gaussian_codes_come_within_a_percent_of_their_entropy(
    tmp_path: Path, bits: int
) -> None:
    codes = _gaussian_codes(1000, 1001, bits)
    size = _round_trip(
        tmp_path, {"codes": StoredTensor(pack_codes(codes, bits), PackedCodes(bits, 1001))}
    )
    assert size <= 1.01 * _entropy_bytes(codes)


def test_float_weights_shrink(tmp_path: Path) -> None:
    weight = torch.randn(700, 700, generator=torch.Generator().manual_seed(0)) * 0.02
    assert _round_trip(tmp_path, {"weight": StoredTensor(weight)}) < 0.9 * 4 * 490_000
    half = weight.to(torch.bfloat16)
    assert _round_trip(tmp_path, {"weight": StoredTensor(half)}) < 0.7 * 2 * 490_000


def test_small_tensors_cost_little_more_than_they_hold(tmp_path: Path) -> None:
    tensors = {f"blocks.{i}.norm.weight": StoredTensor(torch.randn(10)) for i in range(60)}
    assert _round_trip(tmp_path, tensors) <= 60 * (41 + 8)


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (bands, sources, writer):
        monkeypatch.setattr(module, "CHUNK_SYMBOLS", 1000)
    monkeypatch.setattr(sources, "TRIED_BYTES", 64)


def _trellis_path(rows: int, columns: int) -> Tensor:
    """Return integers whose rows are paths: in states with odd multiples, odd or zero."""
    drawn = torch.randint(-2, 3, (rows, columns), generator=torch.Generator().manual_seed(0))
    path = torch.zeros(rows, columns, dtype=torch.int16)
    for row in range(rows):
        state = 0
        for column in range(columns):
            index = int(drawn[row, column])
            path[row, column] = 2 * index - (ODD[state] * ((index > 0) - (index < 0)))
            state = NEXT[state][index & 1]
    return path


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("threads", [1, 3])
def test_tensors_of_many_chunks_come_back(tmp_path: Path, threads: int) -> None:
    packed = pack_codes(_gaussian_codes(30, 333, 3), 3)
    long = pack_codes(_gaussian_codes(3, 2345, 5), 5)
    line = pack_codes(_gaussian_codes(1, 45 * 701, 1), 1)[0]
    integers = torch.randint(-90, 90, (70, 77), dtype=torch.int16)
    paths = _trellis_path(30, 90)
    _round_trip(
        tmp_path,
        {
            "float": StoredTensor(torch.randn(4567) * 0.02),
            "matrix": StoredTensor(torch.randn(45, 67).bfloat16()),
            "long lines": StoredTensor(torch.randn(3, 2500)),
            "images": StoredTensor(torch.randn(30, 4, 5, 6)),
            "experts": StoredTensor(torch.randn(3, 40, 60)),
            "column": StoredTensor(torch.randn(2500, 1)),
            "zeros": StoredTensor(torch.zeros(3000, dtype=torch.uint8)),
            "bools": StoredTensor(torch.rand(3000) > 0.9),
            "codes": StoredTensor(packed, PackedCodes(3, 333)),
            "signed codes": StoredTensor(packed, PackedCodes(3, 333, signed=True)),
            "codes of long rows": StoredTensor(long, PackedCodes(5, 2345)),
            "mask": StoredTensor(line, PackedCodes(1, 45 * 701, width=45)),
            "mask of wide lines": StoredTensor(line, PackedCodes(1, 45 * 701, width=701)),
            "rows": StoredTensor(integers, Integers()),
            "columns": StoredTensor(integers.int(), Integers("columns")),
            "transposed": StoredTensor(integers.t(), Integers("columns")),
            "tall columns": StoredTensor(
                torch.zeros(2100, 3, dtype=torch.int8), Integers("columns")
            ),
            "paths": StoredTensor(paths, Integers(trellis=True)),
            "paths down": StoredTensor(paths.t(), Integers("columns", trellis=True)),
            "paths that are cut": StoredTensor(_trellis_path(3, 1100), Integers(trellis=True)),
        },
        threads,
    )


@pytest.mark.usefixtures("small_chunks")
def test_any_number_of_threads_writes_the_same_bytes(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    tensors = {
        f"layer.{i}": StoredTensor(torch.randn(i, 200, generator=generator)) for i in range(9)
    }
    for threads in (1, 2, 7):
        write_zpz(tmp_path / f"{threads}.zpz", tensors, threads=threads)
    assert len({path.read_bytes() for path in tmp_path.iterdir()}) == 1


@_RELAXED
@given(
    st.sampled_from([name for name, _ in DTYPES]),
    st.lists(st.integers(0, 40), max_size=4),
    st.data(),
)
def test_bands_put_together_are_the_tensor(
    dtype: str, shape: list[int], data: st.DataObject
) -> None:
    codings: list[Coding] = [Octets()]
    if ITEMSIZES[dtype] > 1:
        codings.append(BytePlanes(dtype in FLOATS))
    if dtype in ("int8", "int16", "int32") and len(shape) == 2:
        codings += [Integers("rows"), Integers("columns")]
    if dtype == "uint8" and shape:
        bits = data.draw(st.integers(1, 8))
        codings.append(PackedCodes(bits, shape[-1] * 8 // bits))
    cut = Cut(dtype, tuple(shape), data.draw(st.sampled_from(codings)))
    octets = np.frombuffer(random.Random(0).randbytes(cut.bytes), np.uint8)
    if isinstance(cut.coding, PackedCodes) and cut.coding.per_row * cut.coding.bits % 8:
        octets = np.zeros_like(octets)
    merged = np.zeros_like(octets)
    symbols = 0
    for band in cut.bands():
        start, stop = cut.byte_range(band)
        planes = cut.split(octets[start:stop].copy(), band)
        assert all(plane.shape == (band.lines, band.length) for plane in planes)
        assert all(0 < plane.size <= bands.CHUNK_SYMBOLS for plane in planes)

        def fill(outs: list[Plane], planes: list[Plane] = planes) -> None:
            for out, plane in zip(outs, planes, strict=True):
                out[...] = plane

        cut.merge(band, merged[start:stop], fill)
        symbols += cut.band_bytes(band)
    assert len(list(cut.bands())) == cut.band_count
    assert symbols == cut.bytes
    assert merged.tobytes() == octets.tobytes()


@given(
    st.integers(1, 8), st.booleans(), st.integers(1, 4), st.integers(0, 30), st.integers(0, 2**32)
)
def test_compiled_packing_is_that_of_torch(
    bits: int, signed: bool, rows: int, count: int, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(0, 1 << bits, (rows, count), generator=generator).to(torch.uint8)
    packed = pack_codes(codes, bits)
    unpacked = np.empty((rows, count), np.uint8)
    unpack_rows(packed.numpy(), bits, signed, unpacked)
    half = 1 << (bits - 1)
    values = (codes.int() ^ half) - half if signed else codes.int()
    assert np.array_equal(unpacked.view(np.int8 if signed else np.uint8), values.numpy())
    again = np.empty_like(packed.numpy())
    assert pack_rows(unpacked, bits, signed, again)
    assert np.array_equal(again, packed.numpy())


@pytest.mark.parametrize(("code", "signed"), [(8, False), (4, True), (-5, True)])
def test_a_code_that_does_not_fit_is_noticed(code: int, signed: bool) -> None:
    codes = np.array([[1, 2, code]], np.int8).view(np.uint8)
    assert not pack_rows(codes, 3, signed, np.empty((1, 2), np.uint8))


def test_lines_follow_the_shape() -> None:
    def lines(*shape: int) -> tuple[int, int]:
        cut = Cut("uint8", shape, Octets())
        return cut.lines, cut.length

    assert lines(5, 7) == (5, 7)
    assert lines(20, 3, 5, 5) == (20, 75)
    assert lines(8, 2048, 1024) == (8 * 2048, 1024)  # experts: 2048 · 1024 symbols are two chunks
    assert lines(9) == (1, 9)
    assert lines(9, 1) == (1, 9)
    assert lines() == (1, 1)
    assert lines(0, 5) == (0, 0)
    wide = Cut("float32", (3, 1 << 21), BytePlanes(True))
    assert [(band.line, band.start) for band in wide.bands()] == [
        (line, start) for line in range(3) for start in (0, 1 << 20)
    ]
    assert wide.band_count == 6


@given(st.binary(max_size=200), st.binary(max_size=200))
def test_checksums_of_parts_give_that_of_the_whole(one: bytes, other: bytes) -> None:
    combined = combine_crc32(zlib.crc32(one), zlib.crc32(other), len(other))
    assert combined == zlib.crc32(one + other)


def test_results_come_in_order_and_few_are_waiting() -> None:
    begun: list[int] = []

    def items() -> Iterator[int]:
        for i in range(50):
            begun.append(i)
            yield i

    def work(i: int) -> int:
        time.sleep(0.001 * (i % 3))
        return i * i

    for done, (item, result) in enumerate(map_in_order(work, items(), 3)):
        assert (item, result) == (done, done * done)
        assert len(begun) <= done + 1 + 2 * 3 + 1


def test_an_error_in_a_thread_reaches_the_caller() -> None:
    def work(i: int) -> int:
        return 1 // (i - 5)

    with pytest.raises(ZeroDivisionError):
        list(map_in_order(work, range(100), 3))


def test_expected_tensors_are_decoded_ahead_and_are_the_same(tmp_path: Path) -> None:
    tensors = {f"t{i}": StoredTensor(torch.randn(900, 900)) for i in range(12)}
    write_zpz(tmp_path / "m.zpz", tensors)
    with ZpzReader(tmp_path / "m.zpz", threads=2) as reader:
        order = list(reversed(reader.names()))
        reader.expect(order)
        for name in [*order[3:], *order[:5]]:  # some out of order, some twice
            _assert_same(reader.read(name), tensors[name].tensor)


def test_threads_read_one_file(tmp_path: Path) -> None:
    tensors = {f"t{i}": StoredTensor(torch.randn(30, 50)) for i in range(40)}
    write_zpz(tmp_path / "m.zpz", tensors)
    with ZpzReader(tmp_path / "m.zpz") as reader, ThreadPoolExecutor(8) as pool:
        for name, tensor in zip(tensors, pool.map(reader.read, tensors), strict=True):
            _assert_same(tensor, tensors[name].tensor)


def test_an_open_file_object_is_read_and_left_open(tmp_path: Path) -> None:
    write_zpz(tmp_path / "m.zpz", {"a": StoredTensor(torch.arange(5))})
    file = io.BytesIO((tmp_path / "m.zpz").read_bytes())
    with ZpzReader(file) as reader:
        assert reader.read("a").tolist() == [0, 1, 2, 3, 4]
    assert not file.closed


def test_pieces_are_the_bytes_of_the_tensor(tmp_path: Path) -> None:
    integers = torch.randint(-5, 5, (40, 30), dtype=torch.int16)
    tensors = {"a": StoredTensor(torch.randn(50)), "b": StoredTensor(integers, Integers("columns"))}
    write_zpz(tmp_path / "m.zpz", tensors)
    with ZpzReader(tmp_path / "m.zpz") as reader:
        for name, stored in tensors.items():
            joined = b"".join(piece.tobytes() for piece in reader.pieces(name))
            assert joined == _bits(stored.tensor)


def test_a_lenets_tensors_cost_fifteen_bytes_each_with_their_names(tmp_path: Path) -> None:
    shapes = {"conv1": (20, 25), "conv2": (50, 500), "fc1": (500, 800), "fc2": (10, 500)}
    tensors: dict[str, StoredTensor] = {}
    torch.manual_seed(0)
    for name, (rows, columns) in shapes.items():
        codes = (torch.randn(rows, columns) * 0.4).round().to(torch.int16)
        tensors[f"{name}.weight.codes"] = StoredTensor(codes, Integers())
        tensors[f"{name}.weight.row_step"] = StoredTensor(torch.rand(rows).bfloat16())
        tensors[f"{name}.bias"] = StoredTensor(torch.randn(rows))
    size = _round_trip(tmp_path, tensors)
    with ZpzReader(tmp_path / "model.zpz") as reader:
        chunks = sum(map(reader.stored_bytes, reader.names()))
    assert size - chunks <= 15 * len(tensors)


def test_the_same_tensors_give_the_same_bytes_in_any_order(tmp_path: Path) -> None:
    tensors = {f"layer.{i}": StoredTensor(torch.randn(300) * i) for i in range(4)}
    write_zpz(tmp_path / "a.zpz", tensors)
    write_zpz(tmp_path / "b.zpz", dict(reversed(tensors.items())))
    assert (tmp_path / "a.zpz").read_bytes() == (tmp_path / "b.zpz").read_bytes()


def test_names_and_info_need_no_decoding(tmp_path: Path) -> None:
    path = tmp_path / "model.zpz"
    write_zpz(path, {"b": StoredTensor(torch.zeros(2, 3)), "a": StoredTensor(torch.tensor(True))})
    with ZpzReader(path) as reader:
        assert reader.names() == ["a", "b"]
        assert reader.info("a") == ("bool", ())
        assert reader.info("b") == ("float32", (2, 3))
        with pytest.raises(ArtifactError, match="no tensor 'c'"):
            reader.read("c")


def test_progress_names_each_tensor(tmp_path: Path) -> None:
    lines: list[str] = []
    write_zpz(tmp_path / "m.zpz", {"weight": StoredTensor(torch.zeros(9))}, lines.append)
    assert lines == ["weight: 36 bytes stored in 2"]


@pytest.mark.parametrize("name", ["", "a\0b", "x" * 1025, "\ud800"])
def test_names_that_cannot_be_stored_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match="rename"):
        write_zpz(tmp_path / "m.zpz", {name: StoredTensor(torch.zeros(1))})


@pytest.mark.parametrize(
    "stored",
    [
        StoredTensor(torch.zeros(4, dtype=torch.complex128)),
        StoredTensor(torch.zeros(4), PackedCodes(4, 8)),
        StoredTensor(torch.zeros(4, dtype=torch.uint8), PackedCodes(4, 9)),
        StoredTensor(torch.zeros(4, dtype=torch.uint8), PackedCodes(9, 3)),
        StoredTensor(torch.zeros((), dtype=torch.uint8), PackedCodes(4, 2)),
        StoredTensor(torch.zeros(2, 4, dtype=torch.uint8), PackedCodes(4, 8, width=4)),
        StoredTensor(torch.zeros(4, dtype=torch.uint8), PackedCodes(4, 8, width=3)),
        StoredTensor(torch.zeros(4, dtype=torch.int16), Integers()),
        StoredTensor(torch.zeros(4, 4, dtype=torch.int64), Integers()),
        StoredTensor(torch.tensor([[2, 2], [1, 2]], dtype=torch.int16), Integers(trellis=True)),
    ],
)
def test_wrong_descriptions_are_refused_and_leave_no_file(
    tmp_path: Path, stored: StoredTensor
) -> None:
    with pytest.raises(ValueError, match="'weight' cannot be stored"):
        write_zpz(tmp_path / "m.zpz", {"weight": stored})
    assert list(tmp_path.iterdir()) == []


def test_a_failed_write_keeps_the_file_that_was_there(tmp_path: Path) -> None:
    path = tmp_path / "m.zpz"
    write_zpz(path, {"a": StoredTensor(torch.zeros(3))})

    def fail(line: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_zpz(path, {"b": StoredTensor(torch.zeros(3))}, fail)
    assert list(tmp_path.iterdir()) == [path]
    assert list(_read_all(path)) == ["a"]
