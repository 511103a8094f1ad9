"""Text generation: how well a causal language model tells the next token.

Documents are packed one after the other, each ended by the tokenizer's end token, and cut into
windows of one length that neither overlap nor are padded. A split has whole documents: no window of
one holds text of another's.
"""

from __future__ import annotations

import platform
import sys
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from zoopress.cards import Card
from zoopress.errors import CardError
from zoopress.store import digest
from zoopress.tasks import Batch, Part, Preprocessing, Samples, Split, row_digest
from zoopress.tasks.splits import LARGEST_VALIDATION
from zoopress_zoo.positions import within_positions
from zoopress_zoo.tasks.language_model import (
    affordable,
    language_model_metrics,
    token_loss,
    token_statistics,
)
from zoopress_zoo.tasks.text_task import TEXT_SYNONYMS, TextTask, find_tensor, is_list, run_module
from zoopress_zoo.text import DOCSTRINGS, read_documents

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

Document = str | Sequence[int]
_TOGETHER = 64  # documents tokenized at once
_WRITTEN = 16  # windows written at once


class WindowPreprocessing(Preprocessing):
    """How documents become windows."""

    context_length: int = Field(default=256, ge=2, description="tokens of a window")


class TextGeneration(TextTask):
    """Compares the scores of the next token [windows, tokens, vocabulary]."""

    name = "text-generation"
    metric = "perplexity"
    higher_is_better = False
    target_roles: ClassVar[tuple[str, ...]] = ()
    synonyms: ClassVar[Mapping[str, tuple[str, ...]]] = {"text": (*TEXT_SYNONYMS, "document")}
    other_data: ClassVar[tuple[str, ...]] = ("text",)
    preprocessing_type: ClassVar[type[Preprocessing]] = WindowPreprocessing

    def __init__(self, card: Card, folder: Path) -> None:
        super().__init__(card, folder)
        if self.data.groups:
            raise CardError(
                f"Card {card.name!r}: 'data.groups': a window of text has parts of several "
                f"documents, so the task {self.name!r} has no subgroups. Leave it out."
            )

    def make_samples(self, split: Split) -> Samples:
        """Return the windows of a split.

        Raises:
            CardError: if there are too few documents, or one is neither text nor a list.
        """
        return _Windows(self._windows(split))

    @property
    def batch_size(self) -> int:
        """As many windows as the card says, or fewer where their outputs are huge."""
        return affordable(self.data.batch_size, self._length, self._vocabulary)

    def forward(self, module: nn.Module, inputs: Any) -> Tensor:
        """Return the scores of the token after each one.

        Raises:
            CardError: if the model returns something else.
        """
        output = run_module(module, inputs)
        logits = find_tensor(output, "logits")
        if logits is None or logits.ndim != 3 or logits.shape[:2] != inputs["input_ids"].shape:
            raise self.unexpected(output, "token scores ('logits' [windows, tokens, vocabulary])")
        return logits

    def imagined(
        self, module: nn.Module, samples: int, generator: torch.Generator
    ) -> Sequence[Any] | None:
        """Return windows that a model of transformers writes, each from a token drawn evenly.

        Source: Liu et al. 2023, arXiv:2305.17888, section 2.1 (data-free distillation).
        """
        import torch
        from transformers import GenerationConfig, GenerationMixin

        if not isinstance(module, GenerationMixin):
            return None
        size = self.batch_size
        length, vocabulary = self._length, module.config.get_text_config().vocab_size
        first = torch.randint(vocabulary, (samples, 1), generator=generator)
        config = GenerationConfig(
            do_sample=True, top_k=0, max_length=length, min_length=length, pad_token_id=0
        )
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.manual_seed(int(torch.randint(1 << 62, (), generator=generator)))
            starts = first.to(module.device).split(_WRITTEN)
            written = torch.cat([module.generate(some, config) for some in starts]).cpu()
        return [{"input_ids": tokens} for tokens in written.split(size)]

    def loss(self, output: Tensor, targets: Any) -> Tensor:
        """Return the mean of −ln p of every token but the first of its window."""
        self._check(output, targets)
        return token_loss(output[:, :-1], targets[:, 1:])

    def statistics(self, output: Tensor, targets: Any) -> dict[str, Tensor]:
        """Return of each window "nll", "tokens" and "right"; see `token_statistics`."""
        self._check(output, targets)
        return token_statistics(output[:, :-1], targets[:, 1:])

    def metrics(self, statistics: Mapping[str, Tensor]) -> dict[str, float]:
        """Return perplexity, bits per token and next-token accuracy."""
        return language_model_metrics(statistics)

    def fingerprint(self) -> str:
        """Return a digest of the documents, and of Python's version where they follow from it."""
        if self.data.text is None:
            return super().fingerprint()
        if self.data.text == DOCSTRINGS:
            return f"documents {DOCSTRINGS} {platform.python_version()}"
        return digest(["documents", list(read_documents(self.data.text, self.card.root))])

    def show(self, split: Split, row: int) -> str | None:
        """Return the text of a window."""
        tokens = self._windows(split)[row].tolist()
        return str(self.tokenizer.decode(tokens)) if self._reads else " ".join(map(str, tokens))

    @property
    def _length(self) -> int:
        length = within_positions(self.folder, int(self.preprocessing.context_length))
        return length

    @cached_property
    def _vocabulary(self) -> int:
        return len(self.tokenizer) if self._reads else 1 + int(self._windows("test").max())

    @property
    def _reads(self) -> bool:
        """Whether documents are text, and not token ids already."""
        return isinstance(next(iter(self._documents["training"])), str)

    def _windows(self, split: Split) -> Tensor:
        """Return the tokens [windows, context_length] of a split."""
        import torch

        if split not in self._made:
            most = {
                "test": self.data.evaluation_samples,
                "calibration": self.data.calibration_samples,
                "validation": self.data.validation_samples or LARGEST_VALIDATION,
                "training": self.data.training_samples,
            }[split]
            wanted = sys.maxsize if most is None else most * self._length
            tokens = torch.cat([torch.zeros(0, dtype=torch.int64), *self._read(split, wanted)])
            count = min(len(tokens), wanted) // self._length
            self._made[split] = tokens[: count * self._length].unflatten(0, (-1, self._length))
        return self._made[split]

    def _read(self, split: Split, wanted: int) -> Iterator[Tensor]:
        """Yield the tokens of a split's documents, until there are as many as wanted."""
        found = 0
        for tokens in self._tokens(self._shares[split]):
            yield tokens
            found += len(tokens)
            if found >= wanted:
                return

    @cached_property
    def _made(self) -> dict[Split, Tensor]:
        return {}

    @cached_property
    def _shares(self) -> dict[Split, Sequence[Document]]:
        """The documents of each split.

        Raises:
            CardError: if there are too few for the windows that the card asks for.
        """
        free = dict(self._documents)
        shares: dict[Split, Sequence[Document]] = {}

        def take(split: Split, part: Part, count: int) -> None:
            shares[split], free[part] = free[part][:count], free[part][count:]

        def take_windows(split: Split, part: Part, key: str, windows: int) -> None:
            take(split, part, self._needed(key, windows, free[part]))

        data = self.data
        test: Part = "test" if "test" in free else "training"
        take_windows("test", test, "evaluation_samples", data.evaluation_samples)
        take_windows("calibration", "training", "calibration_samples", data.calibration_samples)
        if "validation" in free:
            take("validation", "validation", len(free["validation"]))
        elif data.validation_samples is not None:
            take_windows("validation", "training", "validation_samples", data.validation_samples)
        else:
            take("validation", "training", len(free["training"]) // 10)
        take("training", "training", len(free["training"]))
        return shares

    def _needed(self, key: str, windows: int, documents: Sequence[Document]) -> int:
        """Return how many documents make so many windows."""
        found = 0
        for count, tokens in enumerate(self._tokens(documents), start=1):
            found += len(tokens)
            if found >= windows * self._length:
                return count
        raise CardError(
            f"Card {self.card.name!r}: 'data.{key}' is {windows}, but the {len(documents)} "
            f"documents that are left make {found // self._length} windows of {self._length} "
            "tokens. Ask for fewer, here or for the other splits, or for a shorter "
            "'data.preprocessing.context_length', or bring more text."
        )

    def _tokens(self, documents: Sequence[Document]) -> Iterator[Tensor]:
        """Yield each document's tokens and, where a tokenizer made them, its end token."""
        import torch

        if not self._reads:
            yield from (torch.as_tensor(tokens, dtype=torch.int64) for tokens in documents)
            return
        end = self.tokenizer.eos_token_id
        end = self.tokenizer.sep_token_id if end is None else end
        for start in range(0, len(documents), _TOGETHER):
            some = list(documents[start : start + _TOGETHER])
            made = self.tokenizer(some, add_special_tokens=False, verbose=False)["input_ids"]
            for tokens in made:
                yield torch.tensor([*tokens, end] if end is not None else tokens)

    @cached_property
    def _documents(self) -> Mapping[Part, Sequence[Document]]:
        """The distinct documents of each part, in the order of their digests.

        One that is in several parts stays in the first of test, validation and training.
        """
        if self.data.text is not None:
            parts: dict[Part, Sequence[Document]] = {
                "training": read_documents(self.data.text, self.card.root)
            }
        else:
            parts = {part: self._column(name) for part, name in self.parts.items()}
        used: set[bytes] = set()
        found: dict[Part, Sequence[Document]] = {}
        order: tuple[Part, ...] = ("test", "validation", "training")
        for part in order:
            if part in parts:
                own = {
                    row_digest([text], self.data.split_seed): text
                    for text in parts[part]
                    if len(text)
                }
                found[part] = [own[key] for key in sorted(own.keys() - used)]
                used |= own.keys()
        if not found["training"]:
            raise CardError(f"Card {self.card.name!r}: the dataset has no text to learn from.")
        return found

    def _column(self, part: str) -> Sequence[Document]:
        """Return the documents of a part of the dataset, empty ones and missing ones as "".

        Raises:
            CardError: if one is neither text nor a list.
        """
        table, column = self.tables[part], self.columns["text"][0]
        found = table.values(column, range(len(table)))
        for row, value in enumerate(found):
            if not (value is None or isinstance(value, str) or is_list(value)):
                raise CardError(
                    f"Card {self.card.name!r}: column {column!r}, row {row} of part {part!r}: the "
                    f"document is {value!r}; it must be text, or a list of token ids."
                )
        return ["" if value is None else value for value in found]

    def _check(self, output: Tensor, targets: Tensor) -> None:
        largest = int(targets.max())
        if largest >= output.shape[-1]:
            raise CardError(
                f"Card {self.card.name!r}: the model scores {output.shape[-1]} tokens, and the "
                f"text has token {largest}. The tokenizer is not the model's."
            )


class _Windows(Samples):
    """Windows of tokens, which are both what is fed and what is to be told."""

    def __init__(self, windows: Tensor) -> None:
        self._windows = windows

    def __len__(self) -> int:
        return len(self._windows)

    def batch(self, rows: Sequence[int], generator: torch.Generator | None = None) -> Batch:
        tokens = self._windows[list(rows)]
        return Batch({"input_ids": tokens}, tokens)
