"""Models of the transformers library, from a folder with config.json.

An artifact always names the concrete class. Neither config.json nor weights are trusted: see
transformers_config.py; and transformers gets a folder that holds the weights and nothing else.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from zoopress.cards import Card
from zoopress.errors import SourceError, cautious
from zoopress.sources import Architecture, Companions, SourceFiles
from zoopress_zoo.transformers_classes import find_class, named_class
from zoopress_zoo.transformers_config import (
    library,
    make_config,
    read_config,
    read_generation_config,
    reason,
    refuse_quantized,
)

if TYPE_CHECKING:
    from torch import nn

    from zoopress.artifacts.again import Origin
    from zoopress.artifacts.manifest import Manifest
    from zoopress.models.model import Model

_MOST_SHOWN = 5


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

    def keep_savable(self, module: nn.Module, origin: Origin) -> bool:
        """Let `save_pretrained` write an artifact."""
        from zoopress_zoo.saving import keep_savable

        keep_savable(module, origin)
        return True

    def companions(self, model: Model, others: Mapping[str, Path]) -> Companions:
        """Return the files with which transformers opens the model, too."""
        from zoopress_zoo.native import companions

        self.resolve()  # an artifact names the concrete class
        return companions(model, model.module, "", self.folder / "config.json", others)

    def library_opens(self, manifest: Manifest) -> bool:
        """Say that transformers does, by the quantizer that registers itself."""
        return True

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
        # A safeguard's advice to switch it off is not passed on, as a cause neither.
        safe = cautious(str(error)) == str(error)
        raise SourceError(f"{files.folder}: transformers cannot load it: {reason(error)}.") from (
            error if safe else None
        )
    model.config.name_or_path = ""  # a folder that is gone
    check_complete(files.folder / within, model, info, may_miss)
    loaded: nn.Module = model
    return loaded


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
