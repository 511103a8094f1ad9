"""Planes of integers for tests of the coders."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from hypothesis import strategies as st
from numpy.typing import NDArray

from zoopress.coding.coder import Coder, decode_plane
from zoopress.coding.reference_coder import decode_plane as decode_plainly
from zoopress.coding.trellis import NEXT, ODD

CODERS: tuple[Coder, ...] = ("static", "adaptive", "huffman")
DTYPES = ("int8", "uint8", "int16", "int32")


@dataclass(frozen=True)
class Case:
    plane: NDArray[Any]
    trellis: bool = False


def gaussian(
    rows: int, columns: int, deviation: float, dtype: str = "int8", seed: int = 0
) -> NDArray[Any]:
    limits = np.iinfo(dtype)
    middle = 0 if limits.min else limits.max // 2
    values = np.random.default_rng(seed).normal(middle, deviation, (rows, columns))
    return np.clip(np.rint(values), limits.min, limits.max).astype(dtype)


def path(indices: NDArray[Any], dtype: str) -> NDArray[Any]:
    """Let each row of indices be a path of the trellis; indices that do not fit become 0."""
    limits = np.iinfo(dtype)
    plane = np.zeros(indices.shape, dtype)
    for row in range(indices.shape[0]):
        state = 0
        for column in range(indices.shape[1]):
            index = int(indices[row, column])
            value = 2 * index - ODD[state] * int(np.sign(index))
            if not limits.min <= value <= limits.max:
                index = value = 0
            plane[row, column] = value
            state = NEXT[state][index % 2]
    return plane


@st.composite
def cases(draw: st.DrawFn, most: int = 400) -> Case:
    """Planes of every type: dense, sparse, extreme, structured by rows and columns."""
    dtype = draw(st.sampled_from(DTYPES))
    rows = draw(st.integers(1, 40))
    columns = draw(st.integers(1, max(1, most // rows)))
    limits = np.iinfo(dtype)
    generator = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    deviation = draw(st.sampled_from((0.1, 1.0, 6.0, 90.0, 1e4, 1e9)))
    values = generator.normal(draw(st.sampled_from((0, 0, 100, -7))), deviation, (rows, columns))
    if draw(st.booleans()):
        values *= generator.random((rows, 1)) < 0.3
        values *= generator.exponential(1, (1, columns))
    plane = np.clip(np.rint(values), limits.min, limits.max).astype(dtype)
    trellis = dtype != "uint8" and draw(st.booleans())
    if draw(st.integers(0, 4)) == 0:
        extremes = np.array([limits.min, limits.max, limits.max - 1, 0, 1], dtype)
        plane = np.where(generator.random(plane.shape) < 0.2, generator.choice(extremes), plane)
    return Case(path(plane, dtype) if trellis else plane.astype(dtype), trellis)


def decoded(stream: bytes, case: Case) -> NDArray[Any]:
    out = np.full_like(case.plane, 77)
    decode_plane(stream, out, trellis=case.trellis)
    return out


def plainly_decoded(stream: bytes, case: Case) -> NDArray[Any]:
    plane = case.plane
    integers = decode_plainly(
        stream,
        *plane.shape,
        bits=8 * plane.itemsize,
        signed=plane.dtype.kind == "i",
        trellis=case.trellis,
    )
    return np.array(integers, plane.dtype).reshape(plane.shape)
