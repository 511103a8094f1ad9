"""Sentence encoders in the folder layout of sentence-transformers, without needing that library."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from zoopress.card import Card
from zoopress.errors import ArtifactError, SourceError
from zoopress.source import Architecture, SourceFiles
from zoopress_zoo.transformers_models import Transformers, load_pretrained, read_config

if TYPE_CHECKING:
    from torch import nn

    from zoopress_zoo.sentence_encoder import SentenceEncoder

_POOLINGS = {
    "cls": "pooling_mode_cls_token",
    "mean": "pooling_mode_mean_tokens",
    "max": "pooling_mode_max_tokens",
}


class SentenceEncoderArchitecture(Architecture):
    """A sentence encoder in the layout of sentence-transformers."""

    name = "sentence_encoder"

    @classmethod
    def detect(cls, card: Card, files: SourceFiles) -> SentenceEncoderArchitecture | None:
        """Take folders with modules.json: a transformer, pooling, perhaps normalization.

        Raises:
            SourceError: if there are other modules, such as a dense layer.
        """
        if "modules.json" not in files.others:
            return None
        try:
            return cls(files.folder, cls._arguments(files))
        except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
            raise SourceError(
                f"{files.folder}: modules.json, or a file it names, is not in the layout of "
                f"sentence-transformers ({type(error).__name__}: {error})."
            ) from error

    @staticmethod
    def _arguments(files: SourceFiles) -> dict[str, Any]:
        modules = json.loads((files.folder / "modules.json").read_text(encoding="utf-8"))
        kinds = [module["type"].rpartition(".")[2] for module in modules]
        if kinds not in (["Transformer", "Pooling"], ["Transformer", "Pooling", "Normalize"]):
            raise SourceError(
                f"{files.folder / 'modules.json'}: only Transformer, Pooling and Normalize are "
                f"understood, not {kinds}. Give the card a 'factory' instead."
            )
        pooling = json.loads((files.folder / modules[1]["path"] / "config.json").read_text())
        chosen = [name for name, key in _POOLINGS.items() if pooling.get(key)]
        if len(chosen) != 1:
            raise SourceError(f"{files.folder}: pooling must be one of {list(_POOLINGS)}.")
        limit = 512
        if "sentence_bert_config.json" in files.others:
            text = (files.folder / "sentence_bert_config.json").read_text(encoding="utf-8")
            limit = json.loads(text).get("max_seq_length") or limit
        return {
            "class": read_config(files.folder)["architectures"][0],
            "pooling": chosen[0],
            "normalize": kinds[-1] == "Normalize",
            "max_tokens": limit,
        }

    def build(self) -> nn.Module:
        """Build the transformer from its config, and pooling on top."""
        return self._wrap(Transformers(self.folder, {"class": self.arguments.get("class")}).build())

    def load(self, files: SourceFiles) -> nn.Module:
        """Load the transformer's weights; pooling has none."""
        return self._wrap(load_pretrained(files, self.arguments.get("class")))

    def finish(self, module: nn.Module) -> nn.Module:
        """Attach the tokenizer, so that `encode` takes text."""
        from zoopress_zoo.sentence_encoder import SentenceEncoder, load_tokenizer

        assert isinstance(module, SentenceEncoder)
        module.tokenizer = load_tokenizer(self.folder)
        return module

    def _wrap(self, transformer: nn.Module) -> SentenceEncoder:
        from zoopress_zoo.sentence_encoder import SentenceEncoder

        arguments = self.arguments
        pooling, limit = arguments.get("pooling"), arguments.get("max_tokens")
        if pooling not in _POOLINGS or type(limit) is not int or limit < 1:
            raise ArtifactError(f"'architecture': unknown pooling {pooling!r} or limit {limit!r}.")
        return SentenceEncoder(transformer, pooling, bool(arguments.get("normalize")), limit)
