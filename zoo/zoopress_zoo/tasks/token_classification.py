"""Token classification: a tag for each word, such as names of people and places."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

from zoopress.errors import CardError
from zoopress.tasks import Batch, Rows, Samples, Split
from zoopress_zoo.labels import LabelSpace, find_label_space, first_places, model_label_names
from zoopress_zoo.tasks.language_model import IGNORED, token_loss, token_statistics
from zoopress_zoo.tasks.text_task import Inputs, TextTask, find_tensor, pad_tokens, run_module

if TYPE_CHECKING:
    from torch import Tensor, nn

_IOB2 = re.compile(r"O|[BI]-.+")


class TokenClassification(TextTask):
    """Feeds lists of words, and looks at the first token of each.

    Words are a list of strings, or of token ids for models without a tokenizer; there is one tag a
    word, `IGNORED` (−100) for a word that is not looked at.
    """

    name = "token-classification"
    metric = "f1"
    input_roles: ClassVar[tuple[str, ...]] = ("words",)
    target_roles: ClassVar[tuple[str, ...]] = ("tags",)
    synonyms: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "words": ("tokens", "text"),
        "tags": ("ner_tags", "pos_tags", "labels", "label"),
    }

    @cached_property
    def label_space(self) -> LabelSpace:
        """The tags, and what the dataset calls them.

        Raises:
            CardError: if a tag is outside, naming it and where it stands.
        """
        column = self.columns["tags"][0]
        return find_label_space(
            first_places(self.tables, column, self.card.name, frozenset({IGNORED})),
            self.card.name,
            self.data.label_names,
            self.dataset.label_names(column),
            model_label_names(self.folder),
        )

    def label_names(self) -> Sequence[str]:
        """Return the names of the tags."""
        return self.label_space.names

    def make_samples(self, split: Split) -> Samples:
        """Return the rows of a split.

        Raises:
            CardError: if there are too few, a column is missing, or words have no tags.
        """
        rows = self.rows(split)
        every = range(len(rows))
        pairs = zip(rows.values("words", every), rows.values("tags", every), strict=True)
        for row, (words, tags) in enumerate(pairs):
            if isinstance(words, str) or not hasattr(words, "__len__"):
                problem = f"the words are {words!r:.80}; they must be a list"
            elif isinstance(tags, str) or not hasattr(tags, "__len__") or len(tags) != len(words):
                problem = f"{len(words)} words have the tags {tags!r:.200}; there must be one each"
            else:
                continue
            raise CardError(f"Card {self.card.name!r}: {rows.where(row)}: {problem}.")
        _ = self.label_space
        return super().make_samples(split)

    def batch(self, split: Split, rows: Rows, chosen: Sequence[int]) -> Batch:
        import torch

        words, tags = rows.values("words", chosen), rows.values("tags", chosen)
        inputs, places = self._encode_words(words)
        targets = torch.full(inputs["input_ids"].shape, IGNORED)
        for row, (sample, found) in enumerate(zip(tags, places, strict=True)):
            for word, token in found.items():
                if sample[word] != IGNORED:
                    targets[row, token] = self.label_space.encode([sample[word]])[0]
        return Batch(inputs, targets)

    def forward(self, module: nn.Module, inputs: Any) -> Tensor:
        """Return the scores of each token's tags [samples, tokens, tags].

        Raises:
            CardError: if the model returns something else.
        """
        output = run_module(module, inputs)
        logits = find_tensor(output, "logits")
        tags = len(self.label_space.names)
        wanted = (*inputs["input_ids"].shape, tags)
        if logits is None or logits.shape != wanted:
            names = ", ".join(self.label_space.names[:10]) + (", …" if tags > 10 else "")
            raise self.unexpected(output, f"scores of {tags} tags ({names}), {list(wanted)},")
        return logits

    def loss(self, output: Tensor, targets: Any) -> Tensor:
        """Return the mean cross-entropy of the tokens that have a tag."""
        return token_loss(output, targets)

    def statistics(self, output: Tensor, targets: Any) -> dict[str, Tensor]:
        """Return of each sample "nll", "tokens", "right", and of IOB2 tags "entities".

        "entities" [samples, 3] are how many are right, predicted and there.
        """
        import torch

        from zoopress.evaluation.metrics import entity_counts

        rows = token_statistics(output, targets)
        if self._finds_entities:
            names = self.label_space.names
            counts = []
            for predicted, target in zip(output.argmax(2), targets, strict=True):
                seen = target != IGNORED
                both = ([names[tag] for tag in tags[seen].tolist()] for tags in (predicted, target))
                counts.append(entity_counts(*both))
            rows["entities"] = torch.tensor(counts)
        return rows

    def metrics(self, statistics: Mapping[str, Tensor]) -> dict[str, float]:
        """Return F1, token accuracy and log loss.

        With IOB2 tags F1 is that of entities, and there are their precision and recall; else it is
        that of tokens over all tags (micro), which is their accuracy.
        """
        from zoopress.evaluation.metrics import f1_of_counts

        tokens = statistics["tokens"].sum()
        accuracy = float(statistics["right"].sum() / tokens)
        found = {
            "f1": accuracy,
            "token_accuracy": accuracy,
            "log_loss": float(statistics["nll"].sum() / tokens),
        }
        if "entities" in statistics:
            right, predicted, there = statistics["entities"].sum(0).tolist()
            found |= {
                "f1": f1_of_counts(statistics["entities"]),
                "precision": right / predicted if predicted else 0.0,
                "recall": right / there if there else 0.0,
            }
        return found

    @property
    def _finds_entities(self) -> bool:
        names = self.label_space.names
        return all(map(_IOB2.fullmatch, names)) and any(name != "O" for name in names)

    def _encode_words(self, samples: Sequence[Any]) -> tuple[Inputs, list[dict[int, int]]]:
        """Return the tokens of words, and of each sample where its words' first tokens are."""
        import torch

        if not isinstance(samples[0][0], str):
            cut = [sample[: self._most_ids] for sample in samples]
            inputs = pad_tokens(cut, self._most_ids)
            return inputs, [{word: word for word in range(len(sample))} for sample in cut]
        made = self.tokenizer(
            [list(sample) for sample in samples],
            is_split_into_words=True,
            padding=True,
            truncation=True,
            max_length=self.max_tokens,
            return_tensors="pt",
        )
        places = []
        for row in range(len(samples)):
            first: dict[int, int] = {}
            for token, word in enumerate(made.word_ids(row)):
                if word is not None:
                    first.setdefault(word, token)
            places.append(first)
        return {name: torch.as_tensor(value) for name, value in made.items()}, places
