"""A module that embeds sentences: a transformer, pooling over its tokens, and what comes after.

Poolings compute what sentence-transformers' class of that name does.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from zoopress.errors import SourceError, cautious, nearest
from zoopress_zoo.sentence_architecture import read_transformer_config

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

_TRANSFORMER_FOLDER = "0_Transformer"
_TOKENIZERS = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.txt")


class Dense(nn.Module):
    """A linear layer with an activation, and perhaps a way around both."""

    def __init__(
        self, inputs: int, outputs: int, bias: bool, activation: nn.Module, residual: bool
    ) -> None:
        super().__init__()
        self.linear = nn.Linear(inputs, outputs, bias=bias)
        self.activation = activation
        self.around = residual
        if residual and inputs != outputs:
            self.residual = nn.Linear(inputs, outputs, bias=False)

    def forward(self, input: Tensor) -> Tensor:
        """Return [batch, outputs] of [batch, inputs]."""
        result: Tensor = self.activation(self.linear(input))
        if not self.around:
            return result
        return result + (self.residual(input) if hasattr(self, "residual") else input)


class Normalize(nn.Module):
    """Gives embeddings length 1."""

    def forward(self, input: Tensor) -> Tensor:
        """Return [batch, size]."""
        return nn.functional.normalize(input, dim=1)


class SentenceEncoder(nn.Module):
    """Embeds sentences.

    Args:
        transformer: returns `last_hidden_state` [batch, tokens, size].
        pooling: one of sentence-transformers' poolings, or several, whose results are joined.
        normalize: whether embeddings get length 1.
        max_tokens: longer sentences are cut.
        modules: what embeddings go through after pooling.
    """

    def __init__(
        self,
        transformer: nn.Module,
        pooling: str | Sequence[str],
        normalize: bool,
        max_tokens: int,
        modules: Iterable[nn.Module] = (),
    ) -> None:
        super().__init__()
        self.transformer = transformer
        self.pooling = (pooling,) if isinstance(pooling, str) else tuple(pooling)
        self.normalize = normalize
        self.max_tokens = max_tokens
        self.modules_ = nn.ModuleList(modules)
        self.tokenizer: Any = None
        self.prompts: Mapping[str, str] = {}
        self.default_prompt: str | None = None

    def forward(self, input_ids: Tensor, attention_mask: Tensor, **others: Tensor) -> Tensor:
        """Return embeddings [batch, size] of token ids [batch, tokens]."""
        output: Any = self.transformer(input_ids=input_ids, attention_mask=attention_mask, **others)
        hidden: Tensor = output.last_hidden_state
        pooled = torch.cat([pool(hidden, attention_mask, kind) for kind in self.pooling], -1)
        for module in self.modules_:
            pooled = module(pooled)
        return nn.functional.normalize(pooled, dim=1) if self.normalize else pooled

    def encode(
        self,
        sentences: str | Sequence[str],
        batch_size: int = 32,
        *,
        prompt_name: str | None = None,
        prompt: str | None = None,
    ) -> Tensor:
        """Return embeddings [sentences, size] of text, or [size] of a single sentence.

        Args:
            sentences: the text; a string is one sentence.
            batch_size: sentences in one forward pass.
            prompt_name: one of the model's `prompts`, to stand before every sentence.
            prompt: the same, but the text itself.

        Raises:
            TypeError: if something else than text is given.
            ValueError: if the encoder came without a tokenizer, or has no such prompt.
        """
        if isinstance(sentences, str):
            return self.encode([sentences], batch_size, prompt_name=prompt_name, prompt=prompt)[0]
        sentences = list(sentences)
        if wrong := [each for each in sentences if not isinstance(each, str)]:
            kind = type(wrong[0]).__name__
            raise TypeError(
                f"encode takes a sentence or a list of sentences, and there is a {kind} in it: "
                f"{str(wrong[0])[:100]!r}"
            )
        if not sentences:
            return self.encode([""], batch_size, prompt_name=prompt_name, prompt=prompt)[:0]
        if self.tokenizer is None:
            raise ValueError("this encoder has no tokenizer; load it with zoopress.load")
        before = self._prompt(prompt_name) if prompt is None else prompt
        texts = [before + sentence for sentence in sentences]
        rows = []
        with torch.no_grad():
            for start in range(0, len(texts), batch_size):
                batch = tokenize(self.tokenizer, texts[start : start + batch_size], self.max_tokens)
                rows.append(self(**batch))
        return torch.cat(rows)

    def _prompt(self, name: str | None) -> str:
        chosen = self.default_prompt if name is None else name
        if chosen is None:
            return ""
        if chosen not in self.prompts:
            raise ValueError(f"there is no prompt {chosen!r}.{nearest(chosen, self.prompts)}")
        return self.prompts[chosen]


def pool(hidden: Tensor, attention_mask: Tensor, kind: str) -> Tensor:
    """Return one vector [batch, size] for the tokens [batch, tokens, size] that the mask shows.

    Args:
        hidden: the tokens' vectors.
        attention_mask: [batch, tokens], 1 where there is a token; padding may be on either side.
        kind: one of sentence-transformers' poolings.

    Source: sentence-transformers 6.2, `Pooling._forward_padded`.
    """
    mask = attention_mask[..., None].to(hidden.dtype)
    first = attention_mask.to(torch.int32).argmax(1)  # 0, unless padding is on the left
    if kind == "cls":
        return hidden.gather(1, first[:, None, None].expand(-1, 1, hidden.shape[-1])).squeeze(1)
    if kind == "max":
        return hidden.masked_fill(mask == 0, -torch.inf).amax(1)
    if kind == "lasttoken":
        tokens = hidden.shape[1]
        last = tokens - 1 - attention_mask.to(torch.int32).flip(1).argmax(1)
        index = last[:, None, None].expand(-1, 1, hidden.shape[-1])
        return (hidden * mask).gather(1, index).squeeze(1)
    # Sums of many tokens lose too much in 16 bits.
    exact = torch.promote_types(hidden.dtype, torch.float32)
    weights = mask.to(exact)
    if kind == "weightedmean":
        positions = torch.arange(1, hidden.shape[1] + 1, device=hidden.device)
        weights = weights * (positions - first[:, None])[..., None]
    total = (hidden * weights).sum(1, dtype=exact)
    count = weights.sum(1).clamp(min=1e-9)
    return (total / (count.sqrt() if kind == "mean_sqrt_len_tokens" else count)).to(hidden.dtype)


def load_tokenizer(folder: Path) -> Any:
    """Return the tokenizer of a model's folder, never running code from it.

    It is in the folder, beside the transformer of a sentence encoder, or inside a GGUF file.

    Raises:
        SourceError: if it cannot be read.
    """
    from transformers import AutoTokenizer

    if not any((folder / name).is_file() for name in _TOKENIZERS):
        if (folder / _TRANSFORMER_FOLDER).is_dir():
            folder = folder / _TRANSFORMER_FOLDER
        elif list(folder.glob("*.gguf")):
            from zoopress_zoo.gguf import load_gguf_tokenizer

            return load_gguf_tokenizer(folder)
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False
        )
    except Exception as error:  # tokenizers raises bare exceptions
        reason = cautious(f"{type(error).__name__}: {error}").splitlines()[0][:400]
        raise SourceError(f"{folder}: its tokenizer cannot be loaded: {reason}.") from error
    if read_transformer_config(folder).get("do_lower_case"):
        _lower_case(tokenizer)
    return tokenizer


def _lower_case(tokenizer: Any) -> None:
    """Make a tokenizer lower its input's case, whatever else it does."""
    from tokenizers import normalizers

    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        tokenizer.do_lower_case = True
        return
    now = backend.normalizer
    parts = [now] if now is not None else []
    backend.normalizer = normalizers.Sequence([normalizers.Lowercase(), *parts])


def tokenize(tokenizer: Any, sentences: Sequence[str], max_tokens: int) -> dict[str, Tensor]:
    """Return token ids and masks [sentences, tokens], padded to the longest."""
    batch = tokenizer(
        list(sentences), padding=True, truncation=True, max_length=max_tokens, return_tensors="pt"
    )
    return dict(batch)
