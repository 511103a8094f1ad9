"""Every family of transformers as a tiny model: its config shrunk by what its fields are called.

Nothing here knows a family. A config is a tree of fields; what a field counts (layers, heads,
widths, tokens) shows in its name, and several ways of making it small are tried until one builds a
model that runs. Inputs are found in the same way, by the names of what `forward` takes.
"""

from __future__ import annotations

import contextlib
import copy
import importlib
import inspect
import itertools
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

VOCABULARY, TOKENS, SAMPLES = 128, 12, 24
MOST_PARAMETERS = 20_000_000

_TASKS = (
    *("MODEL_MAPPING_NAMES", "MODEL_FOR_PRETRAINING_MAPPING_NAMES"),
    *("MODEL_FOR_CAUSAL_LM_MAPPING_NAMES", "MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES"),
    *("MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES", "MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING_NAMES"),
)


class CannotBuildError(Exception):
    """A family of which no tiny model could be made; its text says why."""


@dataclass(frozen=True)
class Tiny:
    """A tiny model with inputs.

    Attributes:
        module: the model, in evaluation mode, its weights drawn from a seed.
        inputs: tensors [samples, …] by the names of its arguments.
    """

    module: nn.Module
    inputs: dict[str, Tensor]


def families() -> list[str]:
    """Return the model types that transformers has a class for, by name."""
    auto = importlib.import_module("transformers.models.auto.configuration_auto")
    return sorted(auto.CONFIG_MAPPING_NAMES)


def make(family: str) -> Tiny:
    """Make a tiny model of a family.

    Raises:
        CannotBuildError: if no way of shrinking its config gives a model that runs.
    """
    config_type, classes = _classes(family)
    problems: list[str] = []
    for way in _WAYS:
        try:
            config = way(config_type)
        except Exception as error:  # whatever a family's validation says
            problems.append(f"config: {_line(error)}")
            continue
        for chosen in classes:
            try:
                module = _build(chosen, config)
            except Exception as error:
                problems.append(f"{chosen.__name__}: {_line(error)}")
                continue
            inputs = _inputs(module, problems)
            if inputs is not None:
                return Tiny(module, inputs)
    raise CannotBuildError("; ".join(list(dict.fromkeys(problems))[:4]))


def _classes(family: str) -> tuple[Any, list[Any]]:
    import transformers

    auto = importlib.import_module("transformers.models.auto.modeling_auto")
    configs = importlib.import_module("transformers.models.auto.configuration_auto")
    config_type = configs.CONFIG_MAPPING[family]
    others = sorted(n for n in dir(auto) if n.endswith("_MAPPING_NAMES") and n not in _TASKS)
    names: list[str] = []
    for mapping in (*_TASKS, *others):
        found = getattr(auto, mapping, {}).get(family)
        if mapping == "CONFIG_MAPPING_NAMES" or found is None:
            continue
        names += [found] if isinstance(found, str) else list(found)
    classes = [getattr(transformers, name, None) for name in dict.fromkeys(names)]
    where = config_type.__module__.replace("configuration_", "modeling_")
    with contextlib.suppress(ImportError):  # parts of composed models have no Auto class
        classes += vars(importlib.import_module(where)).values()
    classes = [c for c in dict.fromkeys(filter(inspect.isclass, classes)) if c is not None]
    classes = [
        c
        for c in classes
        if issubclass(c, transformers.PreTrainedModel)
        and c.config_class is config_type
        and getattr(transformers, c.__name__, None) is c  # those that a card can name
        and "forward" in vars(c)
    ]
    if not classes:
        raise CannotBuildError("no model class of its own")
    return config_type, classes[:4]


def _line(error: Exception) -> str:
    text = str(error).strip()
    return f"{type(error).__name__}: {text.splitlines()[-1][:160] if text else ''}"


# --- configs -------------------------------------------------------------------------------------

_LAYERS = re.compile(
    r"(^|_)(n|num|number_of)?_?(\w+_)?(layers?|blocks?|depths?|repeats?|resnets)$|^(n_layer|depth)$"
)
_HEADS = re.compile(r"(^|_)(n_?)?(heads?|attention_groups)$")
_KV = re.compile(r"(key_value|kv).*(heads|groups)$|^multi_query_group_num$|^num_kv_heads$")
_HEAD_SIZE = re.compile(r"(head_dim|head_size|head_width|head_channels|^d_kv|kv_channels|d_head)$")
_INNER = re.compile(
    r"(intermediate|ffn|inner|mlp_(dim|size|hidden)|feed_?forward|d_ff|n_inner|linear_size)"
)
_WIDTH = re.compile(
    r"(hidden_size|hidden_dim|d_model|n_embd|_dim$|^dim$|embed|width|channels?$|_size$|features$"
    r"|dims$|sizes$|_rank$|filters|model_dim|planes|units|hidden$|_d$|channel)"
)
_VOCAB = re.compile(r"(vocab_size|vocabulary_size|num_embeddings|codebook_size)")
_TOKEN = re.compile(r"(token_id|token_index|token_ids|_token|token_type_id)$")
_EXPERTS = re.compile(r"^(num_|n_|moe_num_)?(\w*_)?experts$|^moe_num_experts$")
_PICKED = re.compile(r"(experts_per_tok|top_?k$|per_token$|moe_k)")
_LEFT = re.compile(
    r"(kernel|stride|window|pad|num_channels|patch|image|pool|type_vocab|chunk|temporal|num_mel|"
    r"layer_norm|group_size|down|upsampl|sampling|conv_k|scale|crop|bias|ratio|rate|spectro|"
    r"^input_channels|^in_channels|in_chans|^num_position|resolution|dilation|expan|position|length|num_labels)"
)
_SCHEDULES = re.compile(r"(layer_types|mlp_layer_types|_types|_list|pattern|no_rope_layers)$")


def _plain(config_type: Any) -> dict[str, Any]:
    made: dict[str, Any] = copy.deepcopy(config_type().to_dict())
    return made


def _sizes_fixed(key: str, value: int, ratio: float) -> int:
    """Return a width in a family of fixed sizes: heads of 16, four of them, 96 inside."""
    if _HEAD_SIZE.search(key):
        return min(value, 8 if "rope" in key else 16)
    if _INNER.search(key):
        return min(value, 96)
    return min(value, 64)


def _sizes_scaled(key: str, value: int, ratio: float) -> int:
    return max(round(value * ratio), 2) if value > 8 else value


def _shrink(node: Any, key: str, sizes: Any, ratio: float, layers: int) -> Any:
    """Return a config's value made small."""
    if isinstance(node, dict):
        fields = {
            k: _shrink(v, k, sizes, ratio, layers) for k, v in node.items() if k not in _STAGES
        }
        if isinstance(node.get("out_indices"), list) and len(node["out_indices"]) > 1:
            fields["out_indices"] = list(range(1, len(node["out_indices"]) + 1))
        return _aligned(node, fields, layers)
    if isinstance(node, list):
        if _LAYERS.search(str(key)) and all(type(v) is int for v in node):
            return [min(v, 1) for v in node]
        return [_shrink(v, key, sizes, ratio, layers) for v in node]
    if type(node) is not int or not isinstance(key, str) or not key:
        return node
    return _shrunk_number(key, node, sizes, ratio, layers)


def _shrunk_number(key: str, value: int, sizes: Any, ratio: float, layers: int) -> int:
    if _VOCAB.search(key) and "type" not in key:
        return min(value, VOCABULARY) if value > 1 else VOCABULARY
    if _TOKEN.search(key):
        return value if value < VOCABULARY else VOCABULARY - 1 - value % 64
    if key in ("image_size", "img_size") and value > 32:
        return 64 if value > 512 else 32
    if key == "patch_size":
        return min(value, 8)
    if _KV.search(key):
        return value if sizes is _sizes_scaled else min(value, 2)
    if _HEADS.search(key):
        return value if sizes is _sizes_scaled else min(value, 4)
    if _EXPERTS.search(key):
        return min(value, 4)
    if _PICKED.search(key):
        return min(value, 2)
    if key in ("n_group", "topk_group", "num_expert_group"):
        return 1
    if _LAYERS.search(key):
        return min(value, layers)
    if key in ("max_source_positions",):
        return min(value, 64)
    if _LEFT.search(key):
        return min(value, 512) if "position" in key else value
    if _WIDTH.search(key) or _INNER.search(key) or _HEAD_SIZE.search(key):
        return int(sizes(key, value, ratio))
    if re.search(r"num_queries|query_num|num_query|num_latents|num_proposals", key):
        return min(value, 8)
    return value


_STAGES = ("out_features", "out_indices", "_out_features", "_out_indices", "stage_names")


_BACKBONE = {
    "model_type": "resnet",
    "embedding_size": 16,
    "hidden_sizes": [16, 24, 32, 48],
    "depths": [1, 1, 1, 1],
    "layer_type": "basic",
    "out_indices": [1, 2, 3, 4],
}
"""In the place of a backbone from timm, which need not be there."""


def _aligned(old: Mapping[str, Any], new: dict[str, Any], layers: int) -> dict[str, Any]:
    """Cut lists that have an entry a layer to the new number of layers, each kind kept."""
    half = new.get("qk_rope_head_dim") or new.get("head_dim")
    if half is None and new.get("hidden_size") and new.get("num_attention_heads"):
        half = new["hidden_size"] // new["num_attention_heads"]
    for key, value in new.items():
        if str(key).endswith("_section") and isinstance(value, list) and half:
            new[key] = [half // 2 - 2 * (half // 6), half // 6, half // 6]
        elif isinstance(value, dict) and str(key).startswith("rope_"):
            inner = value.get("mrope_section")
            if isinstance(inner, list) and half:
                value["mrope_section"] = [half // 2 - 2 * (half // 6), half // 6, half // 6]
        elif isinstance(value, dict) and "layer" in str(key):
            new[key] = {k: v for k, v in value.items() if not str(k).isdigit() or int(k) < layers}
    heads, shared = old.get("num_attention_heads"), old.get("num_key_value_heads")
    if type(heads) is int and heads == shared:
        new["num_key_value_heads"] = new["num_attention_heads"]
    if type(old.get("d_head")) is int and old.get("d_model") and old.get("n_head"):
        new["d_head"] = max(new["d_model"] // new["n_head"], 1)
    if "prediction_length" in new:
        new["prediction_length"] = new["prediction_length"] or 8
    if "qk_rope_head_dim" in new and "head_dim" in new:
        new["head_dim"] = new["qk_rope_head_dim"]
    if new.get("use_timm_backbone") or (new.get("backbone") and "backbone_config" in new):
        new.update(use_timm_backbone=False, use_pretrained_backbone=False, backbone=None)
        new.update(backbone_config=dict(_BACKBONE), backbone_kwargs=None)
    for key, number in old.items():
        if type(number) is not int or not _LAYERS.search(str(key)) or new[key] == number:
            continue
        for other, entries in new.items():
            if isinstance(entries, list) and len(entries) == number and number > new[key]:
                kinds = list(dict.fromkeys(map(str, entries)))
                firsts = [next(e for e in entries if str(e) == kind) for kind in kinds]
                new[other] = (firsts + entries)[: new[key]]
    return new


def _way(sizes: Any, target: int, layers: int) -> Any:
    def make(config_type: Any) -> Any:
        plain = _plain(config_type)
        largest = max(_widths(plain), default=target)
        return config_type.from_dict(_shrink(plain, "", sizes, target / largest, layers))

    return make


def _divided(by: int, layers: int) -> Any:
    def make(config_type: Any) -> Any:
        return config_type.from_dict(
            _shrink(_plain(config_type), "", _sizes_scaled, 1 / by, layers)
        )

    return make


def _widths(node: Any, key: str = "") -> Iterator[int]:
    if isinstance(node, dict):
        for k, v in node.items():
            yield from _widths(v, k)
    elif isinstance(node, list):
        for v in node:
            yield from _widths(v, key)
    elif type(node) is int and isinstance(key, str) and _WIDTH.search(key):
        others = (_LEFT, _VOCAB, _INNER, _TOKEN)
        if not any(pattern.search(key) for pattern in others):
            yield node


def _only_layers(config_type: Any) -> Any:
    return config_type.from_dict(_shrink(_plain(config_type), "", lambda k, v, r: v, 1.0, 2))


_WAYS = (
    _way(_sizes_fixed, 64, 2),
    _way(_sizes_scaled, 64, 2),
    _way(_sizes_scaled, 128, 2),
    _way(_sizes_fixed, 64, 4),
    _way(_sizes_scaled, 256, 4),
    _divided(8, 2),
    _divided(4, 2),
    _divided(2, 1),
    _only_layers,
    lambda config_type: config_type(),
)


# --- models --------------------------------------------------------------------------------------


def _build(chosen: Any, config: Any) -> nn.Module:
    config = copy.deepcopy(config)
    with torch.device("meta"):
        size = sum(p.numel() for p in chosen(copy.deepcopy(config)).parameters())
    if size > MOST_PARAMETERS:
        raise CannotBuildError(f"{size / 1e6:.0f} million parameters, however its config is shrunk")
    torch.manual_seed(0)
    module: nn.Module = chosen(config).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.is_floating_point():
                # Zeros and ones of an initialization would hide what depends on what.
                noise = 0.05 * torch.randn(parameter.shape, generator=generator)
                parameter.copy_(parameter.nan_to_num(0, 0, 0).clamp(-2, 2) + noise)
    return module


# --- inputs --------------------------------------------------------------------------------------


def _inputs(module: nn.Module, problems: list[str]) -> dict[str, Tensor] | None:
    """Return the first inputs that a model runs on and answers differently to each sample."""
    for inputs in itertools.islice(_candidates(module), 40):
        try:
            with torch.no_grad():
                output = module(**{name: value[:2].clone() for name, value in inputs.items()})
            tensors = [v for v in _leaves(output) if v.is_floating_point() and v.numel() > 1]
            if not tensors:
                problems.append("it returns no float tensor")
                continue
            if not bool(tensors[0].isfinite().any()):
                problems.append("its output is not finite")
                continue
        except Exception as error:
            problems.append(f"forward: {_line(error)}")
            continue
        return inputs
    return None


def _leaves(value: Any) -> list[Tensor]:
    from zoopress.dependencies.trace import tensors_in

    return tensors_in(value)


def _find(config: Any, *names: str) -> Any:
    """Return the first value of a field of one of these names, anywhere in a config."""
    plain = config if isinstance(config, dict) else config.to_dict()
    for name in names:
        if plain.get(name) is not None:
            return plain[name]
    for value in plain.values():
        if isinstance(value, dict):
            found = _find(value, *names)
            if found is not None:
                return found
    return None


def _candidates(module: Any) -> Iterator[dict[str, Tensor]]:
    names = list(inspect.signature(module.forward).parameters)
    needed = [
        n
        for n, p in inspect.signature(module.forward).parameters.items()
        if p.default is inspect.Parameter.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
    ]
    main = getattr(module, "main_input_name", "input_ids")
    sets: list[tuple[str, ...]] = []
    for extra in (
        (),
        ("decoder_input_ids",),
        ("decoder_input_ids", "input_ids"),
        ("input_ids", "pixel_values"),
        ("pixel_values", "decoder_input_ids"),
        ("input_ids",),
        ("attention_mask",),
        ("input_ids", "attention_mask"),
        ("input_ids", "bbox"),
        ("input_ids", "bbox", "pixel_values"),
        ("input_ids", "input_features"),
        ("input_ids", "input_values"),
    ):
        for base in ((main, *needed), tuple(needed)):
            chosen = tuple(dict.fromkeys(n for n in (*base, *extra) if n in names))
            if chosen and chosen not in sets:
                sets.append(chosen)
    for chosen in sets:
        options = [_tensors(name, module.config) for name in chosen]
        if all(options):
            for values in itertools.islice(itertools.product(*options), 12):
                yield dict(zip(chosen, values, strict=True))


def _tensors(name: str, config: Any) -> list[Tensor]:
    """Return what an argument of this name might want, most likely first; [] if it has no name."""
    generator = torch.Generator().manual_seed(2)

    def floats(*shape: int) -> Tensor:
        return torch.randn(SAMPLES, *shape, generator=generator)

    given = _find(config, "num_channels", "in_channels", "in_chans", "channels")
    channels = given if isinstance(given, int) else 3
    size = _find(config, "image_size", "img_size", "crop_size") or 32
    height, width = (size, size) if isinstance(size, int) else tuple(size)[-2:]
    if re.search(r"pixel_values_videos|video", name):
        frames = int(_find(config, "num_frames", "frames_per_clip") or 4)
        return [floats(frames, channels, height, width)]
    if re.search(r"pixel_values|^images?$", name):
        found = [floats(channels, height, width)]
        if isinstance(size, int):
            found += [floats(channels, s, s) for s in (32, 64, 128, 224) if s != size]
        frames = int(_find(config, "num_frames") or 2)
        return [*found, floats(frames, channels, height, width), floats(2, channels, 64, 64)]
    if re.search(r"mask$", name):
        return [torch.ones(SAMPLES, TOKENS, dtype=torch.int64)]
    if name == "bbox":
        corner = torch.randint(0, 60, (SAMPLES, TOKENS, 2), generator=generator)
        return [torch.cat([corner, corner + 20], dim=-1)]
    if re.search(r"(input_ids|_ids|^ids)$", name):
        low = 4
        vocabulary = int(_find(config, "vocab_size") or VOCABULARY)
        # The ids above are those of special tokens, such as the place of an image.
        high = VOCABULARY - 66 if vocabulary >= VOCABULARY else vocabulary
        tokens = torch.randint(
            min(low, high - 1),
            high,
            (SAMPLES, TOKENS),
            generator=generator,
        )
        books = int(_find(config, "num_codebooks") or 4)
        return [tokens, torch.stack([tokens] * books, 1), torch.stack([tokens] * books, 2)]
    if re.search(r"audio_codes|^codes$", name):
        books = int(_find(config, "num_codebooks", "num_quantizers") or 4)
        return [torch.randint(0, 32, (SAMPLES, books, TOKENS), generator=generator)]
    if re.search(r"input_values|waveform|audio|raw", name):
        bins = int(_find(config, "num_mel_bins", "feature_size") or 80)
        frames = int(_find(config, "max_length") or 64)
        return [floats(1600), floats(1, 1600), floats(frames, bins), floats(64, bins), floats(8000)]
    if re.search(r"features|spectrogram", name):
        bins = int(_find(config, "num_mel_bins", "feature_size", "input_feat_per_channel") or 80)
        frames = 2 * int(_find(config, "max_source_positions", "max_position_embeddings") or 64)
        return [floats(bins, frames), floats(64, bins), floats(bins, 64), floats(1, 64, bins)]
    if re.search(r"past_values|time_series|timeseries|context", name):
        length = int(_find(config, "context_length", "sequence_length") or 32)
        count = int(_find(config, "num_input_channels", "input_size") or 1)
        return [floats(length), floats(length, count), floats(64, count)]
    if re.search(r"embeds|hidden_states|sequence|queries|latents|^x$|inputs", name):
        width = int(_find(config, "hidden_size", "d_model", "dim", "embed_dim", "d_latents") or 64)
        return [floats(TOKENS, width), floats(width, 8, 8)]
    return []
