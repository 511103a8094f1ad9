"""A weight of few different values: packed codes, and the value that each stands for."""

from __future__ import annotations

import torch
from torch import Tensor

from zoopress.coding.bits import packed_size, unpack_codes
from zoopress.kernels.products import CodedRows
from zoopress.models.packing import CodeLayout, PackedWeight
from zoopress_plugins.quantization.forms.packed_rows import dense_from_rows, matrix_size


class CodebookWeight(PackedWeight):
    """A weight whose value is 0 where its code is 0, and codebook[code − 1] elsewhere.

    Zero is not in the codebook, so training cannot move it. Read as two's complement, codes of
    larger values are larger where each sign has no more than half of the codes.

    Buffers:
        codes: [rows, bytes], uint8, `bits` bits each.
        codebook: [2**bits − 1], bfloat16; 0 where no weight has the code.
    """

    codes: Tensor
    codebook: Tensor

    def __init__(self, shape: torch.Size, dtype: torch.dtype, output_axis: int, bits: int) -> None:
        super().__init__(shape, dtype, output_axis)
        if type(bits) is not int or not 1 <= bits <= 8:
            raise ValueError(f"bits must be 1 to 8, not {bits!r}")
        self.bits = bits
        rows, self.columns = matrix_size(shape, output_axis)
        codes = torch.empty(rows, packed_size(self.columns, bits), dtype=torch.uint8)
        self.register_buffer("codes", codes)
        self.register_buffer("codebook", torch.empty(2**bits - 1, dtype=torch.bfloat16))

    def dense(self) -> Tensor:
        """Return the weight in its own shape and type."""
        return dense_from_rows(self, self.columns)

    def dense_rows(self, some: slice | Tensor) -> Tensor:
        """Return some rows of the matrix [n, columns]."""
        return self._values(self.codes[some])

    def coded_rows(self) -> CodedRows:
        """Return the codes as products decode them, with a value for each."""
        return CodedRows(self.codes, self.columns, self.bits, False, table=self._table().float())

    def code_layouts(self) -> dict[str, CodeLayout]:
        """Return that `codes` holds codes, and that 0 is zero's."""
        return {"codes": CodeLayout(self.bits, self.columns, fill=0, group=1, signed=True)}

    def tunable(self) -> tuple[str, ...]:
        """Name the codebook."""
        return ("codebook",)

    def _values(self, codes: Tensor) -> Tensor:
        """Return the weights [n, columns] of rows of packed codes."""
        indices = unpack_codes(codes, self.bits, self.columns).reshape(-1).int()
        return self._table().index_select(0, indices).to(self.dtype).view(-1, self.columns)

    def _table(self) -> Tensor:
        # In float32 at least: in 16 bits the gradient of a value that many weights share is lost.
        codebook = self.codebook.to(torch.promote_types(self.dtype, torch.float32))
        return torch.cat([codebook.new_zeros(1), codebook])
