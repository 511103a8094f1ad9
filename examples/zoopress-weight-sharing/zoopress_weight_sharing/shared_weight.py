"""A weight with shared values at inference: codes, and the centroid that each stands for."""

from __future__ import annotations

import torch
from torch import Tensor

from zoopress.coding.bits import packed_size, unpack_codes
from zoopress.models.packing import CodeLayout, PackedWeight
from zoopress.models.weights import from_matrix


class SharedWeight(PackedWeight):
    """A weight with 2**bits different values.

    Buffers:
        codes: [out, bytes], uint8, `bits` bits each.
        centroids: [2**bits], in the weight's type; the first is zero.
    """

    codes: Tensor
    centroids: Tensor

    def __init__(self, shape: torch.Size, dtype: torch.dtype, output_axis: int, bits: int) -> None:
        super().__init__(shape, dtype, output_axis)
        if type(bits) is not int or not 2 <= bits <= 8:
            raise ValueError(f"bits must be 2 to 8, not {bits!r}")
        self.bits = bits
        rows = shape[output_axis]
        self.columns = shape.numel() // rows
        codes = torch.empty(rows, packed_size(self.columns, bits), dtype=torch.uint8)
        self.register_buffer("codes", codes)
        self.register_buffer("centroids", torch.empty(2**bits, dtype=dtype))

    def dense(self) -> Tensor:
        """Return the weight in its own shape and type."""
        return from_matrix(self._rows(self.codes), self.shape, self.output_axis)

    def embedding(self, indices: Tensor) -> Tensor:
        """Return the rows at `indices`; only those are looked up."""
        rows = self._rows(self.codes[indices.reshape(-1)])
        return rows.view(*indices.shape, self.columns)

    def code_layouts(self) -> dict[str, CodeLayout]:
        """Return that `codes` holds codes, and that code 0 is the value zero."""
        return {"codes": CodeLayout(self.bits, self.columns, fill=0, group=1)}

    def _rows(self, codes: Tensor) -> Tensor:
        return self.centroids[unpack_codes(codes, self.bits, self.columns).long()]
