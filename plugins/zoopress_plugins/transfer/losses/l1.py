"""L1: many small weights become nearly zero, so that pruning by magnitude costs less.

Source: Tibshirani 1996, Regression shrinkage and selection via the lasso, eq. 1.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from zoopress.training.loss import Loss, Seen
from zoopress_plugins.transfer.losses.selected import SelectedParameters

if TYPE_CHECKING:
    from torch import Tensor, nn


class L1(Loss[SelectedParameters]):
    """The sum of the selected weights' magnitudes; a `weight` of 1e-5 to 1e-3 is usual."""

    name = "l1"
    config_type = SelectedParameters

    def prepare(self, seen: Seen) -> nn.Module | None:
        """Check that there are such weights."""
        self.config.select(seen.parameters)
        return None

    def value(self, seen: Seen, learned: nn.Module | None) -> Tensor:
        """Return Σ |w|."""
        import torch

        selected = self.config.select(seen.parameters).values()
        return torch.stack([weight.float().abs().sum() for weight in selected]).sum()
