"""How a model's tensors become the tensors of a file, and back, exactly.

A tensor of the model is stored as it is, under its own name, or takes one of these forms:

    alias     not stored: equal to another (tied weights, the same buffer in every layer)
    boolean   bools, one bit each
    masked    a pruned weight: one bit a weight for the mask, under `name@mask`, and the weights
              that are kept, in row-major order, under `name@kept`
    narrow    floats that 16 bits hold exactly, as of a model that came in 16 bits and computes in
              32: stored in 16, loaded in the architecture's type
    computed  not stored: a buffer outside the state dict that the architecture's code makes
    zeros     codes of a pruned weight, stored as they are: what is not the code of zero is kept
    codes     codes that are packed in a way of their own, stored bit-packed for the coder to see

The codes of a packed weight are uint8 rows of bit-packed integers, or integers, or what the weight
itself packs and unpacks (`own_codes.py`). Pruned codes take
the form `zeros` where they can: the coder sees one sparse plane, which takes less than a mask and
what it keeps. `masked` ones are stored packed at the same width, those that are kept alone; the
rest are the code of zero.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Mapping
from typing import Any

import torch
from torch import Tensor

from zoopress.artifacts import own_codes
from zoopress.artifacts.forms import (
    Alias as Alias,
    AnyEntry as AnyEntry,
    Boolean as Boolean,
    CodesEntry as CodesEntry,
    Computed as Computed,
    Masked as Masked,
    Narrow as Narrow,
    Stored as Stored,
    Zeros as Zeros,
)
from zoopress.artifacts.stored_parts import (
    KEPT as KEPT,
    MASK as MASK,
    Expected as Expected,
    fill_codes,
    pack_mask,
    read_mask,
)
from zoopress.coding.bits import pack_codes, unpack_codes
from zoopress.coding.layout import Layout, PackedCodes, StoredTensor
from zoopress.coding.masks import PackedMask
from zoopress.errors import ArtifactError, StageError
from zoopress.models.codes import AnyLayout, CodeLayout, OwnCodes, nonzero_codes

LEAST_NARROWED = 256
"""How many numbers a tensor has at least that is stored in fewer bits than it has in memory."""


def encode(
    tensors: Mapping[str, Tensor],
    masks: Mapping[str, Tensor],
    layouts: Mapping[str, AnyLayout],
    share: bool = True,
    coded: bool = True,
    computed: Collection[str] = (),
) -> tuple[dict[str, AnyEntry], dict[str, StoredTensor]]:
    """Choose the form of every tensor.

    Args:
        tensors: every tensor of the model by name.
        masks: bool, True where kept, of the tensor's shape or of its codes' [rows, codes].
        layouts: which tensors hold codes, and how.
        share: whether to store tensors of equal content once and bools as bits; if not, every
            tensor is stored as it is, but tied ones once.
        coded: whether what is stored is entropy coded; if not, codes that are mostly zero are
            `masked`, which then takes less.
        computed: names of those that need not be stored.

    Returns:
        The form of each tensor that is not stored as it is, and what goes into the file.

    Raises:
        StageError: if a weight that is pruned by a mask is not zero.
    """
    entries: dict[str, AnyEntry] = {}
    stored: dict[str, StoredTensor] = {}
    seen: dict[tuple[object, ...], list[str]] = {}
    for name, tensor in tensors.items():
        if name in computed:
            entries[name] = Computed()
            continue
        alike = seen.setdefault(_identity(tensor), [])
        tied = next((other for other in alike if _same_memory(tensor, tensors[other])), None)
        # Equal contents under different masks are two things; a tied weight has one mask.
        mask = masks.get(name)
        equal = (other for other in alike if share and _same_mask(mask, masks.get(other)))
        if (first := tied or next(equal, None)) is not None:
            entries[name] = Alias(of=first, tied=tied is not None)
            continue
        alike.append(name)
        layout = layouts.get(name)
        dense = coded or mask is None or _masking_saves_nothing(tensor, mask)
        if isinstance(layout, OwnCodes):
            entry, items = own_codes.encode(name, tensor, mask, layout, tensors, coded, dense)
            entries.update({} if entry is None else {name: entry})
            stored.update(items)
        elif mask is not None and dense and _implied(tensor, mask, layout):
            entries[name] = Zeros()
            stored[name] = StoredTensor(tensor, _stored_layout(layout))
        elif mask is not None:
            parts = _encode_masked(name, tensor, mask, layout, tensors)
            kept = narrowed(parts[name + KEPT].tensor) if share and layout is None else None
            if kept is not None:
                parts[name + KEPT] = StoredTensor(kept)
            entries[name] = Masked(narrow=kept is not None)
            stored.update(parts)
        elif share and tensor.dtype == torch.bool and tensor.numel() >= 8:
            entries[name] = Boolean()
            stored[name] = pack_mask(tensor)
        elif share and layout is None and (narrow := narrowed(tensor)) is not None:
            entries[name] = Narrow()
            stored[name] = StoredTensor(narrow)
        else:
            stored[name] = StoredTensor(tensor, _stored_layout(layout))
    return entries, stored


def narrowed(tensor: Tensor) -> Tensor | None:
    """Return a float32 tensor in the type of 16 bits that holds it exactly, None if none does.

    Small ones are left: to say so takes about as much.
    """
    if tensor.dtype != torch.float32 or tensor.numel() < LEAST_NARROWED:
        return None
    for dtype in (torch.float16, torch.bfloat16):
        few = tensor.reshape(-1)[:LEAST_NARROWED]
        if torch.equal(few.to(dtype).float(), few):
            narrow = tensor.to(dtype)
            if torch.equal(narrow.float(), tensor):
                return narrow
    return None


def decode(
    name: str,
    entry: Stored | None,
    expected: Expected,
    layout: AnyLayout | None,
    read: Callable[[str], Tensor],
    tensor_named: Callable[[str], Tensor],
    masks: bool = True,
) -> tuple[Tensor, Tensor | None]:
    """Rebuild a tensor from a file.

    Args:
        name: the tensor's name.
        entry: its form, None if it is stored as it is; neither an alias nor computed.
        expected: its shape and type in the rebuilt architecture.
        layout: how it holds codes, if it does.
        read: returns a stored tensor by name.
        tensor_named: returns another, already decoded tensor of the model.
        masks: whether to return the mask, which takes a byte a weight.

    Returns:
        The tensor, and its mask if it has one and `masks`.

    Raises:
        ArtifactError: if what is stored does not fit.
    """
    if isinstance(layout, OwnCodes) and not isinstance(entry, Boolean):
        return own_codes.decode(name, entry, expected, layout, read, tensor_named, masks)
    if isinstance(entry, CodesEntry):
        raise ArtifactError(f"tensor {name!r}: its form is 'codes', but no layer packs it itself")
    if entry is None or isinstance(entry, Zeros):
        tensor = _read_plain(name, expected, read)
        return tensor, _zeros_mask(name, tensor, layout, masks) if entry else None
    if isinstance(entry, Narrow):
        return _widened(name, _read_plain(name, expected, read), expected), None
    if isinstance(entry, Boolean):
        if expected.dtype != torch.bool:
            raise ArtifactError(f"tensor {name!r}: stored as bools, expected {expected.dtype}")
        return read_mask(name, name, read, expected.shape).unpack(), None
    if isinstance(layout, CodeLayout):
        tensor, mask = _decode_masked_codes(name, expected, layout, read, tensor_named)
    else:
        tensor, mask = _decode_masked(name, expected, read)
        if entry.narrow:
            tensor = _widened(name, tensor, expected)
    return tensor, mask.unpack() if masks else None


def _stored_layout(layout: AnyLayout | None) -> Layout | None:
    if isinstance(layout, CodeLayout):
        return PackedCodes(layout.bits, layout.per_row, layout.signed)
    assert not isinstance(layout, OwnCodes), "it is stored another way"
    return layout


def _masking_saves_nothing(codes: Tensor, mask: Tensor) -> bool:
    """Tell whether a bit for each code takes as much as the codes that it spares."""
    spared = codes.nbytes * (1 - float(mask.float().mean()))
    return spared <= mask.numel() / 8


def _implied(tensor: Tensor, mask: Tensor, layout: AnyLayout | None) -> bool:
    """Tell whether a mask keeps just the codes that are not zero's."""
    kept = None if layout is None else nonzero_codes(tensor, layout)
    return kept is not None and torch.equal(kept, mask)


def _read_plain(name: str, expected: Expected, read: Callable[[str], Tensor]) -> Tensor:
    tensor = read(name)
    if not expected.fits(tensor):
        raise ArtifactError(
            f"tensor {name!r}: stored as {tensor.dtype} {tuple(tensor.shape)}, but the "
            f"architecture has {expected.dtype} {tuple(expected.shape)} there"
        )
    if tensor.dtype == torch.bool and bool((tensor.view(torch.uint8) > 1).any()):
        raise ArtifactError(f"tensor {name!r}: stored as bools, but holds other bytes")
    return tensor


def _widened(name: str, tensor: Tensor, expected: Expected) -> Tensor:
    if tensor.itemsize != 2 or expected.dtype.itemsize <= 2:
        raise ArtifactError(
            f"tensor {name!r}: stored as {tensor.dtype} for {expected.dtype}, which is not narrower"
        )
    return tensor.to(expected.dtype)


def _zeros_mask(name: str, tensor: Tensor, layout: AnyLayout | None, wanted: bool) -> Tensor | None:
    if layout is None or not isinstance(getattr(layout, "fill", 0), int):
        raise ArtifactError(
            f"tensor {name!r}: its form is 'zeros', but it has no codes with one code of zero"
        )
    return nonzero_codes(tensor, layout) if wanted else None


def _encode_masked(
    name: str,
    tensor: Tensor,
    mask: Tensor,
    layout: AnyLayout | None,
    tensors: Mapping[str, Tensor],
) -> dict[str, StoredTensor]:
    if isinstance(layout, CodeLayout):
        codes = unpack_codes(tensor, layout.bits, layout.per_row)
        values = codes[mask]
        packed = pack_codes(values[None], layout.bits)[0]
        kept = StoredTensor(packed, PackedCodes(layout.bits, values.numel(), layout.signed))
        fill = fill_codes(layout, codes.shape, name, lambda other: tensors[other])
        exact = torch.equal(torch.where(mask, codes, fill), codes)
    else:
        kept = StoredTensor(tensor[mask])
        exact = not bool(tensor[~mask].any())
    if not exact:
        raise StageError(
            f"Tensor {name!r} has values other than zero where its mask prunes. A stage changed a "
            "pruned weight without its mask; change weights under `Model.masks` only."
        )
    return {name + MASK: pack_mask(mask), name + KEPT: kept}


def _decode_masked(
    name: str, expected: Expected, read: Callable[[str], Tensor]
) -> tuple[Tensor, PackedMask]:
    mask = read_mask(name, name + MASK, read, expected.shape)
    kept = read(name + KEPT)
    count = mask.count()
    if kept.shape != (count,) or not expected.has_type_of(kept):
        raise ArtifactError(
            f"tensor {name!r}: its mask keeps {count} values of {expected.dtype}, but "
            f"{kept.dtype} of shape {tuple(kept.shape)} is stored"
        )
    return mask.scatter(kept), mask


def _decode_masked_codes(
    name: str,
    expected: Expected,
    layout: CodeLayout,
    read: Callable[[str], Tensor],
    tensor_named: Callable[[str], Tensor],
) -> tuple[Tensor, PackedMask]:
    shape = torch.Size((expected.shape[0], layout.per_row))
    mask = read_mask(name, name + MASK, read, shape)
    kept = read(name + KEPT)
    count = mask.count()
    if kept.shape != ((count * layout.bits + 7) // 8,) or kept.dtype != torch.uint8:
        raise ArtifactError(
            f"tensor {name!r}: its mask keeps {count} codes of {layout.bits} bits, but "
            f"{kept.dtype} of shape {tuple(kept.shape)} is stored"
        )
    try:
        packed = mask.scatter_codes(
            kept, layout.bits, lambda rows: fill_codes(layout, shape, name, tensor_named, rows)
        )
        return packed, mask
    except ValueError as error:  # the zero points, which are codes too, do not fit
        raise ArtifactError(f"tensor {name!r}: {error}") from error


def _same_memory(one: Tensor, other: Tensor) -> bool:
    return one.numel() > 0 and (one.data_ptr(), one.stride()) == (
        other.data_ptr(),
        other.stride(),
    )


def _same_mask(one: Tensor | None, other: Tensor | None) -> bool:
    return one is other or (one is not None and other is not None and torch.equal(one, other))


def _identity(tensor: Tensor) -> tuple[object, ...]:
    """Return what two tensors with the same content share."""
    contiguous = tensor.detach().contiguous()
    octets: Any = contiguous.reshape(-1).view(torch.uint8).numpy()
    content = hashlib.sha256(octets).digest()
    return (tensor.dtype, tuple(tensor.shape), content)
