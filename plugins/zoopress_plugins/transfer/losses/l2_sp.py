"""L2-SP: weights stay near where they were as training began, as what they know is worth keeping.

Source: Li et al. 2018, arXiv:1802.01483, eq. 2.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from zoopress.training.loss import Loss, Seen
from zoopress_plugins.transfer.losses.selected import SelectedParameters

if TYPE_CHECKING:
    from torch import Tensor, nn


class L2Sp(Loss[SelectedParameters]):
    """Half the sum of the squared distances of the selected weights from their start.

    Weight decay towards the model that is trained, instead of towards zero; set `weight_decay` to 0
    beside it.
    """

    name = "l2_sp"
    config_type = SelectedParameters
    remembers = True

    def prepare(self, seen: Seen) -> nn.Module | None:
        """Check that there are such weights."""
        self.config.select(seen.parameters)
        return None

    def value(self, seen: Seen, learned: nn.Module | None) -> Tensor:
        """Return Σ (w − w₀)² ÷ 2."""
        import torch

        selected = self.config.select(seen.parameters).items()
        apart = [(w.float() - seen.start[name].float()).square().sum() for name, w in selected]
        return torch.stack(apart).sum() / 2
