"""Text to text: how well an encoder-decoder tells each token of the target from those before."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from zoopress.errors import CardError
from zoopress.tasks import Batch, Preprocessing, Rows, Samples, Split
from zoopress_zoo.tasks.language_model import (
    IGNORED,
    affordable,
    language_model_metrics,
    token_loss,
    token_statistics,
)
from zoopress_zoo.tasks.text_task import (
    TextPreprocessing,
    TextTask,
    check_texts,
    find_tensor,
    pad_tokens,
    run_module,
)
from zoopress_zoo.transformers_config import read_config

if TYPE_CHECKING:
    from torch import Tensor, nn


class PairPreprocessing(TextPreprocessing):
    """How source and target become tokens."""

    prefix: str = Field(default="", description="stands before every source: 'summarize: '")
    start_token: int | None = Field(
        default=None,
        ge=0,
        description="what decoding starts from; by default config.json's decoder_start_token_id",
    )


class TextToText(TextTask):
    """Feeds a source and the target so far, and compares the next token's scores.

    The decoder gets the right tokens before each one, not its own (teacher forcing).
    """

    name = "text-to-text"
    metric = "perplexity"
    higher_is_better = False
    input_roles: ClassVar[tuple[str, ...]] = ("source",)
    target_roles: ClassVar[tuple[str, ...]] = ("target",)
    synonyms: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "source": ("text", "input", "document", "article", "dialogue", "question"),
        "target": ("summary", "output", "highlights", "translation", "answer"),
    }
    preprocessing_type: ClassVar[type[Preprocessing]] = PairPreprocessing

    def make_samples(self, split: Split) -> Samples:
        """Return the rows of a split.

        Raises:
            CardError: if there are too few, a column is missing, or a text is empty.
        """
        check_texts(self.rows(split), "target", self.card.name)
        return super().make_samples(split)

    def batch(self, split: Split, rows: Rows, chosen: Sequence[int]) -> Batch:
        import torch

        sources, targets = rows.values("source", chosen), rows.values("target", chosen)
        if isinstance(sources[0], str):
            sources = [self.preprocessing.prefix + source for source in sources]
        if isinstance(targets[0], str):
            targets = self.tokenizer(
                text_target=targets, truncation=True, max_length=self.max_tokens
            )["input_ids"]
        padded = pad_tokens(targets, self._most_ids)
        labels, mask = padded["input_ids"], padded["attention_mask"]
        # What stands at padding is never looked at by the tokens before it.
        start = torch.full((len(labels), 1), self._start)
        inputs = {
            **self.encode(sources),
            "decoder_input_ids": torch.cat([start, labels[:, :-1]], 1),
        }
        return Batch(inputs, labels.masked_fill(mask == 0, IGNORED))

    @property
    def batch_size(self) -> int:
        """As many samples as the card says, or fewer where their outputs may be huge."""
        if not isinstance(self.rows("test").values("target", [0])[0], str):
            return self.data.batch_size
        return affordable(self.data.batch_size, self.max_tokens, len(self.tokenizer))

    def forward(self, module: nn.Module, inputs: Any) -> Tensor:
        """Return the scores of each token of the target [samples, tokens, vocabulary].

        Raises:
            CardError: if the model returns something else.
        """
        output = run_module(module, inputs)
        logits = find_tensor(output, "logits")
        wanted = inputs["decoder_input_ids"].shape
        if logits is None or logits.ndim != 3 or logits.shape[:2] != wanted:
            raise self.unexpected(
                output, f"token scores ('logits' [{wanted[0]}, {wanted[1]}, vocabulary])"
            )
        return logits

    def loss(self, output: Tensor, targets: Any) -> Tensor:
        """Return the mean of −ln p of the targets' tokens."""
        return token_loss(output, targets)

    def statistics(self, output: Tensor, targets: Any) -> dict[str, Tensor]:
        """Return of each sample "nll", "tokens" and "right"; see `token_statistics`."""
        return token_statistics(output, targets)

    def metrics(self, statistics: Mapping[str, Tensor]) -> dict[str, float]:
        """Return perplexity, bits per token, token accuracy, and exact match.

        A sample whose every token is right, the end token included, is one that greedy generation
        tells exactly, and the other way round: no text need be generated to know.
        """
        exact = statistics["right"] == statistics["tokens"]
        return {
            **language_model_metrics(statistics),
            "exact_match": float(exact.double().mean()),
        }

    @cached_property
    def _start(self) -> int:
        given: int | None = self.preprocessing.start_token
        if given is not None:
            return given
        config = read_config(self.folder) if (self.folder / "config.json").is_file() else {}
        start = config.get("decoder_start_token_id", config.get("bos_token_id"))
        if not isinstance(start, int):
            raise CardError(
                f"Card {self.card.name!r}: config.json does not tell what decoding starts from "
                "(decoder_start_token_id). Say so: 'data: {preprocessing: {start_token: 0}}'."
            )
        return start
