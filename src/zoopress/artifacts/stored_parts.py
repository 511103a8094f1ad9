"""What reads and writes of stored tensors share: names, what is expected, masks, codes of zero."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from zoopress.coding.bits import pack_codes
from zoopress.coding.layout import PackedCodes, StoredTensor
from zoopress.coding.masks import PackedMask
from zoopress.errors import ArtifactError
from zoopress.models.codes import CodeLayout, OwnCodes, spread

MASK = "@mask"
KEPT = "@kept"


@dataclass(frozen=True)
class Expected:
    """What the rebuilt architecture says of a tensor."""

    shape: torch.Size
    dtype: torch.dtype

    def has_type_of(self, tensor: Tensor) -> bool:
        """Tell whether a tensor's type can stand here; any float type can stand for another."""
        return tensor.dtype == self.dtype or (
            tensor.is_floating_point() and self.dtype.is_floating_point
        )

    def fits(self, tensor: Tensor) -> bool:
        """Tell whether a tensor can stand here."""
        return self.has_type_of(tensor) and tensor.shape == self.shape


def read_mask(
    name: str, stored: str, read: Callable[[str], Tensor], shape: torch.Size
) -> PackedMask:
    """Read a mask.

    Args:
        name: of the tensor that it belongs to.
        stored: its own.
        read: returns a stored tensor by name.
        shape: that it must have.

    Raises:
        ArtifactError: if what is stored does not fit.
    """
    count = shape.numel()
    packed = read(stored)
    if packed.dtype != torch.uint8 or packed.shape != ((count + 7) // 8,):
        raise ArtifactError(
            f"tensor {name!r}: {count} bits are expected in {stored!r}, but {packed.dtype} of "
            f"shape {tuple(packed.shape)} is stored"
        )
    return PackedMask(packed, shape)


def pack_mask(mask: Tensor) -> StoredTensor:
    """Pack bools as one row; a line of neighbours is what the first axis counts."""
    count = mask.numel()
    packed = pack_codes(mask.reshape(1, -1).to(torch.uint8), 1)[0]
    width = count // mask.shape[0] if mask.ndim > 1 and count else None
    return StoredTensor(packed, PackedCodes(1, count, width=width))


def fill_codes(
    layout: CodeLayout | OwnCodes,
    shape: torch.Size,
    name: str,
    tensor_named: Callable[[str], Tensor],
    rows: slice = slice(None),
) -> Tensor:
    """Return the code of zero at every place of some rows of [rows, codes per row]."""
    dtype = layout.dtype if isinstance(layout, OwnCodes) else torch.uint8
    if isinstance(layout.fill, int):
        size = (len(range(shape[0])[rows]), shape[1])
        return torch.full(size, layout.fill, dtype=dtype)
    if layout.fill is None:
        raise ArtifactError(f"tensor {name!r}: has a mask, but none of its codes stands for zero")
    fill = tensor_named(f"{name.rpartition('.')[0]}.{layout.fill}")[rows]
    return spread(fill.to(dtype), layout.group, shape[1])
