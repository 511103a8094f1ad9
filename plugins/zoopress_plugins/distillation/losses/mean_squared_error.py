"""Mean squared difference of the student's and the teacher's outputs.

Source: Ba & Caruana 2014, arXiv:1312.6184, section 2.3 (regression on what a teacher puts out).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from zoopress.choice import NoOptions
from zoopress.training.loss import Loss, Seen, alike

if TYPE_CHECKING:
    from torch import Tensor, nn


def regression_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Return the mean squared difference of two tensors of one shape."""
    from torch.nn.functional import mse_loss

    return mse_loss(student, teacher)


class MeanSquaredError(Loss[NoOptions]):
    """Let the student's numbers be the teacher's."""

    name = "mean_squared_error"
    taught = True

    def prepare(self, seen: Seen) -> nn.Module | None:
        """Check that outputs are of one shape."""
        alike(seen)
        return None

    def value(self, seen: Seen, learned: nn.Module | None) -> Tensor:
        """Return the mean over all numbers."""
        return regression_loss(*seen.pair)
