"""A module that embeds sentences: a transformer, pooling over its tokens, often normalization."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from zoopress.errors import SourceError

if TYPE_CHECKING:
    from collections.abc import Sequence


class SentenceEncoder(nn.Module):
    """Embeds sentences.

    Args:
        transformer: returns `last_hidden_state` [batch, tokens, size].
        pooling: "mean", "cls" or "max" over the tokens that the attention mask shows.
        normalize: whether embeddings get length 1.
        max_tokens: longer sentences are cut.
    """

    def __init__(
        self, transformer: nn.Module, pooling: str, normalize: bool, max_tokens: int
    ) -> None:
        super().__init__()
        self.transformer = transformer
        self.pooling = pooling
        self.normalize = normalize
        self.max_tokens = max_tokens
        self.tokenizer: Any = None

    def forward(self, input_ids: Tensor, attention_mask: Tensor, **others: Tensor) -> Tensor:
        """Return embeddings [batch, size] of token ids [batch, tokens]."""
        output: Any = self.transformer(input_ids=input_ids, attention_mask=attention_mask, **others)
        hidden: Tensor = output.last_hidden_state
        mask = attention_mask[..., None].to(hidden.dtype)
        if self.pooling == "cls":
            pooled = hidden[:, 0]
        elif self.pooling == "max":
            pooled = hidden.masked_fill(mask == 0, -torch.inf).amax(1)
        else:
            pooled = (hidden * mask).sum(1) / mask.sum(1).clamp(min=1e-9)
        return nn.functional.normalize(pooled, dim=1) if self.normalize else pooled

    def encode(self, sentences: Sequence[str], batch_size: int = 32) -> Tensor:
        """Return embeddings [sentences, size] of text.

        Raises:
            ValueError: if the encoder came without a tokenizer.
        """
        if self.tokenizer is None:
            raise ValueError("this encoder has no tokenizer; load it with zoopress.load")
        rows = []
        with torch.inference_mode():
            for start in range(0, len(sentences), batch_size):
                batch = tokenize(
                    self.tokenizer, sentences[start : start + batch_size], self.max_tokens
                )
                rows.append(self(**batch))
        return torch.cat(rows)


def load_tokenizer(folder: Path) -> Any:
    """Return the folder's tokenizer, never running code from it.

    Raises:
        SourceError: if it cannot be read.
    """
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # tokenizers raises bare exceptions
        reason = f"{type(error).__name__}: {error}".splitlines()[0][:400]
        raise SourceError(f"{folder}: its tokenizer cannot be loaded: {reason}.") from error


def tokenize(tokenizer: Any, sentences: Sequence[str], max_tokens: int) -> dict[str, Tensor]:
    """Return token ids and masks [sentences, tokens], padded to the longest."""
    batch = tokenizer(
        list(sentences), padding=True, truncation=True, max_length=max_tokens, return_tensors="pt"
    )
    return dict(batch)
