"""Sentence encoders in the folder layout of sentence-transformers, without needing that library.

modules.json                  the modules, in order
config.json, model…           the transformer; or all of it in 0_Transformer/
1_Pooling/config.json
2_Dense/config.json, model…   Dense, LayerNorm, Dropout, Normalize: any number, in any order
config_sentence_transformers.json   prompts
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zoopress.cards import Card
from zoopress.errors import ArtifactError, SourceError, nearest
from zoopress.sources import Architecture, Companions, SourceFiles
from zoopress_zoo.positions import most_tokens
from zoopress_zoo.transformers_classes import named_class
from zoopress_zoo.transformers_config import read_config, refuse_quantized
from zoopress_zoo.transformers_models import Transformers, load_pretrained

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import nn

    from zoopress.artifacts.again import Origin
    from zoopress.artifacts.manifest import Manifest
    from zoopress.models.model import Model
    from zoopress_zoo.sentence_encoder import SentenceEncoder

# What sentence-transformers before 5.3 had in Pooling's config, in the order of joined poolings.
_FLAGS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
_POOLINGS = tuple(_FLAGS.values())
_CORE, _AFTER = "transformer.", "modules_."  # where a SentenceEncoder has these
# Classes of torch.nn that need no arguments and change every value by itself.
_ACTIVATIONS = frozenset(
    {
        *("CELU", "ELU", "GELU", "Hardsigmoid", "Hardswish", "Hardtanh", "Identity", "LeakyReLU"),
        *("LogSigmoid", "Mish", "ReLU", "ReLU6", "SELU", "SiLU", "Sigmoid", "Softplus"),
        *("Softshrink", "Softsign", "Tanh", "Tanhshrink"),
    }
)
# Encoders that AutoModel would give a decoder which nothing here needs.
_ENCODERS = {
    "t5": "T5EncoderModel",
    "mt5": "MT5EncoderModel",
    "umt5": "UMT5EncoderModel",
    "longt5": "LongT5EncoderModel",
}
# Names that sentence-transformers has given to one file over the years.
_TRANSFORMER_CONFIGS = (
    "sentence_bert_config.json",
    "sentence_roberta_config.json",
    "sentence_distilbert_config.json",
    "sentence_camembert_config.json",
    "sentence_albert_config.json",
    "sentence_xlm-roberta_config.json",
    "sentence_xlnet_config.json",
)
_FOLDER = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")
_MOST_SIZE = 1 << 24
_MOST_MODULES = 64


class SentenceEncoderArchitecture(Architecture):
    """A sentence encoder in the layout of sentence-transformers.

    Arguments:
        class: the transformer's class.
        pooling: how its tokens become one vector; several are joined.
        normalize: whether embeddings get length 1 at the end.
        max_tokens: longer sentences are cut.
        folder: where the transformer is; missing for the top.
        modules: what stands between pooling and normalization; missing for nothing.
    """

    name = "sentence_encoder"

    @classmethod
    def detect(cls, card: Card, files: SourceFiles) -> SentenceEncoderArchitecture | None:
        """Take folders with modules.json: a transformer, pooling, and simple modules after it.

        Raises:
            SourceError: if there are others, or code of the repository's own.
        """
        if "modules.json" not in files.others:
            return None
        try:
            return cls(files.folder, _arguments(card, files))
        except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
            raise SourceError(
                f"{files.folder}: modules.json, or a file it names, is not in the layout of "
                f"sentence-transformers ({type(error).__name__}: {error})."
            ) from error

    def build(self) -> nn.Module:
        """Build the transformer from its config, and pooling and the like on top."""
        inner = self._transformer()
        module = self._wrap(inner.build())
        self._record(inner)
        return module

    def load(self, files: SourceFiles) -> nn.Module:
        """Load the transformer's weights, and those of the modules after it."""
        inner = self._transformer()
        chosen, config = inner.resolve()
        # Nothing here uses the pooler that many models have, and as many checkpoints lack.
        transformer = load_pretrained(
            files, chosen, config, self._folder(), lambda name: name.startswith("pooler.")
        )
        module = self._wrap(transformer)
        self._fill(module, files)
        self._record(inner)
        return module

    def finish(self, module: nn.Module) -> nn.Module:
        """Attach tokenizer and prompts, so that `encode` takes text."""
        from zoopress_zoo.sentence_encoder import SentenceEncoder, load_tokenizer

        assert isinstance(module, SentenceEncoder)
        module.tokenizer = load_tokenizer(self.folder / self._folder())
        module.prompts, module.default_prompt = _prompts(self.folder)
        return module

    def core(self, module: nn.Module) -> nn.Module:
        """Return the transformer: sentence-transformers pools its tokens itself."""
        from zoopress_zoo.sentence_encoder import SentenceEncoder

        assert isinstance(module, SentenceEncoder)
        return module.transformer

    def keep_savable(self, module: nn.Module, origin: Origin) -> bool:
        """Let the transformer's `save_pretrained` write it where it is an ordinary one."""
        from zoopress_zoo.saving import keep_savable

        keep_savable(module.transformer, origin, is_part=True)
        return True

    def stored_name(self, name: str) -> str:
        """Return the name that the transformer gives its tensor."""
        return name.removeprefix(_CORE)

    def companions(self, model: Model, others: Mapping[str, Path]) -> Companions:
        """Return the files with which transformers and sentence-transformers open it, too.

        The transformer moves to the top: there it is found by both.
        """
        from zoopress_zoo.native import companions

        inside, arguments = self._folder(), dict(self.arguments)
        start = f"{inside}/" if inside else ""
        arguments.pop("folder", None)
        config_file = self.folder / inside / "config.json"
        moved = {name.removeprefix(start): path for name, path in others.items()}
        core: Any = model.module
        made = companions(model, core.transformer, _CORE, config_file, moved)
        files = dict(made.files)
        modules = _read(self.folder / "modules.json")
        modules[0]["path"] = ""
        files["modules.json"] = (json.dumps(modules, indent=2) + "\n").encode()
        after = self._modules_files(model, [item["path"] for item in modules[2:]])
        files.update(after or {})
        native = made.native and after is not None
        return Companions(files, made.edits, native, arguments, made.listing)

    def library_opens(self, manifest: Manifest) -> bool:
        """Tell whether the modules after pooling are as they were: else it finds no weights."""
        changed = [
            *(edit.module for edit in manifest.edits),
            *(name for name, entry in manifest.tensors.items() if entry.form == "masked"),
        ]
        return not any(name.startswith(_AFTER) for name in changed)

    @staticmethod
    def _modules_files(model: Model, folders: list[str]) -> dict[str, bytes] | None:
        """Return what sentence-transformers reads of the modules after pooling.

        None if they were compressed: it cannot read that.
        """
        from safetensors.torch import save

        found: dict[str, bytes] = {}
        core: Any = model.module
        changed = [*(edit.module for edit in model.edits), *model.masks]
        if any(name.startswith(_AFTER) for name in changed):
            return None
        for folder, child in zip(folders, core.modules_, strict=False):
            if state := child.state_dict():
                # Its LayerNorm holds torch's as `norm`.
                before = "norm." if type(child).__name__ == "LayerNorm" else ""
                renamed = {before + name: tensor.contiguous() for name, tensor in state.items()}
                found[f"{folder}/model.safetensors"] = save(renamed)
        return found

    def _folder(self) -> str:
        folder = self.arguments.get("folder", "")
        if folder and not (isinstance(folder, str) and _FOLDER.fullmatch(folder)):
            raise ArtifactError(f"'architecture': {folder!r} is not a folder's name.")
        return str(folder)

    def _transformer(self) -> Transformers:
        return Transformers(
            self.folder / self._folder(), {"class": self.arguments.get("class") or "AutoModel"}
        )

    def _record(self, inner: Transformers) -> None:
        self.arguments = {**self.arguments, "class": inner.arguments["class"]}

    def _wrap(self, transformer: nn.Module) -> SentenceEncoder:
        from zoopress_zoo.sentence_encoder import SentenceEncoder

        arguments = self.arguments
        pooling, limit = arguments.get("pooling"), arguments.get("max_tokens")
        kinds: list[Any] = pooling if isinstance(pooling, list) else [pooling]
        if not kinds or any(k not in _POOLINGS for k in kinds) or len(kinds) > len(_POOLINGS):
            raise ArtifactError(f"'architecture': unknown pooling {pooling!r}.")
        if type(limit) is not int or limit < 1:
            raise ArtifactError(f"'architecture': unknown limit {limit!r}.")
        modules = arguments.get("modules", [])
        if not isinstance(modules, list) or len(modules) > _MOST_MODULES:
            raise ArtifactError("'architecture': 'modules' is not a short list.")
        made = [_make(item) for item in modules]
        return SentenceEncoder(transformer, kinds, bool(arguments.get("normalize")), limit, made)

    def _fill(self, module: SentenceEncoder, files: SourceFiles) -> None:
        """Load the weights of what comes after pooling."""
        from zoopress_zoo.state_dict import load_into, read_state_dict

        folders = [item["path"] for item in _read(self.folder / "modules.json")[2:]]
        dtype = next(module.transformer.parameters()).dtype
        for folder, child in zip(folders, module.modules_, strict=False):
            if not child.state_dict():
                continue
            names = [n for n in files.weights if n.startswith(f"{folder}/")]
            if len(names) != 1:
                raise SourceError(
                    f"{self.folder / folder}: expected one file of weights, found {names}."
                )
            tensors = read_state_dict(files.folder / names[0])
            # sentence-transformers' own LayerNorm holds torch's as `norm`.
            tensors = {name.removeprefix("norm."): value for name, value in tensors.items()}
            load_into(child, tensors, files.folder / names[0], "Its config.json is of another.")
            child.to(dtype)  # what it gets is of the transformer's type


def read_transformer_config(folder: Path) -> dict[str, Any]:
    """Return what sentence-transformers notes about a transformer, {} if nothing.

    Raises:
        SourceError: if it cannot be read.
    """
    for name in _TRANSFORMER_CONFIGS:
        path = folder / name
        if path.is_file():
            try:
                found = json.loads(path.read_text(encoding="utf-8"))
            except (OSError, ValueError, RecursionError) as error:
                raise SourceError(f"{path}: cannot be read: {error}.") from error
            if not isinstance(found, dict):
                raise SourceError(f"{path}: is not a JSON object.")
            return found
    return {}


def _arguments(card: Card, files: SourceFiles) -> dict[str, Any]:
    """Read the folder's files into what the artifact records."""
    path = files.folder / "modules.json"
    modules = _read(path)
    kinds = [_kind(module["type"], path) for module in modules]
    if kinds[:2] != ["Transformer", "Pooling"] or not set(kinds[2:]) <= _READERS.keys():
        raise SourceError(
            f"{path}: understood are Transformer and Pooling, then any of {sorted(_READERS)}, not "
            f"{kinds}. Give the card a 'factory' instead."
        )
    for module in modules:
        if module["path"] and not _FOLDER.fullmatch(module["path"]):
            raise SourceError(f"{path}: {module['path']!r} is not the name of a folder beside it.")
    inside = modules[0]["path"]
    home = files.folder / inside
    config = read_config(home)
    refuse_quantized(config, home / "config.json")
    after = [
        _READERS[kind](_config(files.folder / module["path"]), files.folder / module["path"])
        for kind, module in zip(kinds[2:], modules[2:], strict=True)
    ]
    normalize = kinds[-1] == "Normalize"
    after = after[: len(after) - normalize]
    arguments = {
        "class": card.model_class or _transformer_class(config),
        "pooling": _pooling(files.folder / modules[1]["path"]),
        "normalize": normalize,
        "max_tokens": _limit(home, config),
    }
    # Only what is not usual, so that artifacts of the usual kind stay readable by older versions.
    return (
        arguments | ({"folder": inside} if inside else {}) | ({"modules": after} if after else {})
    )


def _transformer_class(config: dict[str, Any]) -> str:
    kind = config.get("model_type")
    if isinstance(kind, str) and kind in _ENCODERS:
        return _ENCODERS[kind]
    # A class with a head has no use for one here, and AutoModel knows which has none.
    named = named_class(config)
    return named if named.endswith("Model") else "AutoModel"


def _kind(name: str, path: Path) -> str:
    if not name.startswith("sentence_transformers."):
        raise SourceError(
            f"{path}: the module {name!r} is code from the model's repository, which zoopress "
            "never runs. Give the card a 'factory' instead."
        )
    return name.rpartition(".")[2]


def _read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def _config(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    return dict(_read(path)) if path.is_file() else {}


def _pooling(folder: Path) -> str | list[str]:
    path = folder / "config.json"
    config = _read(path)
    given = config.get("pooling_mode")
    if given is None:
        given = [kind for flag, kind in _FLAGS.items() if config.get(flag)] or ["mean"]
    kinds = [given] if isinstance(given, str) else list(given)
    unknown = [kind for kind in kinds if kind not in _POOLINGS]
    if unknown or not kinds:
        raise SourceError(
            f"{path}: pooling must be among {list(_POOLINGS)}, not {unknown or kinds}."
        )
    if config.get("include_prompt") is False:
        raise SourceError(
            f"{path}: 'include_prompt' is false: this encoder leaves its prompt's tokens out of "
            "pooling, which is not supported. Give the card a 'factory' instead."
        )
    return kinds[0] if len(kinds) == 1 else kinds


def _limit(folder: Path, config: dict[str, Any]) -> int:
    """Return how many tokens the transformer takes.

    Raises:
        SourceError: if sentence-transformers would use it for something other than text.
    """
    from_library = read_transformer_config(folder)
    task = from_library.get("transformer_task", "feature-extraction")
    modalities = from_library.get("modality_config") or {"text": {}}
    if task != "feature-extraction" or "text" not in modalities:
        raise SourceError(
            f"{folder}: only encoders of text are understood, not the task {task!r} with "
            f"{sorted(modalities)}. Give the card a 'factory' instead."
        )
    limits = [from_library.get("max_seq_length")]
    if not limits[0]:
        path = folder / "tokenizer_config.json"
        limits = [_read(path).get("model_max_length") if path.is_file() else None]
    limits.append(most_tokens(config))
    sound = [limit for limit in limits if type(limit) is int and 0 < limit <= _MOST_SIZE]
    return min(sound, default=512)


def _dense(config: dict[str, Any], folder: Path) -> dict[str, Any]:
    for key in ("module_input_name", "module_output_name"):
        if config.get(key) not in (None, "sentence_embedding"):
            raise SourceError(
                f"{folder / 'config.json'}: {key!r} is {config[key]!r}; only 'sentence_embedding' "
                "is understood. Give the card a 'factory' instead."
            )
    full = config.get("activation_function", "torch.nn.Tanh") or "torch.nn.Identity"
    package, _, activation = str(full).rpartition(".")
    known = package == "torch.nn" or package.startswith("torch.nn.modules.")
    if not known or activation not in _ACTIVATIONS:
        raise SourceError(
            f"{folder / 'config.json'}: the activation {full!r} is not among those of torch.nn "
            f"that are understood.{nearest(activation, _ACTIVATIONS)}"
        )
    return {
        "type": "Dense",
        "inputs": config["in_features"],
        "outputs": config["out_features"],
        "bias": bool(config.get("bias", True)),
        "activation": activation,
        "residual": bool(config.get("use_residual", False)),
    }


_READERS: dict[str, Any] = {
    "Dense": _dense,
    "LayerNorm": lambda config, folder: {"type": "LayerNorm", "size": config["dimension"]},
    "Dropout": lambda config, folder: {"type": "Dropout", "share": config.get("dropout", 0.2)},
    "Normalize": lambda config, folder: {"type": "Normalize"},
}


def _make(item: Any) -> nn.Module:
    """Make a module from what an artifact says, which is not trusted.

    Raises:
        ArtifactError: if it is not one of the few that are known.
    """
    from torch import nn

    from zoopress_zoo.sentence_encoder import Dense, Normalize

    kind = item.get("type") if isinstance(item, dict) else None
    if kind == "Normalize":
        return Normalize()
    if kind == "LayerNorm":
        return nn.LayerNorm(_size(item, "size"))
    share = item.get("share") if kind == "Dropout" else None
    if kind == "Dropout" and isinstance(share, (int, float)) and 0 <= share <= 1:
        return nn.Dropout(float(share))
    if kind == "Dense" and item.get("activation") in _ACTIVATIONS:
        activation: nn.Module = getattr(nn, item["activation"])()
        bias, residual = bool(item.get("bias")), bool(item.get("residual"))
        return Dense(_size(item, "inputs"), _size(item, "outputs"), bias, activation, residual)
    raise ArtifactError(f"'architecture': {str(item)[:200]} is no known module.")


def _size(item: dict[str, Any], key: str) -> int:
    size = item.get(key)
    if type(size) is not int or not 1 <= size <= _MOST_SIZE:
        raise ArtifactError(
            f"'architecture': {key!r} of {item['type']} must be a size, not {size!r}."
        )
    return size


def _prompts(folder: Path) -> tuple[dict[str, str], str | None]:
    """Return the prompts that came with the model, and the name of the usual one."""
    path = folder / "config_sentence_transformers.json"
    if not path.is_file():
        return {}, None
    try:
        config = _read(path)
        prompts = {
            name: text
            for name, text in (config.get("prompts") or {}).items()
            if isinstance(text, str)
        }
        default = config.get("default_prompt_name")
    except (OSError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise SourceError(f"{path}: cannot be read: {type(error).__name__}: {error}.") from error
    return prompts, default if default in prompts else None
