"""Text classification: one class for a text, or for two that belong together."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from zoopress.tasks import Batch, RewrittenRows, Rows, Split
from zoopress_zoo.tasks.classification import Classification
from zoopress_zoo.tasks.text_task import (
    PAIR_SYNONYMS,
    TEXT_SYNONYMS,
    TextTask,
    find_tensor,
    run_module,
)

if TYPE_CHECKING:
    from torch import Tensor, nn


class TextClassification(TextTask, Classification):
    """Feeds texts, or pairs of them, to a classifier [samples, classes]."""

    name = "text-classification"
    optional_roles: ClassVar[tuple[str, ...]] = ("text_pair",)
    synonyms: ClassVar[Mapping[str, tuple[str, ...]]] = {
        **Classification.synonyms,
        "text": TEXT_SYNONYMS,
        "text_pair": PAIR_SYNONYMS,
    }

    def batch(self, split: Split, rows: Rows, chosen: Sequence[int]) -> Batch:
        pairs = rows.values("text_pair", chosen) if "text_pair" in rows.columns else None
        inputs = self.encode(rows.values("text", chosen), pairs)
        return Batch(inputs, self.labels(split, chosen))

    def rewritten(
        self, split: Split, rows: Sequence[int], change: Callable[[str], str]
    ) -> Batch | None:
        texts = RewrittenRows(self.rows(split), change)
        return self.batch(split, texts, rows) if texts.of_strings("text") else None

    def forward(self, module: nn.Module, inputs: Any) -> Tensor:
        """Return class scores.

        Raises:
            CardError: if the model returns something else.
        """
        output = run_module(module, inputs)
        logits = find_tensor(output, "logits")
        if logits is None or logits.ndim != 2:
            raise self.unexpected(output, "class scores ('logits' [samples, classes])")
        return logits
