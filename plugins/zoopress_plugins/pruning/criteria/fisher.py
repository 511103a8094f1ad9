"""Fisher information: weights go whose going would cost the loss least.

Source: Theis et al. 2018, arXiv:1801.05787, for single weights in the place of feature maps.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from zoopress.choice import NoOptions
from zoopress.techniques import Criterion, Evidence

if TYPE_CHECKING:
    from torch import Tensor


def fisher_scores(weight: Tensor, squares: Tensor) -> Tensor:
    """Score weights by the loss that setting them to zero would cost, to second order.

    Args:
        weight: of any shape.
        squares: of the same, means of the squared gradients of the loss.
    """
    return weight.square() * squares / 2


class Fisher(Criterion[NoOptions]):
    """Score a weight by its square times the mean of its gradient's square, halved."""

    name = "fisher"
    statistics = ("gradients.mean_square",)

    def weights(self, evidence: Evidence) -> Tensor:
        """Return an estimate of the loss without each weight, minus the loss with it."""
        return fisher_scores(evidence.values, evidence.statistics["gradients.mean_square"])
