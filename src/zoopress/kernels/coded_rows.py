"""The work of a product with coded weights: decode a block of rows, multiply all inputs by it.

A block of decoded rows stays in the processor's cache while every input passes it, so codes are
read from memory once and no dense weight ever is.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numba
import numpy as np
from numba import carray, types

from zoopress.coding.compiled import compiled
from zoopress.kernels.vector_code import (
    LANES,
    TILE_OUTPUTS,
    TILE_ROWS,
    dot_tile,
    floats_at,
    pointer,
    read_bfloat16,
    read_byte,
    read_float,
    read_short,
    take_number,
    unpack_eight,
    widen_integers,
    write_float,
)

FIELDS = (
    *("next_piece", "next_slot", "pieces", "output_blocks", "block_outputs", "block_rows"),
    *("inputs", "rows", "columns", "padded_columns"),
    *("codes", "row_bytes", "codes_end", "bits", "signed", "outputs"),
    *("scale", "scales", "scale_size", "bias", "groups", "group_size", "zero_point", "table"),
    *("result", "scratch", "slot_floats"),
)
"""What a task is: int64 numbers, addresses in bytes; 0 where there is none.

`scale` is [outputs] or [1], or [outputs, groups] if there are groups; of bfloat16 if `scale_size`
is 2, of float32 if it is 4. `scratch` has `slot_floats` floats for each thread.
"""
TASK = np.dtype([(name, np.int64) for name in FIELDS])
Task = Any

_NEXT, _SLOT = FIELDS.index("next_piece"), FIELDS.index("next_slot")
_task_at = pointer(numba.from_dtype(TASK))
TILE_FLOATS = TILE_ROWS * TILE_OUTPUTS
_MIDDLE_ROWS = 4 if TILE_ROWS > 4 else 2
_large, _middle, _two, _one = (dot_tile(rows) for rows in (TILE_ROWS, _MIDDLE_ROWS, 2, 1))


@compiled
def _place(base: int, offset: int, size: int) -> Any:
    return np.uintp(np.int64(base) + np.int64(offset) * np.int64(size))


@compiled
def _scale_at(task: Task, index: int) -> Any:
    if task.scale == 0:
        return np.float32(1.0)
    if task.scale_size == 2:
        return read_bfloat16(_place(task.scale, index, 2))
    return read_float(_place(task.scale, index, 4))


@compiled
def _decode_row(task: Task, row: int, target: int) -> None:
    """Write a row of codes as floats, and zeros up to the padded columns."""
    bits, signed, columns = task.bits, task.signed, task.columns
    start = _place(task.codes, row, task.row_bytes)
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
        while done < columns and np.int64(start) + done * bits // 8 + 8 <= task.codes_end:
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
    for k in range(columns, task.padded_columns):
        write_float(np.float32(0.0), _place(target, k, 4))


@compiled
def _finish_row(task: Task, row: int, target: int) -> None:
    """Turn the codes of a row into what is multiplied, where that is something else."""
    columns = task.columns
    values = carray(floats_at(target), (columns,))
    if task.table:
        table = carray(floats_at(np.uintp(task.table)), (np.int64(1) << task.bits,))
        for k in range(columns):
            values[k] = table[np.int32(values[k])]
    groups, size = task.groups, task.group_size
    if groups == 0 and task.zero_point == 0:
        return
    for group in range(max(groups, 1)):
        index = row * max(groups, 1) + group
        some = values if groups == 0 else values[group * size : min((group + 1) * size, columns)]
        zero = np.float32(0.0)
        if task.zero_point:
            zero = np.float32(read_byte(_place(task.zero_point, index, 1)))
        scale = _scale_at(task, index) if groups else np.float32(1.0)
        for k in range(len(some)):
            some[k] = (some[k] - zero) * scale


@compiled
def _multiply(
    task: Task, first: int, stop: int, weights: int, scale: int, bias: int, out: int, s: int
) -> None:
    """Multiply some rows of inputs by `TILE_OUTPUTS` rows of weights."""
    columns, m = task.padded_columns, first
    start = task.inputs
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


@compiled
def _multiply_block(task: Task, piece: int, scratch: int) -> None:
    padded, outputs = task.padded_columns, task.outputs
    block, size = piece % task.output_blocks, task.block_outputs
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
            if task.table or task.groups or task.zero_point:
                _finish_row(task, first + i, place)
            if task.groups == 0:
                factor = _scale_at(task, first + i if task.scales > 1 else np.int64(0))
            if task.bias:
                added = read_float(_place(task.bias, first + i, 4))
        write_float(factor, _place(scale, i, 4))
        write_float(added, _place(bias, i, 4))
    start = (piece // task.output_blocks) * task.block_rows
    stop = min(start + task.block_rows, task.rows)
    whole = count // TILE_OUTPUTS * TILE_OUTPUTS
    m = start
    while m < stop:
        end = min(m + TILE_ROWS, stop)
        for i in range(0, whole, TILE_OUTPUTS):
            out = _place(task.result, m * outputs + first + i, 4)
            weights = _place(scratch, i * padded, 4)
            _multiply(task, m, end, weights, _place(scale, i, 4), _place(bias, i, 4), out, outputs)
        if whole < count:  # a tile would write over the row's end
            weights = _place(scratch, whole * padded, 4)
            scales, biases = _place(scale, whole, 4), _place(bias, whole, 4)
            _multiply(task, m, end, weights, scales, biases, corner, np.int64(TILE_OUTPUTS))
            for r in range(end - m):
                for i in range(count - whole):
                    value = read_float(_place(corner, r * TILE_OUTPUTS + i, 4))
                    out = _place(task.result, (m + r) * outputs + first + whole + i, 4)
                    write_float(value, out)
        m = end


def _work(address):  # type: ignore[no-untyped-def]  # numba gives its types
    task = carray(_task_at(address), 1)[0]
    slot = take_number(_place(address, _SLOT, 8))
    scratch = _place(task.scratch, slot * task.slot_floats, 4)
    while True:
        piece = take_number(_place(address, _NEXT, 8))
        if piece >= task.pieces:
            break
        _multiply_block(task, piece, scratch)


@cache
def work_address() -> int:
    """Return the address of the compiled work, void(void *): what takes pieces until none is left.

    It is compiled when it is first asked for; other processes find it on disk.
    """
    signature = types.void(types.uintp)
    try:
        work = numba.cfunc(signature, nopython=True, cache=True)(_work)
    except RuntimeError:  # "no locator available": there is no place for the cache
        work = numba.cfunc(signature, nopython=True)(_work)
    _KEPT.append(work)  # the machine code lives as long as this does
    return int(work.address)


_KEPT: list[Any] = []
