"""Models from a GGUF file, read by transformers and dequantized.

A GGUF file holds tensors, config and tokenizer in one. What comes out is an ordinary model of
transformers, so an artifact of it is an ordinary artifact: the config and tokenizer files that it
needs are made from the GGUF file's own.
"""

from __future__ import annotations

import importlib.util
import json
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zoopress.cards import Card
from zoopress.errors import SourceError
from zoopress.optional import import_optional
from zoopress.sources import Companions, SourceFiles
from zoopress_zoo.transformers_classes import find_class
from zoopress_zoo.transformers_config import library, make_config, reason
from zoopress_zoo.transformers_models import Transformers, check_complete

if TYPE_CHECKING:
    from torch import nn

    from zoopress.models.model import Model

_NEEDED = ("gguf", "accelerate")
_TASK = "text-generation"  # what nearly every GGUF file is for
_TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model")
# Of the file or of this machine, not of the model.
_LOCAL = frozenset(
    {
        *("quantization_config", "auto_map", "transformers_version", "_from_model_config"),
        *("_name_or_path", "_model_name_or_path"),
    }
)


class Gguf(Transformers):
    """A transformers model from a GGUF file; its artifacts are those of any other.

    `arguments` are as of `Transformers`.
    """

    _file = ""

    @classmethod
    def detect(cls, card: Card, files: SourceFiles) -> Gguf | None:
        """Take a GGUF file."""
        if not files.weights[0].endswith(".gguf"):
            return None
        # The file's name is no argument: an artifact is none of GGUF.
        found = cls(files.folder, {"class": card.model_class or ""})
        if not card.model_class:
            found.arguments["pipeline_tag"] = card.pipeline_tag or _TASK
        found._chooses = not card.model_class
        found._file = files.weights[0]
        return found

    def resolve(self) -> tuple[Any, Any]:
        """Return class and config as the GGUF file's metadata have them, and record the class.

        Raises:
            ZoopressError: if transformers cannot tell.
        """
        config, path = self._config, self.folder / self._file
        name, tag = self.arguments.get("class"), self.arguments.get("pipeline_tag")
        chosen = find_class(config, path, name, tag, self._chooses)
        self.arguments = {"class": chosen.__name__}
        return chosen, make_config(chosen, config, path)

    def load(self, files: SourceFiles) -> nn.Module:
        """Load and dequantize.

        Raises:
            SourceError: if transformers cannot, or tensors are missing.
        """
        import torch

        chosen, config = self.resolve()
        path = self.folder / self._file
        given: dict[str, Any] = {}
        if hasattr(library(), "GgufConfig"):  # else it would keep blocks packed where a kernel is
            given["quantization_config"] = library().GgufConfig(dequantize=True)
        try:
            model, info = chosen.from_pretrained(
                self.folder,
                gguf_file=self._file,
                config=config,
                local_files_only=True,
                trust_remote_code=False,
                use_kernels=False,
                output_loading_info=True,
                **given,
            )
        except Exception as error:  # whatever the library makes of a stranger's file
            raise SourceError(f"{path}: transformers cannot load it: {reason(error)}.") from error
        _forget_gguf(model)
        check_complete(path, model, info)
        packed = [n for n, t in model.state_dict().items() if not isinstance(t, torch.Tensor)]
        packed += [n for n, p in model.named_parameters() if not p.is_floating_point()]
        if packed:
            raise SourceError(
                f"{path}: transformers {library().__version__} left {packed[0]} packed. Use a file "
                "of another GGUF type, such as F16 or Q8_0."
            )
        loaded: nn.Module = model
        return loaded

    def companions(self, model: Model, others: Mapping[str, Path]) -> Companions:
        """Return the files with which an artifact is one of transformers.

        Raises:
            SourceError: if transformers cannot make them of the GGUF file.
        """
        from zoopress_zoo.native import companions

        made = self.generate()
        with tempfile.TemporaryDirectory(prefix="zoopress-") as name:
            config = Path(name) / "config.json"
            config.write_bytes(made.pop("config.json"))
            found = companions(model, model.module, "", config, others)
        return replace(found, files={**made, **found.files})

    def generate(self) -> dict[str, bytes]:
        """Return the files that a model of transformers has beside its weights, by name.

        Raises:
            SourceError: if transformers cannot make them of the GGUF file.
        """
        chosen, config = self.resolve()
        saved = json.loads(config.to_json_string())
        plain = {key: value for key, value in saved.items() if key not in _LOCAL}
        plain |= {"architectures": [chosen.__name__], "model_type": config.model_type}
        made = {"config.json": _json(plain)}
        settings = library().GenerationConfig.from_model_config(config).to_diff_dict()
        settings = {key: value for key, value in settings.items() if key not in _LOCAL}
        made["generation_config.json"] = _json(settings)
        if not any((self.folder / name).is_file() for name in _TOKENIZERS):
            made |= _saved(_tokenizer(self.folder, self._file))
        return made

    @cached_property
    def _config(self) -> dict[str, Any]:
        """What a config.json would hold."""
        path = self.folder / self._file
        _need(path)
        try:
            found, _ = library().PreTrainedConfig.get_config_dict(
                self.folder, gguf_file=self._file, local_files_only=True
            )
        except Exception as error:  # whatever the library makes of a stranger's file
            raise SourceError(f"{path}: transformers cannot read it: {reason(error)}.") from error
        return {key: value for key, value in found.items() if key not in _LOCAL}


def load_gguf_tokenizer(folder: Path) -> Any:
    """Return the tokenizer that is inside the GGUF file of a folder.

    Raises:
        SourceError: if it cannot be read.
    """
    files = sorted(p.name for p in folder.glob("*.gguf") if not p.name.startswith("mmproj"))
    if not files:
        raise SourceError(f"{folder}: holds no tokenizer, and no GGUF file that could have one.")
    return _tokenizer(folder, files[0])  # those of one folder differ in their quantization only


def _tokenizer(folder: Path, file: str) -> Any:
    _need(folder / file)
    try:
        return library().AutoTokenizer.from_pretrained(
            folder, gguf_file=file, local_files_only=True, trust_remote_code=False
        )
    except Exception as error:  # tokenizers raises bare exceptions
        raise SourceError(
            f"{folder / file}: its tokenizer cannot be loaded: {reason(error)}."
        ) from error


def _saved(tokenizer: Any) -> dict[str, bytes]:
    with tempfile.TemporaryDirectory(prefix="zoopress-") as name:
        tokenizer.save_pretrained(name)
        return {
            path.relative_to(name).as_posix(): path.read_bytes()
            for path in sorted(Path(name).rglob("*"))
            if path.is_file() and path.suffix != ".gguf"
        }


def _need(path: Path) -> None:
    missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise SourceError(
            f"{path}: to read GGUF, transformers needs {' and '.join(missing)}: "
            "pip install 'zoopress[gguf]'."
        )
    for name in _NEEDED:
        import_optional(
            name,
            f"{path}: to read GGUF, transformers needs {name}",
            "pip install 'zoopress[gguf]'",
            SourceError,
        )


def _forget_gguf(model: Any) -> None:
    """Make a dequantized model one like any other: it would refuse to be saved, for one."""
    for part in {id(c): c for c in (model.config, model.config.get_text_config())}.values():
        if hasattr(part, "quantization_config"):
            del part.quantization_config
    for attribute in ("hf_quantizer", "is_quantized", "quantization_method"):
        model.__dict__.pop(attribute, None)
    model.config.name_or_path = ""


def _json(content: dict[str, Any]) -> bytes:
    return (json.dumps(content, indent=2, sort_keys=True) + "\n").encode()
