"""Codes that a packed weight packs in a way of its own, as tensors of a file and back.

In a container that codes integers they are stored bit-packed, so that it sees them, and else as the
weight packs them, or under a mask those that are kept alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from zoopress.artifacts.forms import CodesEntry, Masked, Stored, Zeros
from zoopress.artifacts.stored_parts import (
    KEPT,
    MASK,
    Expected,
    fill_codes,
    pack_mask,
    read_mask,
)
from zoopress.coding.bits import pack_codes, packed_size, unpack_codes
from zoopress.coding.layout import Integers, PackedCodes, StoredTensor
from zoopress.errors import ArtifactError, StageError
from zoopress.models.codes import OwnCodes


def encode(
    name: str,
    tensor: Tensor,
    mask: Tensor | None,
    layout: OwnCodes,
    tensors: Mapping[str, Tensor],
    coded: bool,
    dense: bool,
) -> tuple[Stored | None, dict[str, StoredTensor]]:
    """Choose the form of a buffer of codes.

    Args:
        name: of the buffer.
        tensor: the buffer.
        mask: bool [rows, codes in a row], True where kept.
        layout: how it holds codes.
        tensors: every tensor of the model by name.
        coded: whether what is stored is entropy coded.
        dense: whether a mask of its own would save nothing.

    Returns:
        The form, None if it is stored as it is, and what goes into the file.

    Raises:
        StageError: if the packing is wrong, or a code that is pruned is not that of zero.
    """
    codes = _codes(name, tensor, layout)
    kept = codes != layout.fill if isinstance(layout.fill, int) else None
    if mask is not None and not (dense and kept is not None and torch.equal(kept, mask)):
        fill = fill_codes(layout, codes.shape, name, lambda other: tensors[other])
        if not torch.equal(torch.where(mask, codes, fill), codes):
            raise StageError(
                f"Tensor {name!r} has codes other than zero's where its mask prunes. A stage "
                "changed a pruned weight without its mask; change weights under `Model.masks` only."
            )
        return Masked(), {name + MASK: pack_mask(mask), name + KEPT: _row(codes[mask], layout)}
    if coded:
        return CodesEntry(zeros=mask is not None), {name: _rows(codes, layout)}
    return None if mask is None else Zeros(), {name: StoredTensor(tensor)}


def decode(
    name: str,
    entry: Stored | None,
    expected: Expected,
    layout: OwnCodes,
    read: Callable[[str], Tensor],
    tensor_named: Callable[[str], Tensor],
    masks: bool,
) -> tuple[Tensor, Tensor | None]:
    """Rebuild a buffer of codes; the arguments are those of `encoding.decode`.

    Raises:
        ArtifactError: if what is stored does not fit.
    """
    try:
        if isinstance(entry, Masked):
            return _decode_masked(name, expected, layout, read, tensor_named, masks)
        stored = read(name)
        if isinstance(entry, CodesEntry):
            codes = _from_rows(name, stored, layout)
            buffer = _fitting(name, layout.buffer_of(codes), expected)
        else:
            buffer = _fitting(name, stored, expected)
            codes = layout.codes_of(buffer)  # checked: who looks values up trusts them
    except ValueError as error:
        if isinstance(error, ArtifactError):
            raise
        raise ArtifactError(f"tensor {name!r}: {error}") from error
    pruned = isinstance(entry, Zeros) or (isinstance(entry, CodesEntry) and entry.zeros)
    if not pruned:
        return buffer, None
    if not isinstance(layout.fill, int):
        raise ArtifactError(
            f"tensor {name!r}: its form tells a mask by zeros, but it has no single code of zero"
        )
    return buffer, codes.ne(layout.fill) if masks else None


def _codes(name: str, tensor: Tensor, layout: OwnCodes) -> Tensor:
    """Return a buffer's codes, once they are known to give the buffer back."""
    try:
        codes = layout.codes_of(tensor)
        back = layout.buffer_of(codes)
    except ValueError as error:
        raise StageError(
            f"Tensor {name!r}: its packing says otherwise than its codes: {error}. This is a bug "
            "in the packed weight's `code_layouts`."
        ) from error
    if back.dtype != tensor.dtype or not torch.equal(back, tensor):
        raise StageError(
            f"Tensor {name!r}: `pack` of what `unpack` gives is not the buffer again, so its codes "
            "cannot stand for it. This is a bug in the packed weight's `code_layouts`; what fills "
            "up a row or a byte must be zeros."
        )
    return codes


def _rows(codes: Tensor, layout: OwnCodes) -> StoredTensor:
    if codes.dtype != torch.uint8:
        return StoredTensor(codes, Integers())
    return StoredTensor(pack_codes(codes, layout.bits), PackedCodes(layout.bits, layout.per_row))


def _row(codes: Tensor, layout: OwnCodes) -> StoredTensor:
    """Return how some codes [n] are stored."""
    if codes.dtype != torch.uint8:
        return StoredTensor(codes)
    packed = pack_codes(codes[None], layout.bits)[0]
    return StoredTensor(packed, PackedCodes(layout.bits, codes.numel()))


def _from_rows(name: str, stored: Tensor, layout: OwnCodes) -> Tensor:
    wide = layout.dtype != torch.uint8
    shape = (layout.rows, layout.per_row if wide else packed_size(layout.per_row, layout.bits))
    if stored.dtype != layout.dtype or tuple(stored.shape) != shape:
        raise ArtifactError(
            f"tensor {name!r}: {layout.rows} rows of {layout.per_row} codes of {layout.bits} bits "
            f"are expected, but {stored.dtype} of shape {tuple(stored.shape)} is stored"
        )
    return stored if wide else unpack_codes(stored, layout.bits, layout.per_row)


def _decode_masked(
    name: str,
    expected: Expected,
    layout: OwnCodes,
    read: Callable[[str], Tensor],
    tensor_named: Callable[[str], Tensor],
    masks: bool,
) -> tuple[Tensor, Tensor | None]:
    shape = torch.Size((layout.rows, layout.per_row))
    packed_mask = read_mask(name, name + MASK, read, shape)
    kept, count = read(name + KEPT), packed_mask.count()
    wide = layout.dtype != torch.uint8
    size = count if wide else packed_size(count, layout.bits)
    if kept.dtype != layout.dtype or kept.shape != (size,):
        raise ArtifactError(
            f"tensor {name!r}: its mask keeps {count} codes of {layout.bits} bits, but "
            f"{kept.dtype} of shape {tuple(kept.shape)} is stored"
        )
    values = kept if wide else unpack_codes(kept, layout.bits, count)
    mask = packed_mask.unpack()
    codes = fill_codes(layout, shape, name, tensor_named).masked_scatter(mask, values)
    return _fitting(name, layout.buffer_of(codes), expected), mask if masks else None


def _fitting(name: str, buffer: Tensor, expected: Expected) -> Tensor:
    if not expected.fits(buffer):
        raise ArtifactError(
            f"tensor {name!r}: stored as {buffer.dtype} {tuple(buffer.shape)}, but the "
            f"architecture has {expected.dtype} {tuple(expected.shape)} there"
        )
    return buffer
