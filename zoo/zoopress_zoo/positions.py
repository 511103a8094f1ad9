"""How many tokens a text model takes, as its config.json says: longer texts would crash it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_KEYS = (
    "max_position_embeddings",
    "n_positions",
    "n_ctx",
    "max_sequence_length",
    "max_seq_len",
    "seq_length",
    "max_target_positions",
)
_TEXT_PARTS = ("text_config", "encoder", "decoder", "llm_config", "language_config")
# Their positions begin after the padding token's number.
_COUNTED_FROM_PADDING = frozenset(
    {
        *("roberta", "roberta-prelayernorm", "xlm-roberta", "xlm-roberta-xl", "camembert"),
        *("mpnet", "longformer", "data2vec-text", "ibert", "esm", "luke", "mluke", "xmod"),
        *("markuplm", "layoutlmv3", "lilt", "bridgetower_text_model", "clap_text_model"),
        *("altclip_text_model",),
    }
)
_MOST = 1 << 24


def most_tokens(config: Mapping[str, Any]) -> int | None:
    """Return how many tokens a model takes at most, None if its config does not say."""
    found = [
        limit
        for part in (config, *(config.get(name) for name in _TEXT_PARTS))
        if isinstance(part, Mapping)
        for limit in _limits(part)
    ]
    return min(found, default=None)


def within_positions(folder: Path, tokens: int) -> int:
    """Return a number of tokens, or fewer where the model in a folder takes no more."""
    try:
        config = json.loads((folder / "config.json").read_bytes())
    except (OSError, ValueError, RecursionError):
        return tokens
    limit = most_tokens(config) if isinstance(config, dict) else None
    return tokens if limit is None else min(tokens, limit)


def _limits(config: Mapping[str, Any]) -> list[int]:
    kind, padding = config.get("model_type"), config.get("pad_token_id", 1)
    after = kind in _COUNTED_FROM_PADDING and type(padding) is int and padding >= 0
    skipped = padding + 1 if after else 0
    sizes = [config.get(key) for key in _KEYS]
    return [size - skipped for size in sizes if type(size) is int and skipped + 1 < size <= _MOST]
