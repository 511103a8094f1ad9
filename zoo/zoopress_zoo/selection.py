"""Decide, from file names alone, which files of a repository or folder a user of its model needs.

    config.json, tokenizer.json, LICENSE, …              others
    model.safetensors                                    weights, or
    model-00001-of-00002.safetensors, …, its index       weights
    modules.json                                         others; with it also, from sub-folders:
    0_Transformer/…, 1_Pooling/config.json, 2_Dense/…    weights and others
    pytorch_model.bin, tf_model.h5, onnx/…, README.md    left out

One format is enough, and safetensors cannot hide code. So a folder's pickles are taken only if it
has no safetensors that can be its model.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import PurePosixPath

from zoopress.errors import SourceError, nearest
from zoopress.publishing.licenses import LEGAL_FILE

FORMATS = (".safetensors", ".bin", ".pth", ".pt")
"""Suffixes of files that hold a model's tensors, the preferred first."""

_WHOLE = {".safetensors": "model.safetensors", ".bin": "pytorch_model.bin"}
_SHARD = re.compile(r"(?P<stem>.+?)[-_](?P<part>\d+)-of-(?P<parts>\d+)(?P<suffix>\.[a-z]+)")
_VARIANT = re.compile(r".+\.[A-Za-z0-9_]+(-\d+-of-\d+)?\.[a-z]+")
# What a training run leaves behind, adapters, and weights under the names of a vendor's own code.
_NO_MODEL = re.compile(
    r"(training|optimizer|scheduler|scaler|rng_state|random_states|global_step|trainer)[-_.0-9a-z]*"
    r"|(adapter|consolidated|ip_adapter|pytorch_lora)[-_.0-9a-z]*"
    r"|.*(optim_states|model_states)",
    re.IGNORECASE,
)
_MODULE_FOLDER = re.compile(r"[0-9]+_[A-Za-z0-9]+")
_COMPANIONS = frozenset(
    {
        *("config.json", "generation_config.json"),
        # sentence-transformers
        *("modules.json", "config_sentence_transformers.json", "sentence_bert_config.json"),
        *("sentence_roberta_config.json", "sentence_distilbert_config.json"),
        *("sentence_camembert_config.json", "sentence_albert_config.json"),
        *("sentence_xlm-roberta_config.json", "sentence_xlnet_config.json"),
        # processors of images, audio and video
        *("preprocessor_config.json", "processor_config.json", "video_preprocessor_config.json"),
        "audio_tokenizer_config.json",
        # tokenizers, as transformers' tokenizers name their files
        *("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "tiktoken.model"),
        *("tekken.json", "special_tokens_map.json", "added_tokens.json", "vocab.txt", "vocab.json"),
        *("merges.txt", "bpe.codes", "spiece.model", "spm.model", "spm_char.model"),
        *("sentencepiece.model", "sentencepiece.bpe.model", "source.spm", "target.spm"),
        *("vocab-src.json", "vocab-tgt.json", "target_vocab.json", "entity_vocab.json"),
        *("word_shape.json", "word_pronunciation.json", "prophetnet.tokenizer", "byte_maps.json"),
        *("normalizer.json", "dict.txt", "emoji.json", "chat_template.jinja", "chat_template.json"),
    }
)
_TEMPLATE = re.compile(r"additional_chat_templates/[A-Za-z0-9_][A-Za-z0-9_.-]*\.jinja")
_MOST_NAMED = 20


@dataclass(frozen=True)
class Selection:
    """The files of one model, named relative to `folder`.

    Attributes:
        weights: what holds its tensors; the index of shards comes after them.
        others: what a user of the model needs besides.
        folder: the sub-folder that the names start from, "" for the top.
    """

    weights: tuple[str, ...]
    others: tuple[str, ...]
    folder: str = ""


def select(names: Collection[str], within: str = "") -> Selection:
    """Choose the files that a user of a model needs.

    Args:
        names: every file of the repository or folder, as paths with forward slashes.
        within: a folder, or a file of weights, to look at instead of the top.

    Raises:
        SourceError: if nothing fits, or several things do and none comes first.
    """
    clean = {name for name in names if _plain(name)}
    within = within.strip("/")
    if within in clean:
        folder, _, chosen = within.rpartition("/")
        inside = _inside(clean, folder)
        return Selection(_named(inside, chosen), _others(inside), folder)
    inside = _inside(clean, within)
    if not inside:
        there = sorted({_top(name) for name in clean})
        raise SourceError(
            f"There is no folder or file {within!r}.{nearest(within, there)}"
            if within and clean
            else "There is nothing in it: no file at all."
        )
    return Selection(_weights(inside), _others(inside), within)


def _plain(name: str) -> bool:
    parts = PurePosixPath(name).parts
    return "/".join(parts) == name and ".." not in parts and "\\" not in name and name[0] != "/"


def _top(name: str) -> str:
    return name.partition("/")[0]


def _inside(names: Iterable[str], folder: str) -> frozenset[str]:
    start = f"{folder}/" if folder else ""
    return frozenset(name[len(start) :] for name in names if name.startswith(start))


def _module_folders(names: Collection[str]) -> list[str]:
    """Return where sentence-transformers keeps the modules of an encoder."""
    if "modules.json" not in names:
        return []
    tops = {_top(name) for name in names if "/" in name}
    return sorted(
        (top for top in tops if _MODULE_FOLDER.fullmatch(top)), key=lambda t: int(t.split("_")[0])
    )


def _others(names: Collection[str]) -> tuple[str, ...]:
    found = {name for name in names if name in _COMPANIONS or LEGAL_FILE.fullmatch(name)}
    found |= {name for name in names if _TEMPLATE.fullmatch(name)}
    for folder in _module_folders(names):
        found |= {f"{folder}/{name}" for name in _inside(names, folder) if name in _COMPANIONS}
    return tuple(sorted(found))


def _weights(names: Collection[str]) -> tuple[str, ...]:
    """Return the weights of the top and of an encoder's modules."""
    found = list(_weights_here({name for name in names if "/" not in name}))
    for folder in _module_folders(names):
        here = {name for name in _inside(names, folder) if "/" not in name}
        found += [f"{folder}/{name}" for name in _weights_here(here)]
    if not found:
        raise SourceError(_nothing(names))
    return tuple(found)


def _weights_here(names: set[str]) -> tuple[str, ...]:
    for suffix in FORMATS:
        candidates = {n for n in names if n.endswith(suffix) and not _NO_MODEL.fullmatch(_stem(n))}
        if candidates:
            return _of_format(names, candidates, suffix)
    gguf = sorted(n for n in names if n.endswith(".gguf") and not n.startswith("mmproj"))
    if len(gguf) > 1:
        raise SourceError(_several(gguf))
    return _named(names, gguf[0]) if gguf else ()


def _of_format(names: set[str], candidates: set[str], suffix: str) -> tuple[str, ...]:
    whole = _WHOLE.get(suffix, "")
    if whole in candidates:
        return (whole,)
    plain = {n for n in candidates if not _VARIANT.fullmatch(n)} or candidates
    index = f"{whole}.index.json"
    if index in names:
        shards = _shards(plain, whole.removesuffix(suffix))
        # An index may name its shards as it likes; then all that could be meant are needed.
        return (*(shards or sorted(plain)), index)
    if len(plain) == 1 and not _SHARD.fullmatch(next(iter(plain))):
        return tuple(plain)
    stems = {match["stem"] for match in map(_SHARD.fullmatch, plain) if match}
    if len(stems) == 1 and all(map(_SHARD.fullmatch, plain)):
        return _shards(plain, stems.pop())
    raise SourceError(_several(sorted(candidates)))


def _shards(names: Iterable[str], stem: str) -> tuple[str, ...]:
    """Return the parts of a model that was split, checking that none is missing.

    Raises:
        SourceError: naming the first part that is missing.
    """
    matches = [match for match in map(_SHARD.fullmatch, sorted(names)) if match]
    matches = [match for match in matches if match["stem"] == stem]
    if not matches:
        return ()
    parts = {int(match["part"]) for match in matches}
    total = max(int(match["parts"]) for match in matches)
    wanted = range(0 if 0 in parts else 1, total + (0 not in parts))  # some count from zero
    missing = next((part for part in wanted if part not in parts), None)
    if missing is not None:
        raise SourceError(
            f"{matches[0].string} is one of {total} parts, and part {missing} is missing. Get all "
            "of them."
        )
    return tuple(match.string for match in matches)


def _named(names: Collection[str], chosen: str) -> tuple[str, ...]:
    """Return the weights that the user named, with the shards if it is an index."""
    shard = _SHARD.fullmatch(chosen)
    if chosen.endswith(".gguf"):
        if shard:
            raise SourceError(
                f"{chosen} is one of {int(shard['parts'])} parts of a GGUF file, which cannot be "
                "read in parts. Merge them with llama.cpp's `llama-gguf-split --merge`, or name a "
                "smaller file that is whole."
            )
        return (chosen,)
    if chosen.endswith(".index.json"):
        suffix = PurePosixPath(chosen.removesuffix(".index.json")).suffix
        stem = chosen.removesuffix(f"{suffix}.index.json")
        shards = _shards({n for n in names if n.endswith(suffix)}, stem)
        if shards:
            return (*shards, chosen)
    elif shard:
        raise SourceError(
            f"{chosen} is one of {int(shard['parts'])} parts. Name the folder, or the file that "
            "ends in '.index.json'."
        )
    if not chosen.endswith(FORMATS):
        raise SourceError(
            f"{chosen} holds no weights that can be read: expected a file in one of "
            f"{[*FORMATS, '.gguf']}, or a folder with one."
        )
    return (chosen,)


def _stem(name: str) -> str:
    return name.rpartition(".")[0]


def _several(names: Collection[str]) -> str:
    shown = [*sorted(names)[:_MOST_NAMED], *(["…"] if len(names) > _MOST_NAMED else [])]
    last = sorted(names)[-1]
    return (
        f"There are {len(names)} files of weights, and none has the name that comes first "
        f"('model.safetensors'): {', '.join(shown)}. Name one in the card's source, for example "
        f"'hub:org/name/{last}' or 'path:folder/{last}'."
    )


def _nothing(names: Collection[str]) -> str:
    """Say what there is instead of weights."""
    here = {name for name in names if "/" not in name}
    if any(name.startswith("adapter_model.") for name in here):
        return (
            "There are weights of an adapter (adapter_model.*), not of a model. Merge them into "
            "their base model (peft's `merge_and_unload`) and save that."
        )
    text = f"There are no weights; expected a file in one of {[*FORMATS, '.gguf']}."
    own = sorted(n for n in here if n.endswith(FORMATS))
    folders = sorted(
        {n.rpartition("/")[0] for n in names if "/" in n and n.endswith((*FORMATS, ".gguf"))}
    )
    if own:
        text += (
            f" {', '.join(own[:_MOST_NAMED])}: by its name no model in a format of transformers or "
            "timm; name it in the card's source if it is meant."
        )
    elif folders:
        text += (
            f" Sub-folders hold some: {', '.join(folders[:_MOST_NAMED])}. Name one in the card's "
            f"source, for example 'hub:org/name/{folders[0]}'."
        )
    elif any(n.endswith((".h5", ".msgpack", ".onnx", ".ot", ".mlmodel")) for n in here):
        text += " Those of TensorFlow, Flax, ONNX, Rust and Core ML cannot be read."
    return text
