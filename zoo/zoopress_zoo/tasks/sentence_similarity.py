"""Sentence embedding: is each sentence's nearest neighbour still the same?"""

from __future__ import annotations

import platform
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, get_args

from zoopress.errors import CardError
from zoopress.store import digest
from zoopress.task import Batch, Samples, Split, Task
from zoopress_zoo.text import DOCSTRINGS, read_sentences

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

TEMPERATURE = 0.05
"""Cosine similarities are divided by it before the softmax, as contrastive training does."""


class SentenceSimilarity(Task):
    """Compares embeddings [samples, size].

    A sentence's label is its nearest neighbour among the others; its distribution is the softmax of
    the cosine similarities to the others over 0.05.
    """

    name = "sentence-similarity"

    def make_samples(self, split: Split) -> Samples:
        """Return sentences; those of the test split by length, to pad little.

        Raises:
            CardError: if there are too few.
        """
        from zoopress_zoo.sentence_encoder import load_tokenizer

        sentences = self._sentences(split)
        if split != "training":
            sentences = tuple(sorted(sentences, key=len))
        return _Sentences(load_tokenizer(self.folder), sentences)

    def forward(self, module: nn.Module, inputs: Any) -> Tensor:
        """Return embeddings."""
        embeddings: Tensor = module(**inputs)
        return embeddings

    def similarity(self, outputs: Sequence[Tensor]) -> Tensor | None:
        """Return cosine similarities to every other sentence, sharpened."""
        import torch

        embeddings = torch.nn.functional.normalize(torch.cat(list(outputs)), dim=1)
        scores = embeddings @ embeddings.T / TEMPERATURE
        return scores.fill_diagonal_(-torch.inf)

    def fingerprint(self) -> str:
        """Return a digest of the sentences."""
        if self.data.text == DOCSTRINGS:  # what they are follows from Python's version
            return f"{DOCSTRINGS} {platform.python_version()}"
        return digest([self._sentences(split) for split in get_args(Split)])

    def _sentences(self, split: Split) -> tuple[str, ...]:
        if self.data.text is None:
            raise CardError(
                f"Card {self.card.name!r}: the task {self.name!r} needs 'data.text', a text file "
                "with one sentence a line, or 'python-docstrings'."
            )
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

    def __init__(self, tokenizer: Any, sentences: Sequence[str]) -> None:
        self._tokenizer, self._texts = tokenizer, sentences

    def __len__(self) -> int:
        return len(self._texts)

    def batch(self, rows: Sequence[int], generator: torch.Generator | None = None) -> Batch:
        from zoopress_zoo.sentence_encoder import tokenize

        # A hidden length limit would be the architecture's; 256 is what most encoders take.
        return Batch(tokenize(self._tokenizer, [self._texts[row] for row in rows], 256))
