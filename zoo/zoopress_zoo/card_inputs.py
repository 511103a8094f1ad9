"""Infer on what inputs a model can be tried, from its class and its configuration.

A guess is tried on the meta device, which computes shapes alone: what the model refuses there is
not proposed.
"""

from __future__ import annotations

import inspect
import json
import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zoopress.cards import Card
from zoopress.cards.maker import clean
from zoopress.tasks import Task
from zoopress_zoo.positions import within_positions

if TYPE_CHECKING:
    from torch import nn

TOKENIZER_FILES = frozenset(
    {
        *("tokenizer.json", "tokenizer.model", "vocab.txt", "vocab.json", "spiece.model"),
        *("sentencepiece.bpe.model", "sentencepiece.model", "spm.model", "bpe.codes"),
        *("source.spm", "tekken.json", "tiktoken.model"),
    }
)
_TOKENS = 64  # where the task `fidelity` cuts
_OUTPUT_BYTES = 1 << 29  # of all outputs of the evaluation, which are held in memory
_VOCABULARIES = ("vocab_size", "decoder.vocab_size", "text_config.vocab_size")
_MOST_VALUES = 10_000_000  # of one sample
_RANDOM = "Random values: they tell whether the model runs, and little about its quality."
_EXAMPLE = (
    "data: how to feed this model could not be inferred. Give it inputs, for example\n"
    "data: {inputs: FILE.py:FUNCTION}    a function that returns tensors by argument name"
)
_CONTRASTIVE = frozenset({"clip", "siglip", "altclip", "chinese_clip", "metaclip_2"})
_UNUSUAL = frozenset({"tapas", "musicgen", "speecht5", "bark", "vits", "reformer"})


@dataclass(frozen=True)
class Inputs:
    """Proposed `data` of a card, or why there is none."""

    data: dict[str, Any] = field(default_factory=dict)
    note: str = ""
    missing: str = ""


def infer_inputs(
    module: nn.Module, folder: Path, others: Collection[str], card: Card, task: type[Task]
) -> Inputs:
    """Propose inputs.

    Args:
        module: the model, on the meta device.
        folder: with its files of settings.
        others: names of all its files besides weights.
        card: what is known of its card.
        task: how it will be run.
    """
    text = any(Path(name).name in TOKENIZER_FILES for name in others)
    if not hasattr(module, "main_input_name"):  # a sentence encoder, or a model of timm
        if hasattr(module, "encode") and text:
            return Inputs({"text": "python-docstrings", **_counts(0, 256)})
        return inputs_without_module(folder, ())
    guess = _guess(module, folder, text)
    if guess is None:
        return Inputs(missing=_EXAMPLE)
    # Not with an attention mask: models look at its values, which meta tensors lack.
    tokens = within_positions(folder, _TOKENS)
    random = guess or {"input_ids": {"shape": [tokens], "dtype": "int64", "high": 2}}
    refused, size = _try(module, card, folder, task, random)
    head = getattr(module, "get_output_embeddings", lambda: None)()
    if not size and head is not None:  # nothing is known, and it may be a language model
        size = _TOKENS * (_integer(module.config, *_VOCABULARIES) or 0)
    if refused:
        return Inputs(missing=f"{_EXAMPLE}\nIt refuses what was tried: {refused}")
    if not guess:
        note = f"One output has {size:,} values, so there are few samples." if size > 2**19 else ""
        return Inputs({"text": "python-docstrings", **_counts(size, 256)}, note)
    largest = max(size, sum(math.prod(spec["shape"]) for spec in random.values()))
    return Inputs({"random": random, **_counts(largest, 64)}, _RANDOM)


def inputs_without_module(folder: Path, others: Collection[str], is_gguf: bool = False) -> Inputs:
    """Propose inputs for a model that cannot be built here: one of timm, or of a GGUF file."""
    if is_gguf:
        data = {"text": "python-docstrings", **_counts(1 << 21, 256)}
        return Inputs(data, "Not tried: a GGUF file tells what it takes once it is here.")
    if any(Path(name).name in TOKENIZER_FILES for name in others):
        return Inputs({"text": "python-docstrings", **_counts(1 << 21, 256)})
    pixels = _pixels(None, folder)
    return _images(pixels) if pixels else Inputs(missing=_EXAMPLE)


def _images(pixels: dict[str, Any]) -> Inputs:
    data = {"random": {"0": pixels}, **_counts(math.prod(pixels["shape"]), 64)}
    return Inputs(data, _RANDOM)


def _guess(module: Any, folder: Path, text: bool) -> dict[str, Any] | None:
    """Return random inputs by argument, none for text, None if nothing is known to fit."""
    config, main = module.config, module.main_input_name
    kind = getattr(config, "model_type", "")
    arguments = inspect.signature(module.forward).parameters
    modalities = getattr(module, "input_modalities", "text")
    modalities = {modalities} if isinstance(modalities, str) else set(modalities)
    if kind in _UNUSUAL or type(module).__name__.endswith("ForMultipleChoice"):
        return None
    vocabulary = _integer(config, *_VOCABULARIES)
    if kind in _CONTRASTIVE and {"input_ids", "pixel_values"} <= arguments.keys():
        pixels = _pixels(config, folder)
        length = _integer(config, "text_config.max_position_embeddings") or 16
        length = within_positions(folder, min(length, _TOKENS))
        ids = {"input_ids": _ids(vocabulary, length)} if vocabulary else None
        return {**ids, "pixel_values": pixels} if ids and pixels else None
    if main == "input_ids":
        if not modalities <= {"text"}:
            return None
        first = _ids(vocabulary, within_positions(folder, 32)) if vocabulary else None
    elif main == "pixel_values" and (modalities <= {"image"} or "decoder_input_ids" in arguments):
        first = _pixels(config, folder)
    elif main == "pixel_values" and modalities <= {"video"}:
        frames, pixels = _integer(config, "num_frames"), _pixels(config, folder)
        first = {"shape": [frames, *pixels["shape"]]} if frames and pixels else None
    elif main in ("input_values", "input_features"):
        first = _sound(config, folder, main)
    else:
        first = None
    if getattr(config, "is_encoder_decoder", False) and "decoder_input_ids" in arguments:
        if first is None or not vocabulary:
            return None
        return {main: first, "decoder_input_ids": _ids(vocabulary, within_positions(folder, 16))}
    if main == "input_ids" and text:
        return {}
    return {main: first} if first is not None else None


def _pixels(config: Any, folder: Path) -> dict[str, Any] | None:
    """Return the shape of an image: of the config, else of what prepares images for the model."""
    settings = _read(folder / "preprocessor_config.json")
    pretrained = getattr(config, "pretrained_cfg", None) or _read(folder / "config.json").get(
        "pretrained_cfg"
    )
    if isinstance(pretrained, Mapping):  # timm
        size = pretrained.get("input_size")
        if isinstance(size, (list, tuple)) and len(size) == 3 and all(map(_is_size, size)):
            return {"shape": list(size)}
    channels = _integer(
        *(config, "num_channels", "vision_config.num_channels", "encoder.num_channels"),
        "backbone_config.num_channels",
    )
    found = [_value(config, f"{part}image_size") for part in ("", "vision_config.", "encoder.")]
    found += [settings.get(key) for key in ("crop_size", "size")]
    for size in found:
        if isinstance(size, Mapping):
            edge = size.get("shortest_edge")
            size = [size.get("height", edge), size.get("width", edge)]
        pair = list(size) if isinstance(size, (list, tuple)) else [size, size]
        if len(pair) == 2 and all(map(_is_size, pair)):
            return {"shape": [channels or 3, *pair]}
    return None


def _sound(config: Any, folder: Path, main: str) -> dict[str, Any] | None:
    """Return the shape of a second of sound: the waveform, or what is computed of it."""
    settings = _read(folder / "preprocessor_config.json")
    rate = settings.get("sampling_rate")
    rate = rate if _is_size(rate) else 16_000
    bins, frames = _integer(config, "num_mel_bins"), _integer(config, "max_source_positions")
    if main == "input_values":
        if hasattr(config, "conv_dim"):
            return {"shape": [rate]}
        if channels := _integer(config, "audio_channels"):
            return {"shape": [channels, _integer(config, "sampling_rate") or rate]}
        length = _integer(config, "max_length")
        return (
            {"shape": [length, bins]}
            if length and bins and hasattr(config, "patch_size")
            else (None)
        )
    if bins and frames:
        return {"shape": [bins, 2 * frames]}
    size = _integer(config, "input_feat_per_channel", "feature_projection_input_dim")
    return {"shape": [100, size]} if size else None


def _try(
    module: nn.Module, card: Card, folder: Path, task: type[Task], random: Mapping[str, Any]
) -> tuple[str, int]:
    """Run on the meta device; return what the model refuses, and how many values one output has."""
    import torch

    if any(math.prod(spec["shape"]) > _MOST_VALUES for spec in random.values()):
        return "one sample would have more than ten million values", 0
    samples = {
        name: torch.zeros(
            (2, *spec["shape"]), dtype=getattr(torch, spec.get("dtype", "float32")), device="meta"
        )
        for name, spec in random.items()
    }
    filled = card.model_copy(update={"data": card.data or _any_data()})
    try:
        output = task(filled, folder).call(module, samples)
    except Exception as error:  # whatever a model makes of inputs that are not for it
        reason = f"{type(error).__name__}: {error}"
        # Some look at values, which meta tensors lack: nothing is known then.
        known = "meta" not in reason.lower() and not isinstance(error, NotImplementedError)
        return (clean(reason, 300) if known else ""), 0
    return "", output[0].numel() if output.ndim else 0


def _any_data() -> Any:
    from zoopress.cards import Data

    return Data(text="python-docstrings")


def _counts(values: int, usual: int) -> dict[str, int]:
    """Return how many samples to take, so that all outputs fit into memory."""
    fit = _OUTPUT_BYTES // max(1, 4 * values)
    evaluation = max(8, min(usual, 1 << max(0, fit.bit_length() - 1)))
    counts = {"calibration_samples": evaluation // 4, "evaluation_samples": evaluation}
    return counts if evaluation >= 32 else {**counts, "batch_size": max(1, evaluation // 4)}


def _ids(vocabulary: int, length: int) -> dict[str, Any]:
    return {"shape": [length], "dtype": "int64", "high": vocabulary}


def _value(config: Any, dotted: str) -> Any:
    for part in dotted.split("."):
        config = config.get(part) if isinstance(config, Mapping) else getattr(config, part, None)
    return config


def _integer(config: Any, *dotted: str) -> int | None:
    found = (_value(config, name) for name in dotted)
    return next((value for value in found if _is_size(value)), None)


def _is_size(value: Any) -> bool:
    return type(value) is int and 0 < value < 1 << 24


def _read(path: Path) -> dict[str, Any]:
    """Return a file of settings, empty if there is none that can be read."""
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}
