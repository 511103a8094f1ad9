"""Fuzz the readers of `.zpz` files, guided by coverage: run by test_fuzz.py, or by hand.

    python tests/coding/fuzz_zpz.py chunk -runs=100000
    python tests/coding/fuzz_zpz.py file -runs=100000
    NUMBA_BOUNDSCHECK=1 NUMBA_CACHE_DIR=checked python tests/coding/fuzz_zpz.py chunk

Other arguments are libFuzzer's; a file that it left behind is tried again. With NUMBA_BOUNDSCHECK=1
and a NUMBA_CACHE_DIR of its own, kernels are compiled to refuse every access outside an array.

What is found: any error other than the documented one, a crash, a hang (-timeout), memory beyond
the bound (-rss_limit_mb), and inputs of which the fast reader and the plain one say different
things. The plain one is slow: it looks at one input in FUZZ_COMPARED, 64 by default.
"""

from __future__ import annotations

import io
import os
import random
import sys
import tempfile
import zlib
from contextlib import suppress
from pathlib import Path
from types import FunctionType

import atheris
import numpy as np

from zoopress.coding import reference, reference_coder
from zoopress.coding.bits import pack_codes
from zoopress.coding.coder import decode_plane, encode_plane
from zoopress.coding.layout import Integers, PackedCodes, StoredTensor
from zoopress.coding.trellis import NEXT, ODD
from zoopress.coding.zpz import ZpzReader, write_zpz
from zoopress.coding.zpz.index import DICTIONARY
from zoopress.coding.zpz.writer import FOOT, HEAD
from zoopress.errors import ArtifactError

DTYPES = ("int8", "uint8", "int16", "int32")
COMPARED = int(os.environ.get("FUZZ_COMPARED", "64"))
CODERS = ("auto", "static", "adaptive", "huffman")


def instrument() -> None:
    """Have the functions of the readers report their coverage.

    Not by instrumenting their modules: numba cannot compile what is instrumented.
    """
    for name, module in list(sys.modules.items()):
        if name.startswith("zoopress.coding") and "reference" not in name:
            for function in vars(module).values():
                if isinstance(function, FunctionType) and function.__module__ == name:
                    atheris.instrument_func(function)
                elif isinstance(function, type) and function.__module__ == name:
                    for method in vars(function).values():
                        if isinstance(method, FunctionType):
                            atheris.instrument_func(method)


def compared(data: bytes) -> bool:
    """Tell whether the plain reader looks at an input, too."""
    return zlib.crc32(data) % COMPARED == 0


def decode_chunk(data: bytes) -> None:
    """Decode what a chunk says with both decoders; the first three bytes say of what plane."""
    if len(data) < 3:
        return
    dtype, trellis = np.dtype(DTYPES[data[0] & 3]), bool(data[0] & 4)
    rows, columns, stream = data[1] & 7, data[2] & 31, data[3:]
    plane = np.zeros((rows + 1, columns + 1), dtype)
    fast = plain = None
    try:
        decode_plane(stream, plane, trellis=trellis)
        fast = plane.reshape(-1).tolist()
    except ValueError:
        pass
    if not compared(data):
        return
    with suppress(ValueError):
        plain = reference_coder.decode_plane(
            stream,
            rows + 1,
            columns + 1,
            bits=8 * dtype.itemsize,
            signed=dtype.kind == "i",
            trellis=trellis,
        )
    if fast != plain:
        raise AssertionError(f"the fast decoder says {fast}, the plain one {plain}")


def read_file(data: bytes) -> None:
    """Read a whole file with both readers."""
    fast: dict[str, bytes | None] | None = None
    try:
        with ZpzReader(io.BytesIO(data), threads=1) as reader:
            fast = {}
            for name in reader.names():
                if reader.entry(name).decoded_bytes > 1 << 16:
                    return  # the plain reader would take too long
                try:
                    fast[name] = b"".join(piece.tobytes() for piece in reader.pieces(name))
                except ArtifactError:
                    fast[name] = None
    except ArtifactError:
        pass
    if not compared(data):
        return
    try:
        plain = {name: tensor.data for name, tensor in reference.read_zpz(data).items()}
    except ValueError:
        # It reads all tensors at once, so one of them is enough for this.
        if fast is not None and None not in fast.values():
            raise AssertionError("the fast reader takes what the plain one refuses") from None
        return
    if fast != plain:
        raise AssertionError("the readers say different things")


def sealed(content: bytes, index: bytes) -> bytes:
    """Return a file whose index matches its checksum."""
    return content + index + FOOT.pack(zlib.crc32(index), len(index))


def mutate_file(data: bytes, max_size: int, seed: int) -> bytes:
    """Mutate chunks or index and seal the file again, most of the time: else nothing gets far."""
    chance = random.Random(seed)
    length = int.from_bytes(data[-4:], "little")
    start = len(data) - FOOT.size - length
    if chance.random() < 0.05 or start < len(HEAD):
        return bytes(atheris.Mutate(data, max_size))
    content, index = data[:start], data[start : -FOOT.size]
    if chance.random() < 0.5:
        body = atheris.Mutate(content[len(HEAD) :], max(1, max_size - length))
        mutated = sealed(HEAD + bytes(body), index)
    else:
        mutated = sealed(content, bytes(atheris.Mutate(index, max(1, max_size - start))))
    return mutated if len(mutated) <= max_size else data


def seeds(mode: str, folder: Path) -> None:
    """Write inputs to begin with: every coder, every coding of tensors."""
    chance = np.random.default_rng(0)
    if mode == "chunk":
        for i, dtype in enumerate(DTYPES):
            for j, coder in enumerate(CODERS):
                for k, spread in enumerate((0.0, 0.4, 3.0, 60.0)):
                    plane = np.round(chance.normal(0, spread, (8, 32))).astype(np.int64)
                    plane = (abs(plane) if dtype == "uint8" else plane.clip(-128, 127)).astype(
                        dtype
                    )
                    for trellis in (False, True):
                        if trellis:
                            if dtype == "uint8":
                                continue
                            plane = on_trellis(plane)
                        stream = encode_plane(plane, trellis=trellis, coder=coder)
                        head = bytes((i | trellis << 2, 7, 31))
                        (folder / f"{i}-{j}-{k}-{trellis}").write_bytes(head + stream)
        return
    import torch

    codes = torch.arange(300).view(3, 100) % 7
    for coder in CODERS:
        tensors = {
            "w.codes": StoredTensor(pack_codes(codes.to(torch.uint8), 3), PackedCodes(3, 100)),
            "w.grid": StoredTensor((codes - 3).to(torch.int16), Integers("columns")),
            "w.scale": StoredTensor(torch.arange(30, dtype=torch.float32) / 64),
            "b": StoredTensor(torch.arange(40) % 3 == 0),
            "h": StoredTensor(torch.arange(33).bfloat16()),
            "n": StoredTensor(torch.tensor(7)),
            "e": StoredTensor(torch.zeros(0, 5)),
        }
        path = folder / coder
        write_zpz(path, tensors, coder=coder)
        data = path.read_bytes()
        # A deflated index is opaque to mutations, so it becomes a plain one.
        start = len(data) - FOOT.size - int.from_bytes(data[-4:], "little")
        index = data[start : -FOOT.size]
        if index[0] == 1:
            inflate = zlib.decompressobj(-15, DICTIONARY)
            columns = inflate.decompress(index[1:])
            path.write_bytes(sealed(data[:start], b"\0" + columns + inflate.unused_data))
            (folder / f"{coder}-deflated").write_bytes(data)


def on_trellis(plane: np.ndarray) -> np.ndarray:
    """Return the integers that a plane's indices stand for in the trellis."""
    path = np.zeros_like(plane)
    for row, line in enumerate(plane.clip(-40, 40).tolist()):
        state = 0
        for column, index in enumerate(line):
            path[row, column] = 2 * index - (ODD[state] * ((index > 0) - (index < 0)))
            state = NEXT[state][index & 1]
    return path


def main() -> None:
    mode, arguments = sys.argv[1], sys.argv[2:]
    with tempfile.TemporaryDirectory() as folder:
        seeds(mode, Path(folder))
        instrument()
        options = ["-timeout=20", "-rss_limit_mb=2000", "-max_len=2000", *arguments]
        if all(argument.startswith("-") for argument in arguments):
            options.append(folder)  # else single inputs are tried again
        mutator = mutate_file if mode == "file" else None
        target = read_file if mode == "file" else decode_chunk
        kwargs = {"custom_mutator": mutator} if mutator else {}
        os.environ.setdefault("OMP_NUM_THREADS", "1")
        atheris.Setup([sys.argv[0], *options], target, **kwargs)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
