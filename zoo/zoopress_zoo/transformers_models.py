"""Models of the transformers library, from a folder with config.json."""

from __future__ import annotations

import json
import re
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zoopress.card import Card
from zoopress.errors import ArtifactError, SourceError
from zoopress.source import Architecture, SourceFiles

if TYPE_CHECKING:
    from torch import nn


# `attn_implementation: org/name` downloads a kernel and runs it; a backbone brings its weights.
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
    }
)
_COUNTED = re.compile(
    "(^|_)(layers?|labels?|depths?|blocks?|stages?|experts?|heads?|levels?|repeats?)$|^(n|num)_(?!ctx|pos)"
)
_MOST_COUNTED = 1 << 20


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
    except (OSError, ValueError, RecursionError) as error:
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
    found: Any = None
    if isinstance(name, str) and name.isidentifier():
        # Transformers imports a class when it is asked for, and says so if that needs more.
        with suppress(ImportError, RuntimeError):
            found = getattr(library, name, None)
    if not (
        isinstance(found, type)
        and issubclass(found, library.PreTrainedModel)
        and getattr(found, "config_class", None) is not None
    ):
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
        chosen = model_class(self.arguments.get("class"))
        found = _checked(read_config(self.folder), self.folder / "config.json")
        made: nn.Module = chosen(chosen.config_class.from_dict(found))
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


def _checked(config: Any, path: Path) -> Any:
    """Drop what could make transformers fetch code or weights, at any depth, and check counts.

    Raises:
        SourceError: if there are more layers, labels or the like than any model has: transformers
            makes lists of them before anything could stop it.
    """
    if isinstance(config, list):
        return [_checked(item, path) for item in config]
    if not isinstance(config, dict):
        return config
    for key, value in config.items():
        counts = value if isinstance(value, list) else [value]
        largest = max((n for n in counts if isinstance(n, int)), default=0)
        if _COUNTED.search(key) and largest > _MOST_COUNTED:
            raise SourceError(
                f"{path}: {key!r} is {_shown(largest)}, which is more than {_MOST_COUNTED:,}. No "
                "model has so many; the file is damaged or hostile."
            )
    return {key: _checked(value, path) for key, value in config.items() if key not in _FETCHING}


def _shown(number: int) -> str:
    return f"{number:,}" if number < 10**30 else "a number of more than 30 digits"
