"""A weight of few different vectors: packed codes, and the run of weights each stands for."""

from __future__ import annotations

import torch
from torch import Tensor

from zoopress.coding.bits import packed_size, unpack_codes
from zoopress.models.packing import CodeLayout, PackedWeight, Product
from zoopress_plugins.quantization.forms.packed_rows import dense_from_rows, matrix_size


class VectorsWeight(PackedWeight):
    """A weight whose rows are runs of `length` weights, each a codeword.

    Buffers:
        codes: [rows, bytes], uint8, `bits` bits for each run.
        codewords: [2**bits, length], bfloat16.

    Args:
        shape: of the weight.
        dtype: of the weight.
        output_axis: what the rows are of the weight's axes.
        bits: of a code.
        length: weights in a run; what the last run of a row has too many is left out.
    """

    codes: Tensor
    codewords: Tensor

    def __init__(
        self, shape: torch.Size, dtype: torch.dtype, output_axis: int, bits: int, length: int
    ) -> None:
        super().__init__(shape, dtype, output_axis)
        if type(bits) is not int or not 1 <= bits <= 8:
            raise ValueError(f"bits must be 1 to 8, not {bits!r}")
        rows, self.columns = matrix_size(shape, output_axis)
        if type(length) is not int or not 1 <= length <= self.columns:
            raise ValueError(f"length must be 1 to {self.columns}, not {length!r}")
        self.bits, self.length = bits, length
        self.runs = -(-self.columns // length)
        codes = torch.empty(rows, packed_size(self.runs, bits), dtype=torch.uint8)
        self.register_buffer("codes", codes)
        self.register_buffer("codewords", torch.empty(1 << bits, length, dtype=torch.bfloat16))

    def dense(self) -> Tensor:
        """Return the weight in its own shape and type."""
        return dense_from_rows(self, self.columns)

    def dense_rows(self, some: slice | Tensor) -> Tensor:
        """Return some rows of the matrix [n, columns]."""
        codes = unpack_codes(self.codes[some], self.bits, self.runs)
        # In float32 at least: in 16 bits the gradient of what many share is lost.
        words = self.codewords.to(torch.promote_types(self.dtype, torch.float32))
        found = words.index_select(0, codes.reshape(-1).int()).to(self.dtype)
        return found.view(len(codes), self.runs * self.length)[:, : self.columns]

    def kernel(self, product: Product) -> str | None:
        """Name what computes a look-up without the dense weight."""
        return "only the rows looked up are made" if product == "embedding" else None

    def code_layouts(self) -> dict[str, CodeLayout]:
        """Return that `codes` holds codes of runs, none of which is zero's."""
        return {"codes": CodeLayout(self.bits, self.runs, fill=None, group=1)}

    def tunable(self) -> tuple[str, ...]:
        """Name the codewords."""
        return ("codewords",)
