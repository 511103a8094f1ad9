"""What tasks share whose outputs are scores of tokens: loss, rows of statistics, metrics.

Targets are token ids [samples, tokens], `IGNORED` where there is nothing to predict. Outputs are
large, so nothing here makes a copy of more than one sample of them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

IGNORED = -100
"""Marks a token that is not predicted."""

MAX_BATCH_ELEMENTS = 1 << 26
"""Batches are made smaller where their outputs would have more numbers."""


def affordable(batch_size: int, tokens: int, vocabulary: int) -> int:
    """Return how many samples a forward pass may have, at least one.

    Args:
        batch_size: how many are wished for.
        tokens: of one sample, at most.
        vocabulary: scores of one token.
    """
    return max(1, min(batch_size, MAX_BATCH_ELEMENTS // (tokens * vocabulary)))


def token_loss(scores: Tensor, targets: Tensor) -> Tensor:
    """Return the mean of −ln p over all targets, 0 if there are none.

    Args:
        scores: [samples, tokens, vocabulary].
        targets: int64 [samples, tokens].
    """
    from torch.nn.functional import cross_entropy

    total = cross_entropy(
        scores.flatten(0, 1), targets.flatten(), ignore_index=IGNORED, reduction="sum"
    )
    return total / (targets != IGNORED).sum().clamp(min=1)


def token_statistics(scores: Tensor, targets: Tensor) -> dict[str, Tensor]:
    """Return of each sample the sum of −ln p, and how many tokens there are and are right.

    Args:
        scores: [samples, tokens, vocabulary].
        targets: int64 [samples, tokens].

    Returns:
        "nll" in nats, float64 [samples]; "tokens" and "right", int64 [samples]. A token is right
        if it has the largest score.
    """
    import torch
    from torch.nn.functional import cross_entropy

    losses, right = [], []
    for row, target in zip(scores, targets, strict=True):
        each = cross_entropy(row.float(), target, ignore_index=IGNORED, reduction="none")
        losses.append(each.double().sum())
        right.append((row.argmax(1) == target).sum())
    return {
        "nll": torch.stack(losses),
        "tokens": (targets != IGNORED).sum(1),
        "right": torch.stack(right),
    }


def language_model_metrics(statistics: Mapping[str, Tensor]) -> dict[str, float]:
    """Return perplexity, bits per token and the accuracy of tokens, from `token_statistics`."""
    from zoopress.evaluation.metrics import perplexity

    tokens = statistics["tokens"].sum()
    return {
        "perplexity": perplexity(statistics["nll"], statistics["tokens"]),
        "bits_per_token": float(statistics["nll"].sum() / tokens / math.log(2)),
        "token_accuracy": float(statistics["right"].sum() / tokens),
    }
