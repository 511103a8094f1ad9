"""Random: what goes is drawn, to see what a criterion is worth.

Source: Blalock et al. 2020, arXiv:2003.03033, section 5 (random pruning as the baseline).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pydantic import Field

from zoopress.config import Config
from zoopress.techniques import Criterion, Evidence

if TYPE_CHECKING:
    import torch
    from torch import Tensor


class RandomConfig(Config):
    """Which draw."""

    draw: int = Field(default=0, ge=0, description="another number gives other scores")


class Random(Criterion[RandomConfig]):
    """Score by uniform random numbers, the same ones whenever a tensor is scored again."""

    name = "random"
    config_type = RandomConfig

    def weights(self, evidence: Evidence) -> Tensor:
        """Return numbers in [0, 1)."""
        import torch

        scores = torch.rand(evidence.values.shape, generator=self._generator(evidence))
        return scores.to(evidence.values.device)

    def units(self, evidence: Sequence[Evidence]) -> Tensor:
        """Return numbers in [0, 1)."""
        import torch

        first = evidence[0]
        return torch.rand(len(first.values), generator=self._generator(first))

    def _generator(self, evidence: Evidence) -> torch.Generator:
        return evidence.generator(self.config.draw)
