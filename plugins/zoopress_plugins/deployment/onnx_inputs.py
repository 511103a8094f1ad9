"""What enters a layer, in ONNX: QuantizeLinear and DequantizeLinear, which runtimes know as a pair.

A grid whose range is taken of each call's input stays the operations that compute it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from zoopress.models.input_grid import InputGrid, input_grids
from zoopress_plugins.deployment.onnx_weights import OPSET


class QuantizedInput(InputGrid):
    """An input grid of stored range that becomes operators of ONNX; it computes nothing here."""

    def forward(self, x: Tensor) -> Tensor:
        """Return x behind QuantizeLinear and DequantizeLinear."""
        if not x.is_floating_point() or self.scale is None or self.zero_point is None:
            return x
        values = x.to(torch.float32)
        low, high = self.limits
        if self.is_sign:  # no operator rounds away from zero
            values = torch.where(values >= 0, 1.0, -1.0) * self._stored(values)[0]
        elif self.bits < 8:  # the operators clip at the ends of a byte
            scale, zero = self._stored(values)
            values = torch.clamp(values, (low - zero) * scale, (high - zero) * scale)
        axis = {} if self.per != "channel" else {"axis": self.axis % x.ndim}
        codes = _operator("QuantizeLinear", values, self, axis, self.dtype)
        back = _operator("DequantizeLinear", codes, self, axis, torch.float32)
        return back.to(x.dtype)


def _operator(
    name: str, x: Tensor, grid: InputGrid, attributes: dict[str, Any], dtype: torch.dtype
) -> Tensor:
    return torch.onnx.ops.symbolic(
        name,
        [x, grid.scale, grid.zero_point],
        attributes,
        dtype=dtype,
        shape=x.shape,
        version=OPSET,
    )


def use_quantizers(root: nn.Module) -> None:
    """Let input grids below `root` become operators of ONNX, in place."""
    for grid in input_grids(root).values():
        if not grid.dynamic:
            grid.__class__ = QuantizedInput
