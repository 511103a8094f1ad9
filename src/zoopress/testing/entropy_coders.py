"""What every entropy coder must do, built-in or a third party's.

from zoopress.testing import check_entropy_coder

def test_it_conforms():
    check_entropy_coder("my_coder")
"""

from __future__ import annotations

import tempfile
import tracemalloc
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch

from zoopress.coding.coder import NAMED, decode_plane, encode_plane
from zoopress.coding.entropy_coder import EntropyCoder, NamedCoder, finder
from zoopress.coding.layout import StoredTensor
from zoopress.coding.named import choose_coder
from zoopress.coding.planes import (
    TRELLIS_NEXT,
    TRELLIS_ODD,
    Plane,
    follow_trellis,
    measure,
)
from zoopress.coding.zpz import ZpzReader, write_zpz
from zoopress.errors import ArtifactError, PluginError
from zoopress.plugins import Plugins, load_plugins
from zoopress.testing.conformance import ConformanceError, require

_FREE_BYTES = 1 << 20
_MOST_BYTES = 64
"""Memory that decoding may take: so much, and for each byte of plane and stream so many."""


def check_entropy_coder(name: str, plugins: Plugins | None = None) -> None:
    """Check that a registered entropy coder keeps every rule.

    Args:
        name: what it is registered as.
        plugins: what is registered; everything installed by default.

    Raises:
        ConformanceError: naming the first rule it breaks.
    """
    plugins = plugins or load_plugins()
    kind: type[EntropyCoder] = plugins.resolve("entropy_coders", name)
    require(bool((vars(kind).get("__doc__") or "").strip()), f"{kind.__name__} has no docstring")
    try:
        find = finder(plugins)
        coder = find(name).coder
    except (PluginError, TypeError) as error:
        raise ConformanceError(f"the coder {name!r} cannot be made: {error}") from error
    streams = [(plane, trellis, _stream(coder, plane, trellis)) for plane, trellis in _planes()]
    for plane, trellis, stream in streams:
        _check_gives_back(coder, plane, trellis, stream)
        _check_hostile(coder, plane, trellis, stream)
    _check_bomb(coder)
    _check_threads(coder, streams)
    _check_file(name, plugins)


def _planes() -> Iterator[tuple[Plane, bool]]:
    """Yield planes of all sorts, and whether each is of a trellis."""
    random = np.random.default_rng(0)
    limits = np.iinfo(np.int32)
    yield np.array([[0, 1]], np.int32), False
    yield np.array([[limits.min, limits.max]], np.int32), False
    yield random.integers(0, 256, (1, 4096)).astype(np.int32), False
    yield random.normal(0, 6, (64, 80)).round().astype(np.int32), False
    yield random.normal(200, 3, (4096, 1)).round().astype(np.int32), False
    sparse = (random.random((96, 60)) < 0.05) * random.integers(-9, 10, (96, 60))
    yield sparse.astype(np.int32), False
    yield random.integers(limits.min, limits.max, (30, 40)).astype(np.int32), False
    indices = random.normal(0, 2, (50, 70)).round().astype(np.int64)
    follow_trellis(indices, TRELLIS_NEXT, TRELLIS_ODD, False)
    yield indices.astype(np.int32), True


def _stream(coder: EntropyCoder, plane: Plane, trellis: bool) -> bytes:
    before = plane.copy()
    stream = coder.encode(plane, measure(plane, trellis), trellis)
    require(isinstance(stream, bytes), f"encode() returned {type(stream).__name__}, not bytes")
    require(np.array_equal(before, plane), "encode() changes the plane")
    again = type(coder)().encode(plane, measure(plane, trellis), trellis)
    require(again == stream, "encode() gives other bytes the second time")
    return stream


def _check_gives_back(coder: EntropyCoder, plane: Plane, trellis: bool, stream: bytes) -> None:
    out = np.full_like(plane, -77)
    try:
        coder.decode(memoryview(stream), out, trellis)
    except Exception as error:
        raise ConformanceError(
            f"decode() fails on what encode() made of {plane.shape}: {error!r}"
        ) from error
    wrong = int((out != plane).sum())
    require(not wrong, f"{wrong} of {plane.size} integers {plane.shape} come back changed")


def _check_hostile(coder: EntropyCoder, plane: Plane, trellis: bool, stream: bytes) -> None:
    """Check that no stream does anything but fill the plane or raise ValueError, in bounds."""
    random = np.random.default_rng(len(stream))
    cuts = sorted({0, 1, 2, len(stream) // 2, len(stream) - 1})
    bad = [stream[:cut] for cut in cuts if cut < len(stream)]
    bad += [stream + b"\0", stream * 2, random.bytes(64), b"\xff" * 64]
    for _ in range(12):
        flipped = bytearray(stream)
        flipped[random.integers(len(stream))] ^= 1 << int(random.integers(8))
        bad.append(bytes(flipped))
    for each in bad:
        _decode_bounded(coder, each, np.zeros_like(plane), trellis)


def _decode_bounded(coder: EntropyCoder, stream: bytes, out: Plane, trellis: bool) -> None:
    bound = _FREE_BYTES + _MOST_BYTES * (out.nbytes + len(stream))
    tracemalloc.start()
    try:
        coder.decode(memoryview(stream), out, trellis)
    except ValueError:
        pass
    except Exception as error:
        raise ConformanceError(
            f"decode() raises {type(error).__name__} on a damaged stream: {error}. Raise "
            "ValueError, so that the file is said to be damaged"
        ) from error
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    require(
        peak <= bound,
        f"decode() takes {peak:,} bytes of memory for {out.nbytes:,} bytes of plane and "
        f"{len(stream):,} of stream; at most {bound:,} are allowed. Bound what you unpack by the "
        "plane's size",
    )


def _check_bomb(coder: EntropyCoder) -> None:
    """Check that a small plane bounds the memory, whatever a stream would unpack to."""
    large = np.zeros((1024, 1024), np.int32)
    large[500, 500] = 1
    stream = coder.encode(large, measure(large, False), False)
    small = np.zeros((2, 2), np.int32)
    if len(stream) < large.nbytes // _MOST_BYTES:
        _decode_bounded(coder, stream, small, False)


def _check_threads(coder: EntropyCoder, streams: list[tuple[Plane, bool, bytes]]) -> None:
    with ThreadPoolExecutor(4) as pool:
        again = list(pool.map(lambda s: coder.encode(s[0], measure(s[0], s[1]), s[1]), 4 * streams))
    require(
        again == [stream for *_, stream in 4 * streams],
        "in several threads encode() gives other bytes. Keep no state in the coder",
    )


def _check_file(name: str, plugins: Plugins) -> None:
    """Check a whole file: written, read, and read where the coder is missing."""
    generator = torch.Generator().manual_seed(0)
    tensor = torch.randn(64, 96, generator=generator).mul(5).round().to(torch.int8)
    # Of repeated rows, so that any coder finds something to save and the chunk is not raw.
    tensor = tensor[:4].repeat(16, 1)
    chosen = choose_coder(name, plugins)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "tensors.zpz"
        write_zpz(path, {"weight": StoredTensor(tensor)}, coder=chosen)
        with ZpzReader(path, find_coder=finder(plugins)) as reader:
            require(torch.equal(reader.read("weight"), tensor), "a file gives other tensors back")
        if not isinstance(chosen, NamedCoder) or not _is_used(chosen, tensor):
            return

        def find_none(wanted: str) -> NamedCoder:
            raise PluginError(f"There is no entropy coder {wanted!r}.")

        with ZpzReader(path, find_coder=find_none) as reader:
            try:
                reader.read("weight")
            except ArtifactError as error:
                require(name in str(error), f"without the coder, the error is: {error}")
                return
    raise ConformanceError("a file is read without the coder that it names")


def _is_used(chosen: NamedCoder, tensor: torch.Tensor) -> bool:
    plane = tensor.numpy()
    stream = encode_plane(plane, coder=chosen)
    if stream[0] == NAMED:
        again = np.empty_like(plane)
        decode_plane(stream, again, named=(chosen,))
        require(np.array_equal(again, plane), "a chunk gives other integers back")
    return stream[0] == NAMED
