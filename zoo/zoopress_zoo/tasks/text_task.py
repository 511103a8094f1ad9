"""What tasks on text share: how it is tokenized, and how a module is run on tokens."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from zoopress.errors import CardError
from zoopress.tasks import Batch, DatasetTask, Preprocessing, Rows, Samples, Split
from zoopress_zoo.positions import within_positions

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

Inputs = dict[str, Any]
"""Tensors by argument name: `input_ids` [samples, tokens], `attention_mask`, …"""

TEXT_SYNONYMS = ("sentence", "sentence1", "text1", "content", "review", "premise", "question1")
PAIR_SYNONYMS = ("sentence2", "text2", "hypothesis", "question2")


class TextPreprocessing(Preprocessing):
    """How text becomes tokens."""

    max_tokens: int = Field(default=256, ge=2, description="longer texts are cut")


class TextTask(DatasetTask):
    """A task whose samples are texts.

    A value of a text column is a string, which the tokenizer in the model's folder cuts into
    tokens, or a list of token ids, for models without one.
    """

    input_roles: ClassVar[tuple[str, ...]] = ("text",)
    synonyms: ClassVar[Mapping[str, tuple[str, ...]]] = {"text": TEXT_SYNONYMS}
    preprocessing_type: ClassVar[type[Preprocessing]] = TextPreprocessing

    def make_samples(self, split: Split) -> Samples:
        """Return the rows of a split.

        Raises:
            CardError: if there are too few, a column is missing, or a text is empty.
        """
        rows = self.rows(split)
        for role in (*self.input_roles, *self.optional_roles):
            if role in rows.columns:
                check_texts(rows, role, self.card.name)
        return _Texts(self, split, rows)

    def batch(self, split: Split, rows: Rows, chosen: Sequence[int]) -> Batch:
        """Return some rows of a split, tokenized, with their targets."""
        raise NotImplementedError

    @cached_property
    def tokenizer(self) -> Any:
        """The tokenizer in the model's folder."""
        from zoopress_zoo.sentence_encoder import load_tokenizer

        tokenizer = load_tokenizer(self.folder)
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
        return tokenizer

    @property
    def max_tokens(self) -> int:
        """After how many tokens a text is cut: the card's, or fewer if the model takes fewer."""
        return min(self._most_ids, int(self.tokenizer.model_max_length))

    @cached_property
    def _most_ids(self) -> int:
        """The same of texts that are token ids already."""
        return within_positions(self.folder, int(self.preprocessing.max_tokens))

    def encode(self, texts: Sequence[Any], pairs: Sequence[Any] | None = None) -> Inputs:
        """Return token ids and masks [texts, tokens], padded to the longest.

        Args:
            texts: strings, or lists of token ids.
            pairs: second strings that belong to the first ones.
        """
        if not isinstance(texts[0], str):
            return pad_tokens(texts, self._most_ids)
        both = (list(texts),) if pairs is None else (list(texts), list(pairs))
        return dict(
            self.tokenizer(
                *both,
                padding=getattr(self.preprocessing, "padding", True),
                truncation=True,
                max_length=self.max_tokens,
                return_tensors="pt",
            )
        )

    def show(self, split: Split, row: int) -> str | None:
        """Return the texts of a sample."""
        if not self.labelled:
            return None
        rows = self.rows(split)
        roles = [role for role in (*self.input_roles, *self.optional_roles) if role in rows.columns]
        values = [rows.values(role, [row])[0] for role in roles]
        return "\n".join(value if isinstance(value, str) else _listed(value) for value in values)

    def unexpected(self, output: Any, expected: str) -> CardError:
        """Return the error of a model whose output is not what the task expects."""
        return CardError(
            f"Card {self.card.name!r}: the task {self.name!r} expects {expected} of the model, and "
            f"got {describe(output)}. Use a model for this task, or another task: 'fidelity' takes "
            "any output."
        )


class _Texts(Samples):
    """The rows of a split, tokenized when they are asked for."""

    def __init__(self, task: TextTask, split: Split, rows: Rows) -> None:
        self._task, self._split, self._rows = task, split, rows

    def __len__(self) -> int:
        return len(self._rows)

    def batch(self, rows: Sequence[int], generator: torch.Generator | None = None) -> Batch:
        return self._task.batch(self._split, self._rows, rows)


def check_texts(rows: Rows, role: str, card: str) -> None:
    """Raise a CardError if a row has no text, naming it."""
    for row, value in enumerate(rows.values(role, range(len(rows)))):
        empty = (
            not value.strip() if isinstance(value, str) else not is_list(value) or not len(value)
        )
        if empty:
            raise CardError(
                f"Card {card!r}: column {rows.columns[role][0]!r}, {rows.where(row)}: the {role} "
                f"is {value!r}; it must be text that is not empty, or a list of token ids. Leave "
                "such rows out."
            )


def pad_tokens(lists: Sequence[Sequence[int]], most: int) -> Inputs:
    """Return lists of token ids as tensors [lists, tokens], padded with 0 on the right."""
    import torch

    cut = [torch.as_tensor(tokens, dtype=torch.int64)[:most] for tokens in lists]
    pad = torch.nn.utils.rnn.pad_sequence
    return {
        "input_ids": pad(cut, batch_first=True),
        "attention_mask": pad([torch.ones_like(tokens) for tokens in cut], batch_first=True),
    }


def run_module(module: nn.Module, inputs: Inputs) -> Any:
    """Run a module on those of the inputs that it takes.

    A module that takes none of them by name, such as one of the user's own, gets the first,
    the token ids, alone.
    """
    parameters = inspect.signature(module.forward).parameters.values()
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return module(**inputs)
    names = {p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    taken = {name: value for name, value in inputs.items() if name in names}
    return module(**taken) if taken else module(next(iter(inputs.values())))


def find_tensor(output: Any, *names: str) -> Tensor | None:
    """Return the tensor that a model returned, alone, under one of the names, or first in a tuple.

    None if there is none.
    """
    from torch import Tensor

    if isinstance(output, Tensor):
        return output
    if isinstance(output, Mapping):
        return next((output[name] for name in names if isinstance(output.get(name), Tensor)), None)
    if isinstance(output, (tuple, list)):
        return next((value for value in output if isinstance(value, Tensor)), None)
    return None


def describe(output: Any) -> str:
    """Say what a model returned."""
    from torch import Tensor

    if isinstance(output, Tensor):
        return f"a tensor {list(output.shape)}"
    if isinstance(output, Mapping):
        shown = ", ".join(
            f"{name} {list(v.shape)}" for name, v in output.items() if hasattr(v, "shape")
        )
        return f"{type(output).__name__} with {shown or 'no tensor'}"
    return type(output).__name__


def is_list(value: Any) -> bool:
    """Tell whether a value is a list, as numpy and Parquet have them as well."""
    return isinstance(value, (list, tuple)) or getattr(value, "ndim", 0) == 1


def _listed(values: Any) -> str:
    return " ".join(map(str, values))
