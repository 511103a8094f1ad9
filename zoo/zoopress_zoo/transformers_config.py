"""Configs of transformers models, from files that are not trusted.

Transformers gets a config without the fields that make it fetch or run something, and without
numbers that no model has.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from zoopress.errors import SourceError, cautious
from zoopress.optional import import_optional

# `attn_implementation: org/name` downloads a kernel and runs it; a backbone brings its weights;
# `transformers_weights` names other files to load.
_FETCHING = frozenset(
    {
        "auto_map",
        "quantization_config",
        "attn_implementation",
        "_attn_implementation",
        "_attn_implementation_internal",
        "_attn_implementation_autoset",
        "experts_implementation",
        "_experts_implementation",
        "_experts_implementation_internal",
        "use_kernels",
        "use_pretrained_backbone",
        "transformers_weights",
        "fusion_config",
        "distributed_config",
        "kernel_config",
    }
)
_FLOATS = ("Infinity", "-Infinity", "NaN")  # transformers' way around what JSON has not
_BACKBONES = ("backbone", "architecture")  # timm takes repositories and folders for them as well
_COUNTED = re.compile(
    "(^|_)(layers?|labels?|depths?|blocks?|stages?|experts?|heads?|levels?|repeats?)$|^(n|num)_(?!ctx|pos)"
)
_MOST_COUNTED = 1 << 20


def library() -> Any:
    """Return transformers, made quiet.

    Raises:
        SourceError: if it is not installed.
    """
    transformers = import_optional(
        "transformers",
        "This model needs the transformers library",
        "pip install 'zoopress[transformers]'",
        SourceError,
    )
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    return transformers


def read_config(folder: Path) -> dict[str, Any]:
    """Return a folder's config.json.

    Raises:
        SourceError: if it is not JSON.
    """
    path = folder / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise SourceError(f"{path}: cannot be read: {error}.") from error
    if not isinstance(config, dict):
        raise SourceError(f"{path}: is not a JSON object.")
    return config


def without_fetching(config: Any) -> Any:
    """Return a config without what makes transformers fetch or run something, at any depth."""
    if isinstance(config, list):
        return [without_fetching(item) for item in config]
    if not isinstance(config, dict):
        return config
    return {k: without_fetching(value) for k, value in config.items() if k not in _FETCHING}


def read_generation_config(folder: Path) -> Any:
    """Return what a folder's generation_config.json sets, None if there is none.

    Raises:
        SourceError: if it cannot be read.
    """
    path = folder / "generation_config.json"
    if not path.is_file():
        return None
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
        return library().GenerationConfig.from_dict(settings)
    except Exception as error:  # whatever the library makes of a stranger's file
        raise SourceError(f"{path}: cannot be read: {reason(error)}.") from error


def make_config(chosen: Any, config: dict[str, Any], path: Path) -> Any:
    """Return the config object of a model class, from what config.json holds.

    Raises:
        SourceError: if it does not fit the class.
    """
    safe = _checked(config, path)
    wanted = chosen.config_class
    kind = safe.get("model_type")
    if kind and kind != wanted.model_type and (part := _part(safe, wanted.base_config_key)):
        safe = part
    elif kind and kind != wanted.model_type and not _related(kind, wanted):
        raise SourceError(
            f"{path}: the class {chosen.__name__} is for models of type {wanted.model_type!r}, and "
            f"this one is of type {kind!r}. Change 'model_class' in the card, or leave it out."
        )
    try:
        return wanted.from_dict(safe)
    except Exception as error:  # whatever the library makes of a stranger's file
        raise SourceError(f"{path}: is no config of {chosen.__name__}: {reason(error)}.") from error


def _part(config: dict[str, Any], keys: str | list[str] | None) -> dict[str, Any] | None:
    """Return the config of a part of a composed model, such as CLIP's text encoder."""
    names = [keys] if isinstance(keys, str) else keys or []
    parts = (config.get(name) for name in names)
    return next((part for part in parts if isinstance(part, dict)), None)


def refuse_quantized(config: dict[str, Any], path: Path) -> None:
    """Refuse weights that are packed already.

    Raises:
        SourceError: naming how they are.
    """
    for part in (config, *(value for value in config.values() if isinstance(value, dict))):
        found = part.get("quantization_config") or part.get("compression_config")
        if found:
            method = found.get("quant_method") if isinstance(found, dict) else None
            method = method if isinstance(method, str) else "an unknown method"
            raise SourceError(
                f"{path}: this model is already quantized ({method[:40]}). Start from the "
                "unquantized model that it was made from, and let a recipe quantize that."
            )


def _related(kind: Any, wanted: Any) -> bool:
    """Return whether a model type's config is a kind of the wanted config, or the reverse."""
    mapping = library().CONFIG_MAPPING
    found = mapping[kind] if isinstance(kind, str) and kind in mapping else None
    return found is not None and (issubclass(found, wanted) or issubclass(wanted, found))


def reason(error: Exception) -> str:
    """Return the first line of what an error of the library says."""
    text = str(error).strip()
    if (safe := cautious(f"{type(error).__name__} {text}")) != f"{type(error).__name__} {text}":
        return safe
    first = text.splitlines()[0].rstrip(".")[:400] if text else ""
    return (
        first
        if isinstance(error, (OSError, ValueError)) and first
        else (f"{type(error).__name__}: {first}" if first else type(error).__name__)
    )


def _checked(config: Any, path: Path) -> Any:
    """Drop what could make transformers fetch code or weights, at any depth, and check counts.

    Raises:
        SourceError: if there are more layers, labels or the like than any model has: transformers
            makes lists of them before anything could stop it. Also if a backbone is named that is
            not plainly a name.
    """
    if isinstance(config, list):
        return [_checked(item, path) for item in config]
    if not isinstance(config, dict):
        return config
    if config.keys() == {"__float__"} and config["__float__"] in _FLOATS:
        return float(config["__float__"])
    for key, value in config.items():
        counts = value if isinstance(value, list) else [value]
        largest = max((n for n in counts if isinstance(n, int)), default=0)
        if _COUNTED.search(key) and largest > _MOST_COUNTED:
            raise SourceError(
                f"{path}: {key!r} is {_shown(largest)}, which is more than {_MOST_COUNTED:,}. No "
                "model has so many; the file is damaged or hostile."
            )
        if key in _BACKBONES and isinstance(value, str) and re.search(r"[^A-Za-z0-9_.-]", value):
            raise SourceError(
                f"{path}: {key!r} is {value[:100]!r}, a model elsewhere, which is never fetched. "
                "Only the name of a model of timm is understood."
            )
    return {key: _checked(value, path) for key, value in config.items() if key not in _FETCHING}


def _shown(number: int) -> str:
    return f"{number:,}" if number < 10**30 else "a number of more than 30 digits"
