"""Pieces of machine code that numba has no words for: vectors, tiles of products, shared counters.

Addresses are integers, in bytes; strides and counts are in elements. What is written here is LLVM's
own language for vectors of any length, so it runs on every machine that numba runs on.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import llvmlite.binding
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

_FEATURES = llvmlite.binding.get_host_cpu_features()
_WIDE = bool(_FEATURES.get("avx512f"))
# Sums of a tile must fit into registers: 32 of 512 or (on ARM) of 128 bits, 16 of 256.
LANES = 16 if _WIDE else 8 if _FEATURES.get("avx2") else 4
"""Floats that are computed with at once."""
TILE_ROWS = 3 if LANES == 8 else 6
"""Rows of inputs that are multiplied at once by `TILE_OUTPUTS` rows of weights."""
TILE_OUTPUTS = 4

_BYTE, _SHORT, _INT, _LONG = (ir.IntType(bits) for bits in (8, 16, 32, 64))
_FLOAT = ir.FloatType()
_ANY_ORDER = ("contract",)

Vector = Any
Builder = Any


def dot_tile(rows: int) -> Any:
    """Return a function that multiplies some rows of inputs by `TILE_OUTPUTS` rows of weights.

    It takes (inputs, stride of inputs, weights, stride of weights, columns, scale, bias, outputs,
    stride of outputs), and writes sums · scale + bias, all in float32. Columns are a multiple of
    `LANES`; scale and bias have a number for each row of weights.
    """

    @intrinsic
    def multiply(  # type: ignore[no-untyped-def]
        typing, x, x_stride, w, w_stride, columns, scale, bias, out, out_stride
    ):
        whole, address = types.intp, types.uintp
        signature = types.void(
            *(address, whole, address, whole, whole, address, address, address, whole)
        )

        def generate(context: Any, b: Builder, signature: Any, arguments: Sequence[Any]) -> Any:
            x, x_stride, w, w_stride, columns, scale, bias, out, out_stride = arguments
            vector, quad = ir.VectorType(_FLOAT, LANES), ir.VectorType(_FLOAT, TILE_OUTPUTS)
            sums = [
                [cgutils.alloca_once_value(b, ir.Constant(vector, None)) for _ in range(4)]
                for _ in range(rows)
            ]
            inputs = [_place(b, x, b.mul(x_stride, _LONG(i)), 4) for i in range(rows)]
            weights = [_place(b, w, b.mul(w_stride, _LONG(j)), 4) for j in range(TILE_OUTPUTS)]
            with cgutils.for_range_slice(b, _LONG(0), columns, _LONG(LANES), intp=_LONG) as (k, _):
                factors = [_load(b, _place(b, each, k, 4), vector) for each in weights]
                for i in range(rows):
                    factor = _load(b, _place(b, inputs[i], k, 4), vector)
                    for total, other in zip(sums[i], factors, strict=True):
                        b.store(_multiply_add(b, factor, other, b.load(total)), total)
            scales, biases = _load(b, scale, quad), _load(b, bias, quad)
            for i in range(rows):
                total = _totals(b, [b.load(each) for each in sums[i]])
                result = _multiply_add(b, total, scales, biases)
                _store(b, result, _place(b, out, b.mul(out_stride, _LONG(i)), 4))
            return context.get_dummy_value()

        return signature, generate

    return multiply


@intrinsic
def widen_integers(typing, codes, size, signed, out):  # type: ignore[no-untyped-def]
    """Write `LANES` floats of as many integers of a byte, or of two."""

    def generate(context: Any, b: Builder, signature: Any, arguments: Sequence[Any]) -> Any:
        codes, size, signed, out = arguments
        floats, wide = ir.VectorType(_FLOAT, LANES), ir.VectorType(_INT, LANES)
        with b.if_else(b.icmp_signed("==", size, _LONG(1))) as (one, two):
            with one:
                narrow = _load(b, codes, ir.VectorType(_BYTE, LANES))
                with b.if_else(b.icmp_signed("!=", signed, _LONG(0))) as (yes, no):
                    with yes:
                        _store(b, b.sitofp(b.sext(narrow, wide), floats), out)
                    with no:
                        _store(b, b.sitofp(b.zext(narrow, wide), floats), out)
            with two:
                narrow = _load(b, codes, ir.VectorType(_SHORT, LANES))
                _store(b, b.sitofp(b.sext(narrow, wide), floats), out)
        return context.get_dummy_value()

    return types.void(types.uintp, types.intp, types.intp, types.uintp), generate


@intrinsic
def unpack_eight(typing, codes, bits, middle, out):  # type: ignore[no-untyped-def]
    """Write 8 floats of the first 8 codes of a stream of bits, of which it reads 8 bytes.

    Codes from `middle` on stand for negative numbers, two's complement; 0 if none does.
    """

    def generate(context: Any, b: Builder, signature: Any, arguments: Sequence[Any]) -> Any:
        codes, bits, middle, out = arguments
        longs, ints = ir.VectorType(_LONG, 8), ir.VectorType(_INT, 8)
        word = _spread(b, _load(b, codes, _LONG), longs)
        places = b.mul(_spread(b, bits, longs), ir.Constant(longs, [_LONG(i) for i in range(8)]))
        mask = b.sub(b.shl(_LONG(1), bits), _LONG(1))
        found = b.trunc(b.and_(b.lshr(word, places), _spread(b, mask, longs)), ints)
        half = _spread(b, b.trunc(middle, _INT), ints)
        found = b.sub(b.xor(found, half), half)
        _store(b, b.sitofp(found, ir.VectorType(_FLOAT, 8)), out)
        return context.get_dummy_value()

    return types.void(types.uintp, types.intp, types.intp, types.uintp), generate


def _reader(kind: Any, of: Any, make: Callable[[Builder, Any], Any]) -> Any:
    """Return a function that reads a number at an address."""

    @intrinsic
    def read(typing, address):  # type: ignore[no-untyped-def]
        def generate(context: Any, b: Builder, signature: Any, arguments: Sequence[Any]) -> Any:
            return make(b, _load(b, arguments[0], of))

        return kind(types.uintp), generate

    return read


read_byte = _reader(types.int64, _BYTE, lambda b, value: b.zext(value, _LONG))
read_short = _reader(types.int64, _SHORT, lambda b, value: b.sext(value, _LONG))
read_long = _reader(types.int64, _LONG, lambda b, value: value)
read_float = _reader(types.float32, _FLOAT, lambda b, value: value)
read_bfloat16 = _reader(
    types.float32,
    _SHORT,
    lambda b, value: b.bitcast(b.shl(b.zext(value, _INT), _INT(16)), _FLOAT),
)


@intrinsic
def rescale(typing, values, zero, scale):  # type: ignore[no-untyped-def]
    """Turn `LANES` floats into (value − zero) · scale, in place."""

    def generate(context: Any, b: Builder, signature: Any, arguments: Sequence[Any]) -> Any:
        values, zero, scale = arguments
        floats = ir.VectorType(_FLOAT, LANES)
        moved = b.fsub(_load(b, values, floats), _spread(b, zero, floats))
        _store(b, b.fmul(moved, _spread(b, scale, floats)), values)
        return context.get_dummy_value()

    return types.void(types.uintp, types.float32, types.float32), generate


@intrinsic
def write_float(typing, value, address):  # type: ignore[no-untyped-def]
    """Write a number to an address."""

    def generate(context: Any, b: Builder, signature: Any, arguments: Sequence[Any]) -> Any:
        _store(b, *arguments)
        return context.get_dummy_value()

    return types.void(types.float32, types.uintp), generate


@intrinsic
def take_number(typing, address):  # type: ignore[no-untyped-def]
    """Return the integer at an address and raise it by one, as one step for all threads."""

    def generate(context: Any, b: Builder, signature: Any, arguments: Sequence[Any]) -> Any:
        place = b.inttoptr(arguments[0], _LONG.as_pointer())
        return b.atomic_rmw("add", place, _LONG(1), "monotonic")

    return types.int64(types.uintp), generate


def _place(b: Builder, base: Any, offset: Any, size: int) -> Any:
    return b.add(base, b.mul(offset, _LONG(size)))


def _load(b: Builder, address: Any, kind: Any) -> Any:
    return b.load(b.inttoptr(address, kind.as_pointer()), align=1)


def _store(b: Builder, value: Any, address: Any) -> None:
    b.store(value, b.inttoptr(address, value.type.as_pointer()), align=1)


def _multiply_add(b: Builder, one: Vector, other: Vector, added: Vector) -> Vector:
    # Allowed to become one instruction: `llvm.fma` would call a library where there is none.
    return b.fadd(added, b.fmul(one, other, flags=_ANY_ORDER), flags=_ANY_ORDER)


def _spread(b: Builder, value: Any, kind: Any) -> Vector:
    first = b.insert_element(ir.Constant(kind, ir.Undefined), value, _INT(0))
    return _shuffle(b, first, first, [0] * kind.count)


def _shuffle(b: Builder, one: Vector, other: Vector, places: Sequence[int]) -> Vector:
    kind = ir.VectorType(_INT, len(places))
    return b.shuffle_vector(one, other, ir.Constant(kind, [_INT(i) for i in places]))


def _totals(b: Builder, sums: Sequence[Vector]) -> Vector:
    """Return the sums of the lanes of four vectors, as one vector of four."""

    def merged(one: Vector, other: Vector, low: Sequence[int], high: Sequence[int]) -> Vector:
        # Within each four lanes, which is what machines shuffle fastest; 4 … 7 are of `other`.
        def places(of: Sequence[int]) -> list[int]:
            return [
                i + first if i < 4 else LANES + i - 4 + first
                for first in range(0, LANES, 4)
                for i in of
            ]

        return b.fadd(_shuffle(b, one, other, places(low)), _shuffle(b, one, other, places(high)))

    pairs = [merged(sums[i], sums[i + 1], (0, 4, 1, 5), (2, 6, 3, 7)) for i in (0, 2)]
    total = merged(pairs[0], pairs[1], (0, 1, 4, 5), (2, 3, 6, 7))
    size = LANES
    while size > 4:
        size //= 2
        low, high = range(size), range(size, 2 * size)
        total = b.fadd(_shuffle(b, total, total, low), _shuffle(b, total, total, high))
    return total
