"""Blocks of GGML made of integers and scales that are given: nothing is rounded to a grid again.

A row is cut into blocks of 32 numbers (of Q4_K 256), each with its scales, in float16, in front:

    Q8_0    d · q,  q of 8 bits from −128 on
    Q4_0    d · (q − 8),  Q5_0  d · (q − 16)
    Q4_1    d · q + m of 4 bits,  Q5_1 of 5
    Q4_K    (d · s) · q − dmin · n  of 4 bits; s and n are of 6 bits, for each 32 of 256

Source: https://github.com/ggml-org/ggml, `ggml-quants.c`; read back in the tests by `gguf.quants`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from zoopress.models.export_form import ExportForm

BLOCK, SUPER_BLOCK = 32, 256


@dataclass(frozen=True)
class Blocks:
    """A matrix in blocks.

    Attributes:
        kind: as GGML calls it: "Q8_0", …
        data: [rows, bytes], uint8.
        rounding: by how much of its step a weight moves at most, since scales are float16 there.
    """

    kind: str
    data: Tensor
    rounding: float


@dataclass(frozen=True)
class _Grid:
    """Codes and what they stand for: (codes − zero) · scale, by blocks of 32.

    Attributes:
        codes: [rows, blocks, 32], int16.
        scale: [rows, blocks], float32.
        zero: [rows, blocks], int16.
        bits: of a code that is counted from the least.
        symmetric: whether `zero` is 0.
    """

    codes: Tensor
    scale: Tensor
    zero: Tensor
    bits: int
    symmetric: bool


def unfit(form: ExportForm) -> str | None:
    """Say why integers do not fit into blocks, and what would help; None if they do."""
    columns = form.codes.shape[1]
    if form.axis == 1:
        return "have a scale for each column, not for each row or group of it."
    if columns % BLOCK:
        return f"have rows of {columns}, which are no multiple of GGML's blocks of {BLOCK}."
    if form.group_size is not None and form.group_size % BLOCK:
        return (
            f"are in groups of {form.group_size}, and GGML's blocks have {BLOCK}. Choose a "
            f"'group_size' that is a multiple of {BLOCK}, or leave it out for one scale a row."
        )
    if form.bits > 8:
        return f"have {form.bits} bits, and GGML's integers up to 8."
    if form.bits > 5 and form.zero_point is not None and int(_counted(form).abs().max()) > 127:
        return (
            "have zero points and more than 5 bits, which GGML has no word for. Quantize them with "
            "'symmetric: true'."
        )
    return None


def exact_blocks(form: ExportForm) -> Blocks:
    """Return a matrix in the smallest kind of block that holds its grid, up to float16 scales.

    Args:
        form: what `unfit` has nothing to say of.
    """
    grid = _grid(form)
    whole = form.codes.shape[1] % SUPER_BLOCK == 0
    alike = form.group_size is None or form.group_size % SUPER_BLOCK == 0
    if grid.bits <= 4 and grid.symmetric:
        return _offset(grid, "Q4_0", 8)
    if grid.bits <= 4 and whole and alike:
        return super_blocks(form)
    if grid.bits <= 4:
        return _least(grid, "Q4_1")
    if grid.bits <= 5:
        return _offset(grid, "Q5_0", 16) if grid.symmetric else _least(grid, "Q5_1")
    scale = grid.scale.half()
    counted = grid.codes - grid.zero[..., None]
    return Blocks("Q8_0", _rows(_bytes(scale), counted.to(torch.int8)), _moved(grid, scale, None))


def fits_super_blocks(form: ExportForm) -> bool:
    """Tell whether a matrix has 4 bits and rows of whole super-blocks of 256."""
    return form.bits <= 4 and form.codes.shape[1] % SUPER_BLOCK == 0


def super_blocks(form: ExportForm) -> Blocks:
    """Return a matrix in blocks of Q4_K: its integers, and scales that are multiples of two.

    Exact up to float16 where a super-block has one scale; else scales and least values are rounded
    to 6 bits, the largest of a super-block to the nearest, and `rounding` tells what that moves.

    Args:
        form: what `fits_super_blocks`.
    """
    grid = _grid(form)
    offset = torch.full_like(grid.zero, 8) if grid.symmetric else grid.zero
    rows, blocks = grid.scale.shape
    levels = (grid.codes + (8 if grid.symmetric else 0)).view(rows, -1, 8, BLOCK)
    scale = grid.scale.view(rows, blocks // 8, 8)
    least = (grid.scale * offset).view(rows, blocks // 8, 8)
    d, s = _multiples(scale)
    dmin, n = _multiples(least)
    found_scale = (d[..., None] * s).view(rows, blocks)
    found_least = (dmin[..., None] * n).view(rows, blocks)
    low = torch.cat([s[..., :4] | (s[..., 4:] >> 4 << 6), n[..., :4] | (n[..., 4:] >> 4 << 6)], -1)
    high = (s[..., 4:] & 15) | ((n[..., 4:] & 15) << 4)
    pairs = levels.view(rows, -1, 4, 2, BLOCK)
    nibbles = (pairs[..., 0, :] | (pairs[..., 1, :] << 4)).flatten(-2)
    parts = (_bytes(d.half()), _bytes(dmin.half()), low.to(torch.uint8), high.to(torch.uint8))
    data = _rows(*parts, nibbles.to(torch.uint8))
    return Blocks("Q4_K", data, _moved(grid, found_scale, -found_least, offset))


def _multiples(values: Tensor) -> tuple[Tensor, Tensor]:
    """Return a float16 unit for each 8 values, and their multiples of it, 0 to 63.

    Where all are equal, the unit is the value itself.
    """
    largest = values.amax(-1)
    alike = (values == values[..., :1]).all(-1)
    unit = torch.where(alike, largest, largest / 63).half().float()
    safe = torch.where(unit > 0, unit, torch.ones_like(unit))
    multiple = (values / safe[..., None]).round().clamp(0, 63)
    return unit, torch.where(unit[..., None] > 0, multiple, 0).to(torch.int16)


def _grid(form: ExportForm) -> _Grid:
    rows, columns = form.codes.shape
    blocks = columns // BLOCK
    group = form.group_size or columns

    def by_blocks(each: Tensor) -> Tensor:
        each = each.expand(rows, 1) if form.axis is None else each
        return each.repeat_interleave(group // BLOCK, 1)[:, :blocks].contiguous()

    scale = by_blocks(form.scale.float())
    codes = form.codes.to(torch.int16)
    zero = torch.zeros(scale.shape, dtype=torch.int16)
    if form.zero_point is not None:
        zero = by_blocks(form.zero_point.to(torch.int16))
    signed = form.codes.dtype.is_signed
    symmetric = signed and form.zero_point is None
    return _Grid(codes.view(rows, blocks, BLOCK), scale, zero, form.bits, symmetric)


def _counted(form: ExportForm) -> Tensor:
    grid = _grid(form)
    return grid.codes - grid.zero[..., None]


def _offset(grid: _Grid, kind: str, middle: int) -> Blocks:
    """Return blocks that count from a fixed middle."""
    scale = grid.scale.half()
    data = _rows(_bytes(scale), *_packed(grid.codes + middle, kind))
    return Blocks(kind, data, _moved(grid, scale, None))


def _least(grid: _Grid, kind: str) -> Blocks:
    """Return blocks that count from their least value."""
    scale, least = grid.scale.half(), (-grid.zero * grid.scale).half()
    data = _rows(_bytes(scale), _bytes(least), *_packed(grid.codes, kind))
    return Blocks(kind, data, _moved(grid, scale, least, grid.zero))


def _packed(levels: Tensor, kind: str) -> list[Tensor]:
    """Return levels [rows, blocks, 32] as nibbles, of 5 bits after a word of the highest."""
    half = BLOCK // 2
    low = levels & 15
    nibbles = (low[..., :half] | (low[..., half:] << 4)).to(torch.uint8)
    if not kind.startswith("Q5"):
        return [nibbles]
    bits = (levels >> 4).view(*levels.shape[:2], 4, 8)
    weights = 1 << torch.arange(8, dtype=torch.int16)
    return [(bits * weights).sum(-1).to(torch.uint8), nibbles]


def _moved(grid: _Grid, scale: Tensor, least: Tensor | None, zero: Tensor | None = None) -> float:
    """Return by how much of its step a weight moves at most.

    Args:
        grid: what it shall be.
        scale: that is written, [rows, blocks].
        least: what is written for code 0, None if codes stand for multiples of the scale alone.
        zero: the code of zero where there is a least value.
    """
    step = grid.scale.double()
    # The change is linear in the code, so it is largest at an end of those that there are.
    moved = torch.zeros_like(step)
    for end in (grid.codes.amin(-1), grid.codes.amax(-1)):
        wanted = (end - grid.zero).double() * step
        if least is None:
            found = (end - grid.zero).double() * scale.double()
        else:
            assert zero is not None
            found = (end - grid.zero + zero).double() * scale.double() + least.double()
        moved = torch.maximum(moved, (found - wanted).abs())
    share = torch.where(step > 0, moved / step, moved)
    return float(share.max())


def _bytes(numbers: Tensor) -> Tensor:
    """Return float16 numbers [rows, blocks] as bytes [rows, blocks, 2]."""
    return numbers.contiguous().view(torch.uint8).view(*numbers.shape, 2)


def _rows(*parts: Tensor) -> Tensor:
    """Return parts [rows, blocks, bytes] one after another, as bytes [rows, …]."""
    return torch.cat([part.view(torch.uint8) for part in parts], -1).flatten(1).contiguous()
