"""Sentence embedding: is each sentence's nearest neighbour still the same?"""

from __future__ import annotations

import platform
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from zoopress.errors import CardError
from zoopress.store import digest
from zoopress.task import Split, Task
from zoopress_zoo.text import DOCSTRINGS, read_sentences

if TYPE_CHECKING:
    from torch import Tensor, nn

TEMPERATURE = 0.05
"""Cosine similarities are divided by it before the softmax, as contrastive training does."""


class SentenceSimilarity(Task):
    """Compares embeddings [samples, size].

    A sentence's label is its nearest neighbour among the others; its distribution is the softmax of
    the cosine similarities to the others over 0.05.
    """

    name = "sentence-similarity"

    def make_batches(self, split: Split) -> Sequence[Any]:
        """Return tokenized sentences, of similar length within a batch.

        Raises:
            CardError: if there are too few sentences.
        """
        from zoopress_zoo.sentence_encoder import load_tokenizer, tokenize

        # A hidden length limit would be the architecture's; 256 is what most encoders take.
        tokenizer = load_tokenizer(self.folder)
        sentences = sorted(self._sentences(split), key=len)
        size = self.data.batch_size
        return [
            tokenize(tokenizer, sentences[start : start + size], 256)
            for start in range(0, len(sentences), size)
        ]

    def call(self, module: nn.Module, batch: Any) -> Tensor:
        """Return embeddings."""
        import torch

        with torch.inference_mode():
            embeddings: Tensor = module(**batch)
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
        return digest([self._sentences("calibration"), self._sentences("evaluation")])

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
        return sentences[:first] if split == "evaluation" else sentences[first : first + count]
