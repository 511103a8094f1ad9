"""The work of a product with coded weights: decode a block of rows, multiply all inputs by it.

A block of decoded rows stays in the processor's cache while every input passes it, so codes are
read from memory once and no dense weight ever is.
"""

from __future__ import annotations

from collections import namedtuple
from typing import Any

import numba
import numpy as np
from numba import types

from zoopress.kernels.task import FIELDS
from zoopress.kernels.vector_code import (
    LANES,
    TILE_OUTPUTS,
    TILE_ROWS,
    dot_tile,
    read_bfloat16,
    read_byte,
    read_float,
    read_long,
    read_short,
    rescale,
    take_number,
    unpack_eight,
    widen_integers,
    write_float,
)

F: Any = namedtuple("F", FIELDS)(*range(len(FIELDS)))


def _machine_code(function: Any) -> Any:
    # Without Python's exceptions, so that nothing of Python's is called.
    return numba.njit(nogil=True, error_model="numpy")(function)


@_machine_code
def _get(task: int, field: int) -> Any:
    return read_long(np.uintp(np.int64(task) + field * 8))


_MIDDLE_ROWS = 4 if TILE_ROWS > 4 else 2
_large, _middle, _two, _one = (dot_tile(rows) for rows in (TILE_ROWS, _MIDDLE_ROWS, 2, 1))


@_machine_code
def _place(base: int, offset: int, size: int) -> Any:
    return np.uintp(np.int64(base) + np.int64(offset) * np.int64(size))


@_machine_code
def _scale_at(task: int, index: int) -> Any:
    if _get(task, F.scale) == 0:
        return np.float32(1.0)
    if _get(task, F.scale_size) == 2:
        return read_bfloat16(_place(_get(task, F.scale), index, 2))
    return read_float(_place(_get(task, F.scale), index, 4))


@_machine_code
def _decode_row(task: int, row: int, target: int) -> None:
    """Write a row of codes as floats, and zeros up to the padded columns."""
    bits, signed, columns = _get(task, F.bits), _get(task, F.signed), _get(task, F.columns)
    start = _place(_get(task, F.codes), row, _get(task, F.row_bytes))
    done = np.int64(0)
    if bits >= 8:
        size = bits // 8
        while done + LANES <= columns:
            codes = _place(start, done, size)
            widen_integers(codes, size, signed, _place(target, done, 4))
            done += LANES
        while done < columns:
            if size == 2:
                value = read_short(_place(start, done, 2))
            else:
                value = read_byte(_place(start, done, 1))
                if signed and value >= 128:
                    value -= 256
            write_float(np.float32(value), _place(target, done, 4))
            done += 1
    else:
        middle = (np.int64(1) << (bits - 1)) if signed else np.int64(0)
        # Eight bytes are read for eight codes, of which the last row may have fewer left.
        while done < columns and np.int64(start) + done * bits // 8 + 8 <= _get(task, F.codes_end):
            unpack_eight(_place(start, done * bits // 8, 1), bits, middle, _place(target, done, 4))
            done += 8
        mask = (np.int64(1) << bits) - 1
        while done < columns:
            place = done * bits
            value = read_byte(_place(start, place // 8, 1))
            if place % 8 + bits > 8:
                value |= read_byte(_place(start, place // 8 + 1, 1)) << 8
            value = ((value >> (place % 8)) & mask) ^ middle
            write_float(np.float32(value - middle), _place(target, done, 4))
            done += 1
    for k in range(columns, _get(task, F.padded_columns)):
        write_float(np.float32(0.0), _place(target, k, 4))


@_machine_code
def _finish_row(task: int, row: int, target: int) -> None:
    """Turn the codes of a row into what is multiplied, where that is something else."""
    columns = _get(task, F.columns)
    if _get(task, F.table) != 0:
        for k in range(columns):
            code = np.int64(read_float(_place(target, k, 4)))
            write_float(read_float(_place(_get(task, F.table), code, 4)), _place(target, k, 4))
    groups, size = _get(task, F.groups), _get(task, F.group_size)
    if groups == 0 and _get(task, F.zero_point) == 0:
        return
    for group in range(max(groups, 1)):
        index = row * max(groups, 1) + group
        start = group * size
        count = columns if groups == 0 else min(size, columns - start)
        zero = np.float32(0.0)
        if _get(task, F.zero_point) != 0:
            zero = np.float32(read_byte(_place(_get(task, F.zero_point), index, 1)))
        scale = _scale_at(task, index) if groups else np.float32(1.0)
        done = np.int64(0)
        while done + LANES <= count:
            rescale(_place(target, start + done, 4), zero, scale)
            done += LANES
        while done < count:
            place = _place(target, start + done, 4)
            write_float((read_float(place) - zero) * scale, place)
            done += 1


@_machine_code
def _multiply(
    task: int, first: int, stop: int, weights: int, scale: int, bias: int, out: int, s: int
) -> None:
    """Multiply some rows of inputs by `TILE_OUTPUTS` rows of weights."""
    columns, m = _get(task, F.padded_columns), first
    start = _get(task, F.inputs)
    while stop - m >= TILE_ROWS:
        x, y = _place(start, m * columns, 4), _place(out, (m - first) * s, 4)
        _large(x, columns, weights, columns, columns, scale, bias, y, s)
        m += TILE_ROWS
    while stop - m >= _MIDDLE_ROWS:
        x, y = _place(start, m * columns, 4), _place(out, (m - first) * s, 4)
        _middle(x, columns, weights, columns, columns, scale, bias, y, s)
        m += _MIDDLE_ROWS
    while stop - m >= 2:
        x, y = _place(start, m * columns, 4), _place(out, (m - first) * s, 4)
        _two(x, columns, weights, columns, columns, scale, bias, y, s)
        m += 2
    while stop - m >= 1:
        x, y = _place(start, m * columns, 4), _place(out, (m - first) * s, 4)
        _one(x, columns, weights, columns, columns, scale, bias, y, s)
        m += 1


@_machine_code
def _multiply_block(task: int, piece: int, scratch: int) -> None:
    padded, outputs = _get(task, F.padded_columns), _get(task, F.outputs)
    block, size = piece % _get(task, F.output_blocks), _get(task, F.block_outputs)
    first = block * size
    count = min(size, outputs - first)
    scale = _place(scratch, size * padded, 4)
    bias = _place(scale, size, 4)
    corner = _place(bias, size, 4)
    for i in range(size):
        place = _place(scratch, i * padded, 4)
        factor, added = np.float32(1.0), np.float32(0.0)
        if i < count:
            _decode_row(task, first + i, place)
            if _get(task, F.table) | _get(task, F.groups) | _get(task, F.zero_point):
                _finish_row(task, first + i, place)
            if _get(task, F.groups) == 0:
                factor = _scale_at(task, first + i if _get(task, F.scales) > 1 else np.int64(0))
            if _get(task, F.bias):
                added = read_float(_place(_get(task, F.bias), first + i, 4))
        write_float(factor, _place(scale, i, 4))
        write_float(added, _place(bias, i, 4))
    start = (piece // _get(task, F.output_blocks)) * _get(task, F.block_rows)
    stop = min(start + _get(task, F.block_rows), _get(task, F.rows))
    whole = count // TILE_OUTPUTS * TILE_OUTPUTS
    m = start
    while m < stop:
        end = min(m + TILE_ROWS, stop)
        for i in range(0, whole, TILE_OUTPUTS):
            out = _place(_get(task, F.result), m * outputs + first + i, 4)
            weights = _place(scratch, i * padded, 4)
            _multiply(task, m, end, weights, _place(scale, i, 4), _place(bias, i, 4), out, outputs)
        if whole < count:  # a tile would write over the row's end
            weights = _place(scratch, whole * padded, 4)
            scales, biases = _place(scale, whole, 4), _place(bias, whole, 4)
            _multiply(task, m, end, weights, scales, biases, corner, np.int64(TILE_OUTPUTS))
            for r in range(end - m):
                for i in range(count - whole):
                    value = read_float(_place(corner, r * TILE_OUTPUTS + i, 4))
                    out = _place(_get(task, F.result), (m + r) * outputs + first + whole + i, 4)
                    write_float(value, out)
        m = end


def work(task: int) -> None:
    """Take pieces of a task's work until none is left; what each of its threads calls.

    Args:
        task: address of `FIELDS`.
    """
    slot = take_number(_place(task, F.next_slot, 8))
    scratch = _place(_get(task, F.scratch), slot * _get(task, F.slot_floats), 4)
    while True:
        piece = take_number(_place(task, F.next_piece, 8))
        if piece >= _get(task, F.pieces):
            break
        _multiply_block(task, piece, scratch)


SIGNATURE = types.void(types.uintp)
