"""Models of the transformers library, from a folder with config.json."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zoopress.card import Card
from zoopress.errors import ArtifactError, SourceError
from zoopress.source import Architecture, SourceFiles

if TYPE_CHECKING:
    from torch import nn


def _library() -> Any:
    try:
        import transformers
    except ImportError as error:
        raise SourceError(
            "This model needs the transformers library: pip install 'zoopress[transformers]'."
        ) from error
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
    except (OSError, ValueError) as error:
        raise SourceError(f"{path}: cannot be read: {error}.") from error
    if not isinstance(config, dict):
        raise SourceError(f"{path}: is not a JSON object.")
    return config


def model_class(name: Any) -> Any:
    """Return the transformers model class of a name.

    Raises:
        ArtifactError: if it is anything else; names come from files that are not trusted.
    """
    library = _library()
    found = getattr(library, name, None) if isinstance(name, str) and name.isidentifier() else None
    if not (isinstance(found, type) and issubclass(found, library.PreTrainedModel)):
        raise ArtifactError(
            f"'class': {name!r} is not a model class of transformers {library.__version__}. "
            "Update transformers if it is a newer one."
        )
    return found


class Transformers(Architecture):
    """A transformers model class with a config."""

    name = "transformers"

    @classmethod
    def detect(cls, card: Card, files: SourceFiles) -> Transformers | None:
        """Take every folder whose config.json names its class."""
        if "config.json" not in files.others:
            return None
        names = read_config(files.folder).get("architectures")
        if not names:
            raise SourceError(
                f"{files.folder / 'config.json'}: the field 'architectures' must name the model's "
                "class, such as ['BertForSequenceClassification']."
            )
        return cls(files.folder, {"class": names[0]})

    def build(self) -> nn.Module:
        """Build the class from the folder's config."""
        library = _library()
        chosen = model_class(self.arguments.get("class"))
        config = chosen.config_class.from_dict(_without_code(read_config(self.folder)))
        del library
        made: nn.Module = chosen(config)
        return made

    def load(self, files: SourceFiles) -> nn.Module:
        """Load by transformers itself, which knows the names of old checkpoints."""
        return load_pretrained(files, self.arguments.get("class"))


def load_pretrained(files: SourceFiles, name: Any) -> nn.Module:
    """Load a transformers model from a folder, from safetensors or weights-only pickles.

    Raises:
        SourceError: if the library cannot.
    """
    try:
        model: nn.Module = model_class(name).from_pretrained(
            files.folder,
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=files.weights[0].endswith(".safetensors"),
        )
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        reason = str(error).splitlines()[0][:400] if str(error) else type(error).__name__
        raise SourceError(f"{files.folder}: transformers cannot load it: {reason}.") from error
    return model


def _without_code(config: dict[str, Any]) -> dict[str, Any]:
    """Drop what could make transformers look for code or another quantizer."""
    return {k: v for k, v in config.items() if k not in ("auto_map", "quantization_config")}
