"""How similar the samples of a batch are to each other, by the student and by the teacher.

Source: Tung & Mori 2019, arXiv:1907.09682, section 3.2, with cosine similarities.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from zoopress.choice import NoOptions
from zoopress.training.loss import Loss, Seen
from zoopress_plugins.distillation.losses.cosine import check_embeddings

if TYPE_CHECKING:
    from torch import Tensor, nn


def relational_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Return the mean squared difference of the samples' cosine similarities to each other.

    Args:
        student: embeddings [samples, size].
        teacher: embeddings [samples, any size].

    Returns:
        A scalar, the mean over all pairs of two samples; 0 of a single sample.
    """
    from torch.nn.functional import normalize

    one, other = normalize(student, dim=-1), normalize(teacher, dim=-1)
    pairs = len(student) * (len(student) - 1)
    # The diagonals are 1 in both.
    return (one @ one.T - other @ other.T).square().sum() / max(1, pairs)


class Relational(Loss[NoOptions]):
    """Let samples be as similar to each other as they are by the teacher's embeddings."""

    name = "relational"
    taught = True

    def prepare(self, seen: Seen) -> nn.Module | None:
        """Check that both put out embeddings, of any size."""
        check_embeddings(seen)
        return None

    def value(self, seen: Seen, learned: nn.Module | None) -> Tensor:
        """Return the mean over all pairs of samples."""
        return relational_loss(*seen.pair)
