"""A matrix as lines for compiled loops: its columns in an order, with their grid."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from zoopress.techniques.rounder import Matrix, Rounded, level_limits, spread
from zoopress_plugins.quantization.rounding.kernels import Flags, Floats


def as_lines(matrix: Tensor, order: Tensor) -> Any:
    """Return columns in an order, [in, out], contiguous."""
    return np.ascontiguousarray(matrix.detach().index_select(1, order).T.numpy())


class Lines:
    """The levels of a matrix and their grid, line by line.

    Attributes:
        levels: [in, out], to be changed.
    """

    def __init__(self, matrix: Matrix, rounded: Rounded, order: Tensor) -> None:
        low, high = level_limits(matrix.bits, matrix.symmetric)
        self._limits = np.float32(low), np.float32(high)
        self._order = order
        self.levels: Floats = as_lines(rounded.levels.float(), order)
        self._scale: Floats = as_lines(spread(rounded.scale.float(), matrix), order)
        self._zero: Floats = np.zeros_like(self._scale)
        if rounded.zero_point is not None:
            self._zero = as_lines(spread(rounded.zero_point.float(), matrix), order)
        self._keep: Flags = np.ones(self._scale.shape, np.bool_)
        if matrix.keep is not None:
            self._keep = as_lines(matrix.keep, order)

    def grid(self, some: slice) -> tuple[Floats, Floats, Flags, np.float32, np.float32]:
        """Return of some lines scales, zero points, what is kept, lowest and highest level."""
        return self._scale[some], self._zero[some], self._keep[some], *self._limits

    def values(self) -> Floats:
        """Return what levels stand for: [in, out]."""
        return (self.levels - self._zero) * self._scale

    def found(self) -> Tensor:
        """Return levels as a matrix: [out, in]."""
        levels = torch.from_numpy(self.levels)
        found = torch.empty_like(levels)
        found[self._order] = levels
        return found.T.contiguous()
