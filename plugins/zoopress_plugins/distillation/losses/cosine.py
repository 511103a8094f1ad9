"""One minus the cosine similarity of the student's and the teacher's embeddings.

Source: Reimers & Gurevych 2020, arXiv:2004.09813 (embeddings taught by embeddings), with cosines.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from zoopress.choice import NoOptions
from zoopress.errors import StageError
from zoopress.training.loss import Loss, Seen, alike

if TYPE_CHECKING:
    from torch import Tensor, nn


def cosine_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Return the mean of 1 − cosine similarity of embeddings [samples, size]."""
    from torch.nn.functional import cosine_similarity

    return (1 - cosine_similarity(student, teacher, dim=-1)).mean()


def check_embeddings(seen: Seen) -> None:
    """Check that student and teacher put out embeddings.

    Raises:
        StageError: if one of them does not.
    """
    assert seen.expected is not None, "a loss that is taught has a teacher"
    if seen.output.ndim != 2 or seen.expected.ndim != 2:
        raise StageError(
            f"Embeddings are [samples, size], but the output is {list(seen.output.shape)} and "
            f"the teacher's {list(seen.expected.shape)}. Compare them by 'kl_divergence' or "
            "'mean_squared_error'; in distillation, set 'response' to 'logits' or 'regression'."
        )


class Cosine(Loss[NoOptions]):
    """Let the student's embeddings point where the teacher's do."""

    name = "cosine"
    taught = True

    def prepare(self, seen: Seen) -> nn.Module | None:
        """Check that both put out embeddings of one size."""
        check_embeddings(seen)
        alike(seen)
        return None

    def value(self, seen: Seen, learned: nn.Module | None) -> Tensor:
        """Return the mean over the samples."""
        return cosine_loss(*seen.pair)
