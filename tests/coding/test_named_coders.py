"""Coders that plugins bring: chosen by name, named in the file, held to their word."""

from __future__ import annotations

import hashlib
import zlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from zoopress.coding import reference
from zoopress.coding.built_in import BUILT_IN
from zoopress.coding.coder import NAMED, decode_plane, encode_plane
from zoopress.coding.entropy_coder import EntropyCoder, NamedCoder, finder
from zoopress.coding.layout import Integers, StoredTensor
from zoopress.coding.named import choose_coder
from zoopress.coding.planes import TRELLIS_NEXT, TRELLIS_ODD, Plane, Statistics, follow_trellis
from zoopress.coding.varint import Buffer, varint
from zoopress.coding.zpz import ZpzReader, write_zpz
from zoopress.coding.zpz.bands import Octets
from zoopress.coding.zpz.index import CoderRecord, Entry, read_index, write_index
from zoopress.errors import ArtifactError, PluginError
from zoopress.plugins import Plugins, hookimpl, load_plugins
from zoopress.testing import ConformanceError, check_entropy_coder


class Deflate(EntropyCoder):
    """Deflated integers of four bytes."""

    def encode(self, plane: Plane, statistics: Statistics, trellis: bool) -> bytes:
        return zlib.compress(plane.astype("<i4").tobytes(), 9)

    def decode(self, stream: Buffer, plane: Plane, trellis: bool) -> None:
        inflate = zlib.decompressobj()
        try:
            octets = inflate.decompress(stream, plane.nbytes + 1)
        except zlib.error as error:
            raise ValueError(f"not deflated: {error}") from error
        if len(octets) != plane.nbytes or not inflate.eof or inflate.unused_data:
            raise ValueError("another number of bytes")
        plane[...] = np.frombuffer(octets, "<i4").reshape(plane.shape)


class Forgetful(Deflate):
    """Loses every sign."""

    def encode(self, plane: Plane, statistics: Statistics, trellis: bool) -> bytes:
        return super().encode(np.abs(plane), statistics, trellis)


class Greedy(Deflate):
    """Unpacks all there is, whatever the plane's size."""

    def decode(self, stream: Buffer, plane: Plane, trellis: bool) -> None:
        try:
            octets = zlib.decompress(stream)
        except zlib.error as error:
            raise ValueError(str(error)) from error
        if len(octets) != plane.nbytes:
            raise ValueError("another number of bytes")
        plane[...] = np.frombuffer(octets, "<i4").reshape(plane.shape)


class Brittle(Deflate):
    """Raises whatever zlib raises."""

    def decode(self, stream: Buffer, plane: Plane, trellis: bool) -> None:
        plane[...] = np.frombuffer(zlib.decompress(stream), "<i4").reshape(plane.shape)


class Counting(Deflate):
    """Writes how often it was asked."""

    calls = 0

    def encode(self, plane: Plane, statistics: Statistics, trellis: bool) -> bytes:
        Counting.calls += 1
        octets = plane.astype("<i4").tobytes()
        return zlib.compress(octets, Counting.calls % 2)


def with_coders(**coders: str) -> Plugins:
    hook = hookimpl(
        lambda: {n: f"{__name__}:{c}" for n, c in coders.items()},
        specname="zoopress_entropy_coders",
    )
    return load_plugins(extra={"mine": SimpleNamespace(hook=hook)})


@pytest.fixture
def plugins(monkeypatch: pytest.MonkeyPatch) -> Plugins:
    import sys

    # Tests are imported by path; what plugins register is imported by name.
    monkeypatch.setitem(sys.modules, __name__, SimpleNamespace(**globals()))
    return with_coders(
        deflate="Deflate",
        forgetful="Forgetful",
        greedy="Greedy",
        brittle="Brittle",
        counting="Counting",
    )


def tensors() -> dict[str, StoredTensor]:
    generator = torch.Generator().manual_seed(0)
    codes = torch.randn(64, 80, generator=generator).mul(3).round().to(torch.int8)
    indices = np.random.default_rng(0).normal(0, 2, (30, 60)).round().astype(np.int64)
    follow_trellis(indices, TRELLIS_NEXT, TRELLIS_ODD, False)
    return {
        "codes": StoredTensor(codes),
        "float": StoredTensor(torch.randn(40, 40, generator=generator)),
        "path": StoredTensor(torch.from_numpy(indices.astype(np.int16)), Integers(trellis=True)),
        "zeros": StoredTensor(torch.zeros(9)),
    }


@pytest.mark.parametrize("name", sorted(BUILT_IN))
def test_built_in_coders_keep_the_rules_and_are_registered(name: str) -> None:
    check_entropy_coder(name)


def test_a_file_of_a_plugins_coder_gives_every_tensor_back(
    plugins: Plugins, tmp_path: Path
) -> None:
    path = tmp_path / "a.zpz"
    write_zpz(path, tensors(), coder=choose_coder("deflate", plugins))
    assert path.read_bytes()[4] == 3
    with ZpzReader(path, find_coder=finder(plugins)) as reader:
        assert [coder.name for coder in reader.coders] == ["deflate"]
        for name, stored in tensors().items():
            assert torch.equal(reader.read(name), stored.tensor)


@pytest.mark.parametrize("coder", ["auto", *sorted(BUILT_IN)])
def test_a_file_of_the_formats_own_coders_stays_of_version_2(coder: str, tmp_path: Path) -> None:
    write_zpz(tmp_path / "a.zpz", tensors(), coder=choose_coder(coder))
    assert (tmp_path / "a.zpz").read_bytes()[4] == 2


def test_who_lacks_the_coder_is_told_its_name_and_reads_what_others_coded(
    plugins: Plugins, tmp_path: Path
) -> None:
    path = tmp_path / "a.zpz"
    chosen = choose_coder("deflate", plugins)
    assert isinstance(chosen, NamedCoder)
    known = NamedCoder("deflate", "some-distribution", "1", chosen.coder)
    write_zpz(path, tensors(), coder=known)
    with ZpzReader(path) as reader:
        with pytest.raises(ArtifactError, match=r"There is no entropy coder 'deflate'.*") as caught:
            reader.read("codes")
        assert "the distribution 'some-distribution' brings it" in str(caught.value)
        assert torch.equal(reader.read("zeros"), torch.zeros(9))


def test_a_coder_that_does_not_give_back_is_found_out_before_anything_is_kept(
    plugins: Plugins, tmp_path: Path
) -> None:
    with pytest.raises(PluginError, match=r"'forgetful'.*come back changed"):
        write_zpz(tmp_path / "a.zpz", tensors(), coder=choose_coder("forgetful", plugins))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "rule"),
    [
        ("forgetful", "come back changed"),
        ("greedy", "bytes of memory"),
        ("brittle", "raises error on a damaged stream"),
        ("counting", "other bytes the second time"),
    ],
)
def test_conformance_finds_what_is_wrong(name: str, rule: str, plugins: Plugins) -> None:
    check_entropy_coder("deflate", plugins)
    with pytest.raises(ConformanceError, match=rule):
        check_entropy_coder(name, plugins)


def test_whatever_a_named_coder_raises_of_a_strangers_stream_is_damage(plugins: Plugins) -> None:
    brittle = choose_coder("brittle", plugins)
    assert isinstance(brittle, NamedCoder)
    for stream in (bytes((NAMED,)) + b"junk", bytes((NAMED, 0))):
        with pytest.raises(ValueError, match="'brittle' cannot read a chunk"):
            decode_plane(stream, np.zeros((2, 3), np.int8), named=(brittle,))
    with pytest.raises(ValueError, match="coder 129"):
        decode_plane(bytes((NAMED + 1, 0)), np.zeros((2, 3), np.int8), named=(brittle,))


def test_what_a_named_coder_gives_must_fit_the_type_and_the_trellis(plugins: Plugins) -> None:
    deflate = choose_coder("deflate", plugins)
    assert isinstance(deflate, NamedCoder)
    plane = np.array([[300, 1], [2, 3]], np.int32)
    stream = bytes((NAMED,)) + zlib.compress(plane.astype("<i4").tobytes())
    with pytest.raises(ValueError, match="beyond int8"):
        decode_plane(stream, np.zeros((2, 2), np.int8), named=(deflate,))
    with pytest.raises(ValueError, match="no path of the trellis"):
        decode_plane(stream, np.zeros((2, 2), np.int32), trellis=True, named=(deflate,))
    out = np.zeros((2, 2), np.int16)
    decode_plane(stream, out, named=(deflate,))
    assert (out == plane).all()


def index(coders: list[CoderRecord]) -> bytes:
    entry = Entry("uint8", (), Octets(), 0, (2,))
    return write_index([(b"a", entry)], b"", coders)


def test_the_index_keeps_the_coders() -> None:
    coders = [CoderRecord("one", "a-b"), CoderRecord("two", "")]
    assert read_index(index(coders), 2, 100, names_coders=True).coders == tuple(coders)


@pytest.mark.parametrize(
    ("column", "problem"),
    [
        (varint(0), "names 0 coders"),
        (varint(17), "names 17 coders"),
        (varint(1) + b"\3A-b\0", "must be 1 to 64"),
        (varint(1) + b"\1a\3../", "no name of a distribution"),
        (varint(1) + b"\2\xc3\xa4\0", "not ASCII"),
        (varint(2) + b"\1a\0\1a\0", "'a' twice"),
        (varint(1) + b"\x7f", "ends too early"),
    ],
)
def test_a_hostile_list_of_coders_is_refused(column: bytes, problem: str) -> None:
    plain = b"\0" + varint(1) + varint(0) + column + b"\0\1a" + b"\1" + b"\0" + b"\2" + bytes(4)
    with pytest.raises(ValueError, match=problem):
        read_index(plain, 2, 100, names_coders=True)


def test_the_second_reader_refuses_the_chunks_and_nothing_else(
    plugins: Plugins, tmp_path: Path
) -> None:
    path = tmp_path / "a.zpz"
    deflate = choose_coder("deflate", plugins)
    write_zpz(path, {"zeros": tensors()["zeros"]}, coder=deflate)
    assert reference.read_zpz(path.read_bytes())["zeros"].data == bytes(36)
    write_zpz(path, tensors(), coder=deflate)
    with pytest.raises(ValueError, match="no coder 128 in the format"):
        reference.read_zpz(path.read_bytes())


def test_a_name_that_no_file_can_hold_is_refused(plugins: Plugins) -> None:
    odd = with_coders(**{"Odd-Name": "Deflate"})
    with pytest.raises(PluginError, match=r"'Odd-Name'.*must be 1 to 64 of a-z"):
        choose_coder("Odd-Name", odd)
    with pytest.raises(PluginError, match="Did you mean 'deflate'"):
        choose_coder("deflat", plugins)


def test_what_built_in_coders_write_has_not_changed() -> None:
    """The digest is of what they wrote before coders had names."""
    random = np.random.default_rng(5)
    digest = hashlib.sha256()
    for shape, scale in (((40, 50), 3), ((3, 700), 40), ((64, 64), 0.3)):
        plane = random.normal(0, scale, shape).round().astype(np.int32)
        for coder in ("auto", "static", "adaptive", "huffman"):
            chosen: Any = coder
            digest.update(encode_plane(plane, coder=chosen))
    assert digest.hexdigest() == "9ee2a74b7d5fc984258f03820a38ed5a9c29e4ebfafb43fe4f2b637bcb87cff4"
