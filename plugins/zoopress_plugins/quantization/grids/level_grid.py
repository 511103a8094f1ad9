"""A grid of fixed levels: which is nearest, what it stands for, and how gradients pass."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass(frozen=True)
class LevelGrid:
    """Levels by code; a weight is a level times a scale.

    Attributes:
        name: what artifacts call it.
        levels: [codes], float32; NaN where a code stands for nothing, or for what another does.
        signed: whether codes are read as two's complement.
        unit: what all levels are an integer multiple of, at most 127 times; None if nothing is.

    Raises:
        ValueError: if two codes have the same level, or there are no levels.
    """

    name: str
    levels: Tensor
    signed: bool = False
    unit: float | None = None
    _sorted: Tensor = field(init=False, repr=False)
    _order: Tensor = field(init=False, repr=False)

    def __post_init__(self) -> None:
        known = self.levels.isfinite().nonzero().flatten()
        sorted_levels, order = self.levels[known].sort()
        if not len(known) or bool((sorted_levels.diff() <= 0).any()):
            raise ValueError(f"the levels of {self.name!r} must be different numbers")
        object.__setattr__(self, "_sorted", sorted_levels)
        object.__setattr__(self, "_order", known[order].to(torch.uint8))

    @property
    def count(self) -> int:
        """How many codes there are."""
        return len(self.levels)

    @property
    def zero(self) -> int | None:
        """The code of the level zero, None if there is none."""
        found = (self.levels == 0).nonzero().flatten()
        return int(found[0]) if len(found) else None

    @property
    def largest(self) -> float:
        """The largest level."""
        return float(self._sorted[-1])

    @property
    def smallest(self) -> float:
        """The smallest level, which is negative."""
        return float(self._sorted[0])

    def project(self, values: Tensor, scale: Tensor) -> Tensor:
        """Return the code of the level that is nearest to each value ÷ scale.

        Args:
            values: any shape, float.
            scale: broadcasts to it; above 0.

        Returns:
            The shape of `values`, uint8; a value between two levels takes the lower.

        Raises:
            ValueError: if a value is NaN.
        """
        scaled = (values / scale).float()
        if bool(scaled.isnan().any()):
            raise ValueError(f"NaN has no nearest level of {self.name!r}")
        known = self._sorted.to(scaled.device)
        middles = (known[1:] + known[:-1]) / 2
        return self._order.to(scaled.device)[torch.bucketize(scaled, middles)]

    def values(self, codes: Tensor) -> Tensor:
        """Return the level of each code, float32."""
        levels = self.levels.to(codes.device)
        return levels.index_select(0, codes.reshape(-1).int()).view(codes.shape)

    def rounded(self, values: Tensor, scale: Tensor) -> Tensor:
        """Return the nearest level times scale of each value, for training.

        Gradients pass straight through to values within the grid and stop outside; that of the
        scale is the error of rounding, and the level where values lie outside.

        Args:
            values: any shape, float.
            scale: broadcasts to it; above 0.

        Source: Bengio et al. 2013, arXiv:1308.3432; of scales: Esser et al. 2020,
        arXiv:1902.08153, section 2.1.
        """
        scaled = (values / scale).clamp(self.smallest, self.largest)
        levels = self.values(self.project(values.detach(), scale.detach())).to(scaled.dtype)
        return (scaled + (levels - scaled).detach()) * scale

    def integers(self) -> Tensor | None:
        """Return levels ÷ `unit` by code, int8; 0 where a code stands for nothing."""
        if self.unit is None:
            return None
        return (self.levels / self.unit).nan_to_num(0.0).round().to(torch.int8)
