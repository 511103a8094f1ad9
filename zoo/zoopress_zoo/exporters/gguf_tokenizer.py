"""A tokenizer as GGUF has it: vocabulary, kinds of tokens, merges or scores, and how text is split.

GGUF names the way in which text is split before it is merged; programs bring the rule themselves.
A tokenizer that splits in a way without a name would give other tokens elsewhere, and is refused.
"""

from __future__ import annotations

import json
import logging
import re
from pathlib import Path
from typing import Any

from zoopress.errors import DeploymentError
from zoopress_zoo.sentence_encoder import load_tokenizer

FILE = "tokenizer.json"
_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|"
    r"\s*[\r\n]+|\s+(?!\S)|\s+"
)
_SPLITS: dict[str, list[tuple[Any, ...]]] = {
    "gpt-2": [("bytes", True)],
    "smollm": [("digits",), ("bytes", True)],
    "llama-bpe": [("split", _LLAMA3), ("bytes", False)],
    "qwen2": [("split", _LLAMA3.replace("{1,3}", "")), ("bytes", False)],
}
_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED, _BYTE = range(1, 7)
_BYTE_TOKEN = re.compile(r"<0x[0-9A-F]{2}>")


def add_tokenizer(writer: Any, folder: Path, size: int) -> None:
    """Write the tokenizer of a folder into GGUF metadata.

    Args:
        writer: a `gguf.GGUFWriter`.
        folder: which has a tokenizer.json.
        size: how many tokens the model has; the tokenizer may have fewer.

    Raises:
        DeploymentError: if GGUF has no word for it.
    """
    import gguf

    tokenizer = json.loads((folder / FILE).read_text(encoding="utf-8"))
    model = tokenizer["model"]
    if model.get("type") != "BPE":
        raise DeploymentError(
            f"Its tokenizer is {model.get('type')!r}, and GGUF's readers know byte pairs alone "
            "(BPE) for such models. Use 'compressed_tensors'."
        )
    tokens, kinds = _vocabulary(tokenizer, size)
    if _is_byte_level(tokenizer):
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre(_name_of_split(tokenizer))
    else:
        writer.add_tokenizer_model("llama")
        writer.add_tokenizer_pre("default")
        writer.add_token_scores(_scores(model, tokens))
        writer.add_add_space_prefix(_prefixes_space(tokenizer))
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    logging.getLogger("gguf.vocab").setLevel(logging.ERROR)
    special = gguf.SpecialVocab(folder, load_merges=True, n_vocab=size)
    # Readers add a first token to some vocabularies unless they are told not to.
    special.add_special_token.update(_added(load_tokenizer(folder)))
    special.add_to_gguf(writer, quiet=True)


def _vocabulary(tokenizer: dict[str, Any], size: int) -> tuple[list[str], list[int]]:
    """Return every token and its kind."""
    model = tokenizer["model"]
    named: dict[int, tuple[str, int]] = {
        number: (token, _BYTE if _BYTE_TOKEN.fullmatch(token) else _NORMAL)
        for token, number in model["vocab"].items()
    }
    for added in tokenizer.get("added_tokens") or ():
        kind = _CONTROL if added.get("special") else _USER_DEFINED
        named[added["id"]] = (added["content"], kind)
    unknown = model["vocab"].get(model.get("unk_token"))
    if unknown is not None:
        named[unknown] = (named[unknown][0], _UNKNOWN)
    if max(named, default=0) >= size:
        raise DeploymentError(
            f"Its tokenizer has a token {max(named)}, and the model {size} in all. They do not "
            "belong together; give the artifact the tokenizer that the model came with."
        )
    every = [named.get(number, (f"[PAD{number}]", _UNUSED)) for number in range(size)]
    return [token for token, _ in every], [kind for _, kind in every]


def _added(tokenizer: Any) -> dict[str, bool]:
    """Return whether a tokenizer puts a token before a text, and behind it."""
    bare = tokenizer.encode("a", add_special_tokens=False)
    whole = tokenizer.encode("a")
    first, last = whole[:1] != bare[:1], whole[-1:] != bare[-1:]
    return {"bos": first, "eos": last}


def _is_byte_level(tokenizer: dict[str, Any]) -> bool:
    return any(kind == "bytes" for kind, *_ in _splits(tokenizer.get("pre_tokenizer")))


def _splits(described: dict[str, Any] | None) -> list[tuple[Any, ...]]:
    """Return the steps in which text is split."""
    if not described:
        return []
    kind = described["type"]
    if kind == "Sequence":
        return [step for each in described["pretokenizers"] for step in _splits(each)]
    if kind == "Digits" and described.get("individual_digits"):
        return [("digits",)]
    if kind == "ByteLevel" and not described.get("add_prefix_space"):
        return [("bytes", bool(described.get("use_regex", True)))]
    if kind == "Split" and described.get("behavior") == "Isolated" and not described.get("invert"):
        return [("split", described["pattern"].get("Regex"))]
    return [(kind,)]


def _name_of_split(tokenizer: dict[str, Any]) -> str:
    steps = _splits(tokenizer["pre_tokenizer"])
    for name, known in _SPLITS.items():
        if steps == known:
            return name
    raise DeploymentError(
        f"Its tokenizer splits text in a way that has no name in GGUF ({steps!r}); known are those "
        f"of {', '.join(_SPLITS)}. Use 'compressed_tensors'."
    )


def _scores(model: dict[str, Any], tokens: list[str]) -> list[float]:
    """Return scores by which pairs are joined in the order of the merges."""
    rank: dict[str, int] = {}
    for position, pair in enumerate(model["merges"]):
        left, right = pair.split(" ") if isinstance(pair, str) else pair
        rank.setdefault(left + right, position)
    return [-float(rank.get(token, len(rank))) for token in tokens]


def _prefixes_space(tokenizer: dict[str, Any]) -> bool:
    parts = (tokenizer.get("normalizer"), tokenizer.get("pre_tokenizer"))
    steps = [step for part in parts if part for step in _flat(part)]
    return any(
        step["type"] == "Prepend"
        or (step["type"] == "Metaspace" and step.get("prepend_scheme", "always") != "never")
        for step in steps
    )


def _flat(described: dict[str, Any]) -> list[dict[str, Any]]:
    inner = described.get("normalizers") or described.get("pretokenizers") or ()
    return [described, *(step for each in inner for step in _flat(each))]
