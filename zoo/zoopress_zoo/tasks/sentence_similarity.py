"""Sentence embedding: is each sentence's nearest neighbour still the same, are pairs as close?"""

from __future__ import annotations

import math
import platform
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, get_args

from pydantic import Field

from zoopress.errors import CardError
from zoopress.store import digest
from zoopress.tasks import Batch, Preprocessing, RewrittenRows, Rows, Samples, Split
from zoopress_zoo.tasks.embedding import TEMPERATURE, embed, embed_pairs, encode_pairs
from zoopress_zoo.tasks.text_task import (
    PAIR_SYNONYMS,
    TEXT_SYNONYMS,
    TextPreprocessing,
    TextTask,
)
from zoopress_zoo.text import DOCSTRINGS, read_sentences

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn


class SimilarityPreprocessing(TextPreprocessing):
    """How pairs become tokens, and scores similarities."""

    scores: tuple[float, float] | None = Field(
        default=None,
        description="scores of pairs that mean nothing and the same, cosines 0 and 1, when the "
        "model learns; by default the smallest and largest of the training split",
    )


class SentenceSimilarity(TextTask):
    """Compares embeddings: of sentences [samples, size], or of scored pairs [samples, 2, size].

    A sentence's label is its nearest neighbour among the others; its distribution is the softmax of
    the cosine similarities to the others over 0.05.
    """

    name = "sentence-similarity"
    metric = "spearman"
    input_roles: ClassVar[tuple[str, ...]] = ("sentence1", "sentence2")
    target_roles: ClassVar[tuple[str, ...]] = ("score",)
    synonyms: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "sentence1": ("text", *TEXT_SYNONYMS),
        "sentence2": PAIR_SYNONYMS,
        "score": ("similarity_score", "similarity", "label", "labels"),
    }
    other_data: ClassVar[tuple[str, ...]] = ("text",)
    preprocessing_type: ClassVar[type[Preprocessing]] = SimilarityPreprocessing

    def make_samples(self, split: Split) -> Samples:
        """Return pairs in the dataset's order; or sentences, but in training by length.

        Raises:
            CardError: if there are too few, one is empty, or a score is no number.
        """
        if self.labelled:
            self._check_scores(split)
            return super().make_samples(split)
        return _Sentences(self, self._in_order(split))

    def batch(self, split: Split, rows: Rows, chosen: Sequence[int]) -> Batch:
        import torch

        inputs = encode_pairs(
            self, rows.values("sentence1", chosen), rows.values("sentence2", chosen)
        )
        return Batch(inputs, torch.tensor(self._scores(rows, chosen)))

    def rewritten(
        self, split: Split, rows: Sequence[int], change: Callable[[str], str]
    ) -> Batch | None:
        if not self.labelled:
            sentences = self._in_order(split)
            return Batch(self.encode([change(sentences[row]) for row in rows]))
        pairs = RewrittenRows(self.rows(split), change)
        return self.batch(split, pairs, rows) if pairs.of_strings("sentence1") else None

    def forward(self, module: nn.Module, inputs: Any) -> Tensor:
        """Return embeddings.

        Raises:
            CardError: if the model returns something else.
        """
        run = embed_pairs if self.labelled else embed
        return run(self, module, inputs)

    def loss(self, output: Tensor, targets: Any) -> Tensor:
        """Return the mean squared distance of pairs' cosines from their scores, scaled to 0 … 1."""
        if not self.labelled:
            return super().loss(output, targets)
        low, high = self._range
        wanted = (targets - low) / (high - low)
        loss: Tensor = (_cosines(output) - wanted.to(output.dtype)).square().mean()
        return loss

    def statistics(self, output: Tensor, targets: Any) -> dict[str, Tensor]:
        """Return of each pair its cosine and its score."""
        return {"cosine": _cosines(output.double()), "score": targets}

    def metrics(self, statistics: Mapping[str, Tensor]) -> dict[str, float]:
        """Return the correlations of cosines with scores, by rank (Spearman) and linear (Pearson).

        Raises:
            ValueError: if all scores are the same.
        """
        from zoopress.evaluation.metrics import pearson, spearman

        if not statistics:
            return {}
        pairs = statistics["cosine"], statistics["score"]
        return {"spearman": spearman(*pairs), "pearson": pearson(*pairs)}

    def similarity(self, outputs: Sequence[Tensor]) -> Tensor | None:
        """Return cosine similarities to every other sentence, sharpened."""
        import torch

        joined = torch.cat(list(outputs)).flatten(0, -2)
        embeddings = torch.nn.functional.normalize(joined, dim=1)
        scores = embeddings @ embeddings.T / TEMPERATURE
        return scores.fill_diagonal_(-torch.inf)

    def label_names(self) -> Sequence[str]:
        """Return the sentences of the test split: each may be another's nearest neighbour."""
        return () if self.labelled else self._in_order("test")

    def show(self, split: Split, row: int) -> str | None:
        """Return the texts of a sample."""
        return super().show(split, row) if self.labelled else self._in_order(split)[row]

    def fingerprint(self) -> str:
        """Return a digest of the sentences."""
        if self.labelled:
            return super().fingerprint()
        if self.data.text == DOCSTRINGS:  # what they are follows from Python's version
            return f"{DOCSTRINGS} {platform.python_version()}"
        return digest([self._sentences(split) for split in get_args(Split)])

    @cached_property
    def _range(self) -> tuple[float, float]:
        """The scores that mean cosines 0 and 1."""
        given: tuple[float, float] | None = self.preprocessing.scores
        if given is None:
            rows = self.rows("training")
            scores = self._scores(rows, range(len(rows)))
            given = min(scores), max(scores)
        if given[0] == given[1]:
            raise CardError(
                f"Card {self.card.name!r}: all scores to learn from are {given[0]}. Say which mean "
                "nothing and the same: 'data: {preprocessing: {scores: [0, 5]}}'."
            )
        return given

    def _scores(self, rows: Rows, chosen: Sequence[int]) -> list[float]:
        return [float(score) for score in rows.values("score", chosen)]

    def _check_scores(self, split: Split) -> None:
        rows = self.rows(split)
        scores = rows.values("score", range(len(rows)))
        for row, score in enumerate(scores):
            try:
                good = math.isfinite(float(score))
            except (TypeError, ValueError):
                good = False
            if not good:
                raise CardError(
                    f"Card {self.card.name!r}: column {rows.columns['score'][0]!r}, "
                    f"{rows.where(row)}: the score is {score!r}; it must be a number."
                )
        if split == "test" and len(set(map(float, scores))) < 2:
            raise CardError(
                f"Card {self.card.name!r}: all {len(scores)} scores of the test split are "
                f"{scores[0]}, with which nothing correlates. Bring pairs with different ones."
            )

    def _in_order(self, split: Split) -> tuple[str, ...]:
        """Return the sentences of a split as its samples are: but in training by length."""
        sentences = self._sentences(split)
        return sentences if split == "training" else tuple(sorted(sentences, key=len))

    def _sentences(self, split: Split) -> tuple[str, ...]:
        assert self.data.text is not None
        sentences = read_sentences(self.data.text, self.card.root)
        first, count = self.data.evaluation_samples, self.data.calibration_samples
        if len(sentences) < first + count:
            raise CardError(
                f"Card {self.card.name!r}: {len(sentences)} sentences are too few for "
                f"{first} evaluation_samples and {count} calibration_samples."
            )
        second = first + count
        left = len(sentences) - second
        third = second + (self.data.validation_samples or min(2000, left // 10))
        fourth = third + (self.data.training_samples or left)
        bounds = {
            "test": (0, first),
            "calibration": (first, second),
            "validation": (second, third),
            "training": (third, fourth),
        }
        start, stop = bounds[split]
        return sentences[start:stop]


class _Sentences(Samples):
    """Sentences, tokenized when they are asked for."""

    def __init__(self, task: SentenceSimilarity, sentences: Sequence[str]) -> None:
        self._task, self._texts = task, sentences

    def __len__(self) -> int:
        return len(self._texts)

    def batch(self, rows: Sequence[int], generator: torch.Generator | None = None) -> Batch:
        return Batch(self._task.encode([self._texts[row] for row in rows]))


def _cosines(pairs: Tensor) -> Tensor:
    """Return the cosine of the two embeddings of each pair [pairs, 2, size]."""
    from torch.nn.functional import cosine_similarity

    return cosine_similarity(pairs[:, 0], pairs[:, 1], dim=1)
