"""Vision models by their name in timm, from a folder with timm's config.json.

    config.json         "architecture", "num_classes", "pretrained_cfg", perhaps "model_args"
    model.safetensors   the state dict

timm also takes folders and repositories where it expects names. Nothing of the kind is handed on.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from zoopress.cards import Card
from zoopress.errors import ArtifactError, SourceError, nearest
from zoopress.optional import import_optional
from zoopress.sources import Architecture, Companions, SourceFiles
from zoopress_zoo.transformers_config import read_config

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from torch import nn

    from zoopress.models.model import Model

_NAME = re.compile(r"[A-Za-z0-9_]+(\.[A-Za-z0-9_]+)?")
_KEY = re.compile(r"[a-z][a-z0-9_]*")
# Arguments of create_model that read or fetch something, or that make another kind of model.
_REFUSED = re.compile(
    "pretrained.*|checkpoint.*|cache_dir|features_only|hf_.*|url|file|path|device|dtype"
)
_TEXT = re.compile(r"[A-Za-z0-9_.+-]*")
_MOST = 1 << 20


class Timm(Architecture):
    """A model of timm.

    Arguments:
        model: its name in timm.
        arguments: numbers, booleans and words that its constructor takes.
    """

    name = "timm"

    @classmethod
    def detect(cls, card: Card, files: SourceFiles) -> Timm | None:
        """Take folders whose config.json names an architecture, as timm writes it.

        Raises:
            SourceError: if it asks for more than numbers and words can say.
        """
        if "config.json" not in files.others:
            return None
        config = read_config(files.folder)
        if "architecture" not in config or "model_type" in config or "architectures" in config:
            return None
        try:
            arguments = {"model": config["architecture"], "arguments": _arguments(config)}
            _check(arguments)
        except ArtifactError as error:
            raise SourceError(f"{files.folder / 'config.json'}: {error}") from error
        return cls(files.folder, arguments)

    def build(self) -> nn.Module:
        """Build it by name."""
        name, arguments = _check(self.arguments)
        library = _library()
        if not library.is_model(name):
            raise ArtifactError(
                f"'architecture': timm {library.__version__} has no model {name!r}. Update timm if "
                f"it is a newer one.{nearest(name, library.list_models())}"
            )
        module: nn.Module = library.create_model(name, pretrained=False, **arguments)
        return module

    def load(self, files: SourceFiles) -> nn.Module:
        """Build it and load its state dict."""
        from zoopress_zoo.state_dict import load_into, note_origin, read_state_dict

        try:
            module = self.build()
        except (TypeError, ValueError, RuntimeError, AssertionError) as error:
            raise SourceError(
                f"{files.folder / 'config.json'}: timm cannot build it: "
                f"{type(error).__name__}: {str(error)[:300]}."
            ) from error
        tensors = {}
        for name in files.weights:
            if not name.endswith(".json"):
                tensors.update(read_state_dict(files.folder / name))
        origin = files.folder / files.weights[0]
        remedy = "config.json and weights are of different models."
        chosen = load_into(module, tensors, origin, remedy)
        note_origin(self, module, chosen, tensors)
        return module.eval()

    def companions(self, model: Model, others: Mapping[str, Path]) -> Companions:
        """Say that timm opens by itself what has its own tensors and no others."""
        return Companions(others, model.edits, native=not model.edits)


def _library() -> Any:
    """Return timm.

    Raises:
        SourceError: saying what is missing.
    """
    return import_optional(
        "timm",
        "This model needs timm",
        "pip install 'zoopress[timm]'",
        SourceError,
        "Often torchvision is of another release than torch: reinstall both together.",
    )


def _arguments(config: dict[str, Any]) -> dict[str, Any]:
    """Return what timm's own loader would pass to the constructor."""
    # Early versions wrote what is now `pretrained_cfg` at the top.
    pretrained = config.get("pretrained_cfg", config)
    if not isinstance(pretrained, dict):
        raise ArtifactError("'pretrained_cfg' is not a mapping.")
    found: dict[str, Any] = {}
    classes = config.get("num_classes", pretrained.get("num_classes"))
    if classes is not None and classes != -1:  # timm's sign for "has no such argument"
        found["num_classes"] = classes
    more = config.get("model_args") or {}
    if not isinstance(more, dict):
        raise ArtifactError("'model_args' is not a mapping.")
    size = pretrained.get("input_size")
    if isinstance(size, list) and len(size) == 3:
        found["in_chans"] = size[0]
        free = more.get("dynamic_img_size") or more.get("strict_img_size") is False
        if pretrained.get("fixed_input_size") and not free and not more.get("use_naflex"):
            found["img_size"] = size[1:]
    return found | more


def _check(arguments: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """Return name and arguments if they are no more than that; they may be a stranger's.

    Raises:
        ArtifactError: naming what is not.
    """
    name, given = arguments.get("model"), arguments.get("arguments", {})
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise ArtifactError(f"{str(name)[:100]!r} is not the name of a model of timm.")
    if not isinstance(given, dict):
        raise ArtifactError("the arguments of timm's model are not a mapping.")
    for key, value in given.items():
        if not _KEY.fullmatch(key) or _REFUSED.fullmatch(key):
            raise ArtifactError(f"the argument {key[:100]!r} of timm's model is not allowed.")
        if not _plain(value):
            raise ArtifactError(
                f"the argument {key!r} of timm's model is {str(value)[:100]!r}; only numbers below "
                f"{_MOST:,}, booleans, words and lists of numbers are allowed."
            )
    return name, given


def _plain(value: Any) -> bool:
    if isinstance(value, list):
        return len(value) < 1000 and all(
            isinstance(item, (int, float)) and _plain(item) for item in value
        )
    if isinstance(value, str):
        return bool(_TEXT.fullmatch(value)) and len(value) < 200
    if isinstance(value, (int, float)):
        return abs(value) < _MOST
    return value is None
