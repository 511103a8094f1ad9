"""Text retrieval: is the document that answers a query the nearest to it?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

from zoopress.tasks import Batch, Rows, Split
from zoopress_zoo.tasks.embedding import (
    TEMPERATURE,
    best_ranks,
    contrastive_loss,
    embed_pairs,
    encode_pairs,
    pair_numbers,
    retrieval_metrics,
)
from zoopress_zoo.tasks.text_task import TextTask

if TYPE_CHECKING:
    from torch import Tensor, nn


class TextRetrieval(TextTask):
    """Compares the embeddings of queries and documents [samples, 2, size].

    A row's document answers its query. It is looked for among all documents of the split, by cosine
    similarity.
    """

    name = "text-retrieval"
    metric = "ndcg_at_10"
    input_roles: ClassVar[tuple[str, ...]] = ("query", "document")
    target_roles: ClassVar[tuple[str, ...]] = ()
    synonyms: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "query": ("question", "anchor", "queries"),
        "document": ("positive", "passage", "answer", "context", "text"),
    }

    def batch(self, split: Split, rows: Rows, chosen: Sequence[int]) -> Batch:
        inputs = encode_pairs(self, rows.values("query", chosen), rows.values("document", chosen))
        return Batch(inputs, self._numbers(split)[list(chosen)])

    def forward(self, module: nn.Module, inputs: Any) -> Tensor:
        """Return the embeddings of queries and documents.

        Raises:
            CardError: if the model returns something else.
        """
        return embed_pairs(self, module, inputs)

    def loss(self, output: Tensor, targets: Any) -> Tensor:
        """Return InfoNCE with the batch's other documents as wrong ones, at temperature 0.05."""
        queries, documents = _normalized(output)
        return contrastive_loss(queries @ documents.T / TEMPERATURE, targets)

    def statistics(self, output: Tensor, targets: Any) -> dict[str, Tensor]:
        """Return embeddings of length 1, which `collect` makes ranks of."""
        queries, documents = _normalized(output)
        return {"query": queries, "document": documents, "numbers": targets}

    def collect(self, batches: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
        """Return the "rank" of each query's document among all of the split."""
        rows = super().collect(batches)
        return (
            {"rank": best_ranks(rows["query"], rows["document"], rows["numbers"])} if rows else {}
        )

    def metrics(self, statistics: Mapping[str, Tensor]) -> dict[str, float]:
        """Return recall at 1, 5 and 10, mean reciprocal rank and nDCG at 10."""
        return retrieval_metrics(statistics["rank"])

    def similarity(self, outputs: Sequence[Tensor]) -> Tensor | None:
        """Return the cosine similarities of queries to all documents, sharpened."""
        import torch

        queries, documents = _normalized(torch.cat(list(outputs)))
        return queries @ documents.T / TEMPERATURE

    def _numbers(self, split: Split) -> Tensor:
        if split not in self._numbered:
            rows = self.rows(split)
            every = range(len(rows))
            self._numbered[split] = pair_numbers(
                rows.values("query", every), rows.values("document", every)
            )
        return self._numbered[split]

    @cached_property
    def _numbered(self) -> dict[Split, Tensor]:
        return {}


def _normalized(pairs: Tensor) -> tuple[Tensor, Tensor]:
    """Return queries and documents [pairs, size] of length 1."""
    from torch.nn.functional import normalize

    first, second = normalize(pairs, dim=2).unbind(1)
    return first, second
