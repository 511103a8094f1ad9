"""Models of the transformers library, from a folder with config.json.

Which class: the card's `model_class`; else the one that config.json names; else the one of the
Auto class for the card's `pipeline_tag`; else AutoModel's. An artifact always names the concrete
class.

Neither config.json nor weights are trusted. Transformers gets a config without the fields that
make it fetch or run something, and a folder that holds the weights and nothing else.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from zoopress.card import Card
from zoopress.errors import ArtifactError, SourceError, nearest
from zoopress.source import Architecture, Companions, SourceFiles

if TYPE_CHECKING:
    from torch import nn

    from zoopress.model import Model


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
# The Hub's tasks that transformers has models, but no pipeline for.
_MORE_TASKS = {
    "translation": "AutoModelForSeq2SeqLM",
    "summarization": "AutoModelForSeq2SeqLM",
    "text2text-generation": "AutoModelForSeq2SeqLM",
    "image-to-text": "AutoModelForImageTextToText",
    "visual-question-answering": "AutoModelForVisualQuestionAnswering",
    "question-answering": "AutoModelForQuestionAnswering",
}
_MOST_SHOWN = 5


def library() -> Any:
    """Return transformers, made quiet.

    Raises:
        SourceError: if it is not installed.
    """
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


def named_class(config: dict[str, Any]) -> str:
    """Return the class that a config.json names, "" if it names none."""
    names = config.get("architectures")
    first = names[0] if isinstance(names, list) and names else ""
    return first if isinstance(first, str) else ""


class Transformers(Architecture):
    """A transformers model class with a config.

    Its arguments may name an Auto class, or none, until the module has been built or loaded;
    after that they name the concrete class.
    """

    name = "transformers"
    _chooses = False  # whether another class may take the place of one that is not known

    @classmethod
    def detect(cls, card: Card, files: SourceFiles) -> Transformers | None:
        """Take every folder with a config.json of transformers.

        Raises:
            SourceError: if its weights are quantized already.
        """
        if "config.json" not in files.others:
            return None
        config = read_config(files.folder)
        refuse_quantized(config, files.folder / "config.json")
        arguments = {"class": card.model_class or named_class(config)}
        if not card.model_class and card.pipeline_tag:
            arguments["pipeline_tag"] = card.pipeline_tag
        found = cls(files.folder, arguments)
        found._chooses = not card.model_class
        return found

    def build(self) -> nn.Module:
        """Build the class from the folder's config."""
        chosen, config = self.resolve()
        made: nn.Module = chosen(config)
        return made

    def load(self, files: SourceFiles) -> nn.Module:
        """Load by transformers itself, which knows the names of old checkpoints."""
        chosen, config = self.resolve()
        return load_pretrained(files, chosen, config)

    def finish(self, module: nn.Module) -> nn.Module:
        """Give a model that generates the settings that came with it."""
        if getattr(module, "generation_config", None) is not None:
            settings = read_generation_config(self.folder)
            if settings is not None:
                module.generation_config = settings
        return module

    def companions(self, model: Model, others: Mapping[str, Path]) -> Companions:
        """Return the files with which transformers opens the model, too."""
        from zoopress_zoo.native import companions

        self.resolve()  # an artifact names the concrete class
        return companions(model, model.module, "", self.folder / "config.json", others)

    def resolve(self) -> tuple[Any, Any]:
        """Return class and config, and record the class.

        Raises:
            ZoopressError: if there is none, or they do not go together.
        """
        config = read_config(self.folder)
        chosen = find_class(
            config,
            self.folder / "config.json",
            self.arguments.get("class"),
            self.arguments.get("pipeline_tag"),
            self._chooses,
        )
        self.arguments = {"class": chosen.__name__}
        return chosen, make_config(chosen, config, self.folder / "config.json")


def find_class(
    config: dict[str, Any], path: Path, name: Any, tag: Any = None, chooses: bool = False
) -> Any:
    """Return a concrete model class of transformers.

    Args:
        config: the content of config.json, not trusted.
        path: where it is from.
        name: a class, concrete or Auto, not trusted either; "" for none.
        tag: the Hub's name of the model's task, for a model without a known class.
        chooses: whether the task may decide if `name` is not known.

    Raises:
        ArtifactError: if there is no such class.
        SourceError: if the config does not go with it, or asks for code of its own.
    """
    transformers = library()
    found = _attribute(name) if name else None
    if _is_model(found):
        return found
    if found is not None and name.startswith("AutoModel") and hasattr(found, "_model_mapping"):
        return _concrete(found, config, path)
    if config.get("auto_map") and (chooses or not name):
        raise SourceError(
            f"{path}: this model needs Python code from its repository ('auto_map'"
            f"{f' for {name}' if name else ''}), which zoopress never runs. If transformers has a "
            "class that fits, name it as 'model_class' in the card; else use a 'factory'."
        )
    if name and not chooses:
        raise ArtifactError(
            f"'class': {name!r} is not a model class of transformers {transformers.__version__}. "
            f"Update transformers if it is a newer one.{_similar(name)}"
        )
    for auto in _auto_classes(tag):
        with suppress(KeyError):
            return _concrete(auto, config, path, KeyError)
    return _concrete(transformers.AutoModel, config, path)


def make_config(chosen: Any, config: dict[str, Any], path: Path) -> Any:
    """Return the config object of a model class, from what config.json holds.

    Raises:
        SourceError: if it does not fit the class.
    """
    safe = _checked(config, path)
    wanted = chosen.config_class
    kind = safe.get("model_type")
    part = safe.get(wanted.base_config_key or "")
    if kind and kind != wanted.model_type and isinstance(part, dict):
        safe = part  # a part of a composed model, such as CLIP's text encoder
    elif kind and kind != wanted.model_type and not _related(kind, wanted):
        raise SourceError(
            f"{path}: the class {chosen.__name__} is for models of type {wanted.model_type!r}, and "
            f"this one is of type {kind!r}. Change 'model_class' in the card, or leave it out."
        )
    try:
        return wanted.from_dict(safe)
    except Exception as error:  # whatever the library makes of a stranger's file
        raise SourceError(f"{path}: is no config of {chosen.__name__}: {reason(error)}.") from error


def load_pretrained(
    files: SourceFiles,
    chosen: Any,
    config: Any,
    within: str = "",
    may_miss: Callable[[str], bool] = lambda name: False,
) -> nn.Module:
    """Load a transformers model, from safetensors or weights-only pickles.

    Args:
        files: whose `weights` are loaded.
        chosen: the model class.
        config: its config.
        within: the sub-folder that its weights are in.
        may_miss: whether the files need not have a tensor; it becomes zero.

    Raises:
        SourceError: if the library cannot, or tensors are missing.
    """
    names = [n for n in files.weights if str(PurePosixPath(n).parent) == (within or ".")]
    if not names:
        raise SourceError(f"{files.folder / within}: holds no weights of the transformer.")
    settings = read_generation_config(files.folder / within)
    try:
        with _alone(files.folder, names) as folder:
            model, info = chosen.from_pretrained(
                folder,
                config=config,
                local_files_only=True,
                trust_remote_code=False,
                use_kernels=False,
                use_safetensors=names[0].endswith(".safetensors"),
                output_loading_info=True,
                generation_config=settings or library().GenerationConfig.from_model_config(config),
            )
    except SourceError:
        raise
    except Exception as error:  # whatever the library makes of a stranger's files
        raise SourceError(
            f"{files.folder}: transformers cannot load it: {reason(error)}."
        ) from error
    model.config.name_or_path = ""  # a folder that is gone
    check_complete(files.folder / within, model, info, may_miss)
    loaded: nn.Module = model
    return loaded


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


def _attribute(name: Any) -> Any:
    if not isinstance(name, str) or not name.isidentifier():
        return None
    # Transformers imports a class when it is asked for, and says so if that needs more.
    try:
        return getattr(library(), name, None)
    except (ImportError, RuntimeError) as error:
        if name not in dir(library()):
            return None
        raise SourceError(
            f"transformers {library().__version__} has {name}, but cannot import it: "
            f"{reason(error)}. Install what it needs."
        ) from error


def _is_model(found: Any) -> bool:
    return (
        isinstance(found, type)
        and issubclass(found, library().PreTrainedModel)
        and getattr(found, "config_class", None) is not None
    )


def _auto_classes(tag: Any) -> list[Any]:
    """Return the Auto classes that serve a task of the Hub."""
    if not isinstance(tag, str):
        return []
    from transformers.pipelines import SUPPORTED_TASKS, TASK_ALIASES

    if tag in _MORE_TASKS:
        return [found for found in [_attribute(_MORE_TASKS[tag])] if found is not None]
    task = SUPPORTED_TASKS.get(TASK_ALIASES.get(tag, tag))
    return list(task["pt"]) if task else []


def _concrete(auto: Any, config: dict[str, Any], path: Path, missing: Any = SourceError) -> Any:
    """Return the class that an Auto class has for a config's model type."""
    transformers, kind = library(), config.get("model_type")
    if not kind:
        raise SourceError(
            f"{path}: has no 'model_type', and 'architectures' names no class of transformers "
            f"{transformers.__version__}. Name the class as 'model_class' in the card."
        )
    if not isinstance(kind, str) or kind not in transformers.CONFIG_MAPPING:
        raise SourceError(
            f"{path}: transformers {transformers.__version__} has no models of type {kind!r}. "
            "Update transformers if it is a newer one; else give the card a 'factory'."
            f"{nearest(str(kind), transformers.CONFIG_MAPPING.keys())}"
        )
    config_class = transformers.CONFIG_MAPPING[kind]
    if config_class not in auto._model_mapping:
        raise missing(
            f"{path}: transformers {transformers.__version__} has no {auto.__name__} for models of "
            f"type {kind!r}. Name another 'model_class' in the card, or a concrete class."
        )
    found = auto._model_mapping[config_class]
    choices = found if isinstance(found, (list, tuple)) else [found]
    return next((c for c in choices if c.__name__ == named_class(config)), choices[0])


def _related(kind: Any, wanted: Any) -> bool:
    """Return whether a model type's config is a kind of the wanted config, or the reverse."""
    mapping = library().CONFIG_MAPPING
    found = mapping[kind] if isinstance(kind, str) and kind in mapping else None
    return found is not None and (issubclass(found, wanted) or issubclass(wanted, found))


def _similar(name: Any) -> str:
    names = [n for n in dir(library()) if re.search("Model$|For[A-Z][A-Za-z]*$", n)]
    return nearest(name, names) if isinstance(name, str) and len(name) < 100 else ""


@contextmanager
def _alone(folder: Path, names: list[str]) -> Iterator[Path]:
    """Give a folder with nothing but a model's weights, under the names that transformers knows.

    What else lies beside them, an adapter or code, is none of transformers' business.
    """
    suffix = PurePosixPath(names[0]).suffix
    whole = "model.safetensors" if suffix == ".safetensors" else "pytorch_model.bin"
    index = next((n for n in names if n.endswith(".index.json")), None)
    shards = [n for n in names if n != index]
    if index is not None:
        _check_index(folder / index, {PurePosixPath(n).name for n in shards})
    elif len(shards) > 1:
        raise SourceError(
            f"{folder}: its weights are in {len(shards)} files without an index "
            f"({whole}.index.json), so transformers cannot load them. Get the index as well."
        )
    with tempfile.TemporaryDirectory(prefix="zoopress-", ignore_cleanup_errors=True) as name:
        alone = Path(name)
        for shard in shards:
            known = PurePosixPath(shard).name if index is not None else whole
            _link(folder / shard, alone / known)
        if index is not None:
            _link(folder / index, alone / f"{whole}.index.json")
        yield alone


def _check_index(path: Path, shards: set[str]) -> None:
    """Refuse an index that names other files than its shards: it could lead anywhere."""
    try:
        named = set(json.loads(path.read_text(encoding="utf-8"))["weight_map"].values())
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise SourceError(f"{path}: is no index of shards: {reason(error)}.") from error
    if named - shards:
        raise SourceError(
            f"{path}: names {sorted(map(str, named - shards))[0]!r}, which is not among "
            f"{', '.join(sorted(shards)[:_MOST_SHOWN])}. Get all of its files."
        )


def _link(source: Path, target: Path) -> None:
    try:
        os.symlink(source.resolve(), target)
    except OSError:  # Windows allows it to few
        shutil.copyfile(source, target)


def check_complete(
    folder: Path,
    model: Any,
    info: dict[str, Any],
    may_miss: Callable[[str], bool] = lambda name: False,
) -> None:
    """Refuse a model that has random values where the files have nothing, or something else.

    Raises:
        SourceError: naming the tensors.
    """
    import torch

    missing = sorted(info["missing_keys"])
    tensors = dict((*model.named_parameters(), *model.named_buffers()))
    for name in filter(may_miss, missing):
        with torch.no_grad():
            tensors[name].zero_()  # the same in every run
    missing = [name for name in missing if not may_miss(name)]
    wrong = sorted(str(item) for item in info.get("mismatched_keys") or ())
    broken = [str(item) for item in info.get("error_msgs") or ()]
    if not (missing or wrong or broken):
        return
    if missing:
        shown = ", ".join(missing[:_MOST_SHOWN])
        more = f" and {len(missing) - _MOST_SHOWN} more" if len(missing) > _MOST_SHOWN else ""
        raise SourceError(
            f"{folder}: the weights lack {shown}{more}, which {type(model).__name__} has; they "
            "would be random. Use a checkpoint that was fine-tuned for this, or name the class "
            "that the weights are of as 'model_class' in the card, such as AutoModel."
        )
    raise SourceError(
        f"{folder}: the weights do not fit {type(model).__name__}: {(wrong or broken)[0][:300]}. "
        "config.json and weights are of different models."
    )


def reason(error: Exception) -> str:
    """Return the first line of what an error of the library says."""
    text = str(error).strip()
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
