"""Kullback–Leibler divergence from the teacher's softened classes.

Source: Hinton et al. 2015, arXiv:1503.02531, section 2.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from zoopress.config import Config
from zoopress.training.loss import Loss, Seen, alike

if TYPE_CHECKING:
    from torch import Tensor, nn


class KlDivergenceConfig(Config):
    """How soft."""

    temperature: float = Field(default=2.0, gt=0, description="softens both softmaxes")


def response_loss(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Return T² times the Kullback–Leibler divergence from the teacher's softened classes.

    Gradients of softened scores shrink by T²; the factor makes up for it, so that the weight of
    this loss against others does not depend on the temperature.

    Args:
        student: scores of classes [rows, classes], before the softmax.
        teacher: the same.
        temperature: T, which scores are divided by.

    Returns:
        A scalar, the mean of all rows.
    """
    import torch

    expected = (teacher / temperature).log_softmax(-1)
    got = (student / temperature).log_softmax(-1)
    # A class that is ruled out has the score −∞ in both, and adds nothing.
    gap = torch.where(expected.isneginf(), 0.0, expected - got)
    return temperature**2 * (expected.exp() * gap).sum(-1).mean()


class KlDivergence(Loss[KlDivergenceConfig]):
    """Let the student's distribution over classes be the teacher's."""

    name = "kl_divergence"
    config_type = KlDivergenceConfig
    taught = True

    def prepare(self, seen: Seen) -> nn.Module | None:
        """Check that both put out scores of the same classes."""
        alike(seen)
        return None

    def value(self, seen: Seen, learned: nn.Module | None) -> Tensor:
        """Return the mean over all rows of scores."""
        return response_loss(*seen.pair, self.config.temperature)
