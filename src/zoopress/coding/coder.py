"""Code a plane of integers into bytes and back: the chunks of `docs/zpz.md`.

    stream = which coder (a byte), what that coder writes

A plane is [rows, columns] of integers. Rows are lines: what neighbours and the trellis run along.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, TypeAlias, cast

import numpy as np
from numpy.typing import NDArray

from zoopress.coding import static_coder
from zoopress.coding.built_in import BUILT_IN, BY_NUMBER, STATIC
from zoopress.coding.entropy_coder import EntropyCoder, NamedCoder
from zoopress.coding.planes import Plane, Statistics, measure
from zoopress.coding.static_coder import Narrow
from zoopress.coding.static_model import choose_model
from zoopress.coding.varint import Buffer, read_varint, unzigzag, varint, zigzag

Integers: TypeAlias = NDArray[np.int8] | NDArray[np.uint8] | NDArray[np.int16] | NDArray[np.int32]
Coder: TypeAlias = Literal["auto", "static", "adaptive", "huffman"] | NamedCoder

RAW, CONSTANT = 0, 1
NAMED = 128
"""The byte of the first coder that a file names; the others' follow."""
_DTYPES = ("int8", "uint8", "int16", "int32")
_SMALL = 1 << 16
"""Up to so many symbols auto takes the smallest; bytes matter more than speed there."""
_SPARSE = 0.75
"""With so many zeros the adaptive coder takes a decision a symbol, and static tables say little."""
_MIDDLING = 1 << 19
"""Planes of up to so many symbols may take the adaptive coder's time, a tenth of a second."""
_PROBE = {True: 1 << 18, False: 1 << 14}
"""How many symbols stand for a larger plane where the coders are compared, by whether it is
sparse."""


def encode_plane(plane: Integers, *, trellis: bool = False, coder: Coder = "auto") -> bytes:
    """Code a plane into a stream, the same on every machine.

    A plane that is smaller raw, or holds one value, is stored so whatever `coder` says.

    Args:
        plane: [rows, columns].
        trellis: whether each row is a path of `trellis.py`.

    Raises:
        ValueError: if the plane is none of the sort, or a row is no path of the trellis.
    """
    whole = _widened(plane)
    if whole.size == 0:
        return bytes((RAW, 1))
    statistics = measure(whole, trellis)
    if _is_constant(statistics, trellis):
        return bytes((CONSTANT,)) + varint(zigzag(statistics.low))
    if coder == "auto":
        stream = _smallest(whole, statistics, trellis)
    elif isinstance(coder, NamedCoder):
        stream = bytes((NAMED,)) + coder.encode(whole, statistics, trellis)
    elif coder in BUILT_IN:
        stream = _built_in(coder, whole, statistics, trellis)
    else:
        raise ValueError(f"There is no coder {coder!r}; use auto, static, adaptive or huffman.")
    raw_size = 2 + _raw_width(statistics, plane.dtype) * plane.size
    return stream if len(stream) < raw_size else _raw(plane, statistics)


def decode_plane(
    stream: Buffer, out: Integers, *, trellis: bool = False, named: Sequence[NamedCoder] = ()
) -> None:
    """Fill `out` from a stream that `encode_plane` made of a plane of its shape and type.

    Allocates in proportion to `out` and the stream, whatever the stream says.

    Args:
        stream: the stream.
        out: [rows, columns].
        trellis: whether each row is a path of `trellis.py`.
        named: the coders that the file names.

    Raises:
        ValueError: if the stream is none of such a plane. What `out` holds then is undefined.
    """
    _check(out)
    if len(stream) < 2:
        raise ValueError("The stream ends before it says how the plane is coded.")
    kind, rest = stream[0], memoryview(stream)[1:]
    if kind == RAW:
        _decode_raw(rest, out)
        return
    if out.size == 0:
        raise ValueError("An empty plane is stored raw.")
    if kind == CONSTANT:
        number, position = read_varint(rest, 0)
        if position != len(rest):
            raise ValueError("Bytes follow the plane's only value.")
        _check_range(unzigzag(number), unzigzag(number), out.dtype)
        if trellis and number:
            raise ValueError("Of a trellis' planes only zeros are stored as one value.")
        out[...] = unzigzag(number)
        return
    coder: EntropyCoder | NamedCoder | None = BY_NUMBER.get(kind)
    if kind >= NAMED and kind - NAMED < len(named):
        coder = named[kind - NAMED]
    if coder is None:
        raise ValueError(f"The stream names coder {kind}, which this version does not know.")
    if kind == STATIC and out.flags.c_contiguous and out.dtype != np.int16:
        static_coder.decode(rest, cast(Narrow, out), trellis)
        return
    direct = out.dtype == np.int32 and out.flags.c_contiguous
    whole = cast(Plane, out) if direct else np.empty(out.shape, np.int32)
    coder.decode(rest, whole, trellis)
    if not direct:
        _check_range(int(whole.min()), int(whole.max()), out.dtype)
        out[...] = whole


def estimate_bits(plane: Integers, *, trellis: bool = False) -> float:
    """Return about how many bits `encode_plane` takes, to 1 or 2 in a hundred.

    Raises:
        ValueError: as `encode_plane`.
    """
    whole = _widened(plane)
    if whole.size == 0:
        return 16.0
    statistics = measure(whole, trellis)
    if _is_constant(statistics, trellis):
        return 16.0
    raw = 16.0 + 8 * _raw_width(statistics, plane.dtype) * whole.size
    bits = choose_model(whole, statistics, trellis).bits
    saving = _worthwhile_saving(whole, statistics)
    if whole.size <= max(_SMALL, _PROBE[_is_sparse(statistics)]):
        adaptive = 8.0 * len(_adaptive(whole, statistics, trellis))
    else:
        adaptive = bits * _adaptive_share(whole, statistics, trellis)
    return min(raw, adaptive if adaptive < bits * (1 - saving) else bits)


def _smallest(plane: Plane, statistics: Statistics, trellis: bool) -> bytes:
    static = _static(plane, statistics, trellis)
    saving = _worthwhile_saving(plane, statistics)
    # What a probe says of a plane that is not much larger, all of it says as soon.
    large = plane.size > max(_SMALL, _PROBE[_is_sparse(statistics)])
    if large and _adaptive_share(plane, statistics, trellis) > 1 - saving:
        return static
    adaptive = _adaptive(plane, statistics, trellis)
    return static if len(static) * (1 - saving) <= len(adaptive) else adaptive


def _worthwhile_saving(plane: Plane, statistics: Statistics) -> float:
    """Return what share of a plane's bytes must be saved for the adaptive coder's time.

    It takes ten times as long as the static one, or more: no matter on small planes.
    """
    if plane.size <= _SMALL:
        return 0.0
    if plane.size > _MIDDLING:
        return 0.1
    return 0.01 if _is_sparse(statistics) else 0.06


def _is_sparse(statistics: Statistics) -> bool:
    return statistics.zeros >= _SPARSE


def _is_constant(statistics: Statistics, trellis: bool) -> bool:
    # In a trellis only zeros can be known to be paths without a look at them.
    return statistics.low == statistics.high and not (trellis and statistics.low)


def _static(plane: Plane, statistics: Statistics, trellis: bool) -> bytes:
    return _built_in("static", plane, statistics, trellis)


def _adaptive(plane: Plane, statistics: Statistics, trellis: bool) -> bytes:
    return _built_in("adaptive", plane, statistics, trellis)


def _built_in(name: str, plane: Plane, statistics: Statistics, trellis: bool) -> bytes:
    number, coder = BUILT_IN[name]
    return bytes((number,)) + coder.encode(plane, statistics, trellis)


def _adaptive_share(plane: Plane, statistics: Statistics, trellis: bool) -> float:
    """Return about how the adaptive coder's bytes relate to the static coder's, from some lines.

    The static coder's tables are left out: they weigh much for some lines, and little for all.
    """
    lines = max(1, _PROBE[_is_sparse(statistics)] // plane.shape[1])
    first = (plane.shape[0] - lines) // 2 if lines < plane.shape[0] else 0
    probe = plane[first : first + lines]
    model = choose_model(probe, statistics, trellis)
    return 8 * len(_adaptive(probe, statistics, trellis)) / model.payload_bits


def _raw_width(statistics: Statistics, dtype: np.dtype[Any]) -> int:
    for width in (1, 2):
        unsigned = dtype.kind != "i"
        low = 0 if unsigned else -(1 << (8 * width - 1))
        high = (1 << (8 * width)) - 1 if unsigned else (1 << (8 * width - 1)) - 1
        if low <= statistics.low and statistics.high <= high:
            return width
    return 4


def _raw(plane: Integers, statistics: Statistics) -> bytes:
    width = _raw_width(statistics, plane.dtype)
    sort = "i" if plane.dtype.kind == "i" else "u"
    return bytes((RAW, width)) + plane.astype(f"<{sort}{width}").tobytes()


def _decode_raw(rest: memoryview, out: Integers) -> None:
    width = rest[0]
    if width not in (1, 2, 4) or width > out.itemsize:
        raise ValueError(f"Raw integers of {width} bytes do not go into {out.dtype}.")
    if len(rest) - 1 != width * out.size:
        raise ValueError(
            f"The stream has {len(rest) - 1} bytes of raw integers instead of {width * out.size}."
        )
    sort = "i" if out.dtype.kind == "i" else "u"
    values = np.frombuffer(rest, f"<{sort}{width}", offset=1).reshape(out.shape)
    out[...] = values


def _widened(plane: Integers) -> Plane:
    _check(plane)
    return np.ascontiguousarray(plane, np.int32)


def _check(plane: Integers) -> None:
    if plane.ndim != 2 or plane.dtype.name not in _DTYPES:
        raise ValueError(
            f"A plane is [rows, columns] of {', '.join(_DTYPES)}, not {plane.dtype} "
            f"{list(plane.shape)}."
        )


def _check_range(low: int, high: int, dtype: np.dtype[Any]) -> None:
    limits = np.iinfo(dtype)
    if low < limits.min or high > limits.max:
        raise ValueError(f"The stream holds integers {low} … {high}, beyond {dtype}.")
