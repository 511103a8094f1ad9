"""Pairs of embeddings: how they are made, learned, and ranked.

A pair's embeddings are one output [pairs, 2, size]. Which pairs belong together is told by numbers:
`pair_numbers` gives equal values the same one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from zoopress.tasks import row_digest
from zoopress_zoo.tasks.text_task import Inputs, TextTask, find_tensor, run_module

if TYPE_CHECKING:
    from torch import Tensor, nn

TEMPERATURE = 0.05
"""Cosine similarities are divided by it before the softmax, as contrastive training does."""

_BLOCK = 1024  # queries ranked at once


def encode_pairs(task: TextTask, first: Sequence[Any], second: Sequence[Any]) -> Inputs:
    """Return the tokens of pairs of texts as tensors [pairs, 2, tokens], all of one length."""
    both = [text for texts in zip(first, second, strict=True) for text in texts]
    return {name: value.unflatten(0, (-1, 2)) for name, value in task.encode(both).items()}


def embed(task: TextTask, module: nn.Module, inputs: Inputs) -> Tensor:
    """Return embeddings [samples, size] of tokens [samples, tokens].

    Raises:
        CardError: if the model returns something else.
    """
    output = run_module(module, inputs)
    names = ("sentence_embedding", "text_embeds", "embeddings", "pooler_output")
    embeddings = find_tensor(output, *names)
    if embeddings is None or embeddings.ndim != 2:
        raise task.unexpected(output, "embeddings [samples, size]")
    return embeddings


def embed_pairs(task: TextTask, module: nn.Module, inputs: Inputs) -> Tensor:
    """Return the embeddings [pairs, 2, size] of `encode_pairs`' tokens.

    Raises:
        CardError: if the model returns something else.
    """
    flat = {name: value.flatten(0, 1) for name, value in inputs.items()}
    pairs: Tensor = embed(task, module, flat).unflatten(0, (-1, 2))
    return pairs


def pair_numbers(first: Sequence[Any], second: Sequence[Any]) -> Tensor:
    """Return numbers [pairs, 2], int64: where each value stands first in its column."""
    import torch

    columns = []
    for values in (first, second):
        seen: dict[bytes, int] = {}
        columns.append([seen.setdefault(row_digest([v]), i) for i, v in enumerate(values)])
    return torch.tensor(columns, dtype=torch.int64).T


def contrastive_loss(scores: Tensor, numbers: Tensor) -> Tensor:
    """Return the mean of −ln softmax of each row's own score among those of the others in a batch.

    Columns that are right for a row besides its own, since they are equal or belong to an equal
    query, are left out.

    Args:
        scores: [pairs, pairs]; in row i and column j, of query i and document j.
        numbers: of queries and documents [pairs, 2].

    Source: van den Oord et al. 2018, arXiv:1807.03748 (InfoNCE), with the batch's own negatives as
        in Karpukhin et al. 2020, arXiv:2004.04906.
    """
    import torch
    from torch.nn.functional import cross_entropy

    queries, documents = numbers.unbind(1)
    right = (queries[:, None] == queries) | (documents[:, None] == documents)
    right.fill_diagonal_(False)
    own = torch.arange(len(scores), device=scores.device)
    return cross_entropy(scores.masked_fill(right, -torch.inf), own)


def best_ranks(queries: Tensor, documents: Tensor, numbers: Tensor) -> Tensor:
    """Return the rank of each query's best right document among all, int64 [pairs], from 1.

    Equal documents count once. All documents are right that stand in a pair with the query or one
    that equals it. Others with the score of the best right one come before it, as in
    `zoopress.evaluation.metrics.ranks`.

    Args:
        queries: embeddings [pairs, size].
        documents: embeddings [pairs, size].
        numbers: of queries and documents [pairs, 2].
    """
    import torch

    distinct, column = numbers[:, 1].unique(return_inverse=True)
    pool = documents[distinct]
    found = []
    for block in torch.arange(len(queries)).split(_BLOCK):
        scores = queries[block] @ pool.T
        same = numbers[block, :1] == numbers[:, 0]
        right = torch.zeros_like(scores, dtype=torch.bool)
        rows, pairs = same.nonzero(as_tuple=True)
        right[rows, column[pairs]] = True
        best = scores.masked_fill(~right, -torch.inf).amax(1, keepdim=True)
        # Not `scores >= best`: a score that is NaN must not be the better one.
        found.append(1 + (~right & ~(scores < best)).sum(1))
    return torch.cat(found)


def retrieval_metrics(ranks: Tensor, of: str = "") -> dict[str, float]:
    """Return recall at 1, 5 and 10, mean reciprocal rank and nDCG at 10 of ranks [queries].

    Args:
        ranks: from `best_ranks`.
        of: what the names begin with.
    """
    from zoopress.evaluation.metrics import ndcg_of_ranks, recall_of_ranks, reciprocal_of_ranks

    return {
        **{f"{of}recall_at_{k}": recall_of_ranks(ranks, k) for k in (1, 5, 10)},
        f"{of}mean_reciprocal_rank": reciprocal_of_ranks(ranks),
        f"{of}ndcg_at_10": ndcg_of_ranks(ranks, 10),
    }
