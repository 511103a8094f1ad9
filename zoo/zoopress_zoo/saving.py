"""`save_pretrained` of a compressed transformers model: what it writes opens as the model is.

transformers itself would write packed weights and factors under names that it does not know when
it loads them, and would start with random weights in their place.
"""

from __future__ import annotations

import functools
import json
import tempfile
from pathlib import Path
from typing import Any

from zoopress.artifacts.again import (
    Origin,
    check_there,
    is_compressed,
    is_untouched,
    rebuilt,
    save_again,
)
from zoopress.errors import ArtifactError
from zoopress.plugins import load_plugins
from zoopress_zoo.native import describes
from zoopress_zoo.transformers_config import read_config

_CHECKPOINTS = ("model.safetensors", "model-*.safetensors", "model.safetensors.index.json")
_NOT_CONFIG = frozenset(
    {"_name_or_path", "architectures", "dtype", "transformers_version", "quantization_config"}
    | {"transformers_weights"}
)


def keep_savable(model: Any, origin: Origin, is_part: bool = False) -> None:
    """Give a transformers model a `save_pretrained` that writes what it is.

    Args:
        model: the model.
        origin: the artifact that it was opened from.
        is_part: whether the artifact holds more than this model, as a sentence encoder's does.
    """
    # Not closures: with these the model can be pickled and copied.
    vars(model)["save_pretrained"] = functools.partial(save_pretrained, model, origin, is_part)
    vars(model)["_zoopress_when_dense"] = functools.partial(forget_quantizer, model)


def forget_quantizer(model: Any) -> None:
    """Let transformers take a model that was made dense for an ordinary one."""
    for holder, name in (
        (vars(model), "hf_quantizer"),
        (vars(model), "quantization_method"),
        (vars(model.config), "quantization_config"),
        (vars(model.config), "transformers_weights"),
    ):
        holder.pop(name, None)
    model.is_quantized = False
    vars(model)["_zoopress_is_dense"] = True


def save_pretrained(
    model: Any,
    origin: Origin,
    is_part: bool,
    save_directory: str | Path,
    is_main_process: bool = True,
    state_dict: dict[str, Any] | None = None,
    push_to_hub: bool = False,
    **others: Any,
) -> Any:
    """Save the model: as transformers does where that says all, else as a compressed one.

    Args:
        model: the model.
        origin: the artifact that it was opened from.
        is_part: whether the artifact holds more than this model.
        save_directory: where to.
        is_main_process: as transformers' own.
        state_dict: as transformers' own.
        push_to_hub: as transformers' own.
        others: as transformers' own.

    Raises:
        ArtifactError: if neither can say what the model is now.
    """
    own = functools.partial(type(model).save_pretrained, model, save_directory)
    given = {
        "is_main_process": is_main_process,
        "state_dict": state_dict,
        "push_to_hub": push_to_hub,
        **others,
    }
    if getattr(model, "_hf_peft_config_loaded", False):  # it saves the adapter alone
        return own(**given)
    if not is_compressed(model) and describes(model) and not _is_same(model, origin):
        forget_quantizer(model)
        return own(**given)
    if is_part or state_dict is not None or push_to_hub:
        what = (
            "the transformer of a sentence encoder alone"
            if is_part
            else "with state_dict=…"
            if state_dict is not None
            else "with push_to_hub=True"
        )
        raise ArtifactError(
            f"A compressed model cannot be saved {what}. Save it without, and publish the folder; "
            "or call zoopress.unpack(model) first, and save an ordinary model."
        )
    if is_main_process:
        _save(model, origin, Path(save_directory))
    return None


def _is_same(model: Any, origin: Origin) -> bool:
    """Tell whether a model with ordinary weights, such as a pruned one, has a smaller artifact."""
    if vars(model).get("_zoopress_is_dense") or origin.manifest.native:
        return False
    check_there(origin)
    return is_untouched(model, origin, load_plugins())


def _save(model: Any, origin: Origin, folder: Path) -> None:
    """Write the artifact, with config and generation settings as they are now."""
    check_there(origin)
    plugins = load_plugins()
    with tempfile.TemporaryDirectory(prefix="zoopress-") as name:
        beside = Path(name)
        before: Any = rebuilt(origin, plugins).module
        config = _changed_config(before.config, model.config)
        architecture, changed = None, {}
        if config:
            stored = read_config(origin.folder) | config
            (beside / "config.json").write_text(json.dumps(stored))
            architecture = type(origin.architecture)(beside, dict(origin.architecture.arguments))
            changed["config.json"] = beside / "config.json"
        settings = getattr(model, "generation_config", None)
        if settings is not None and model.can_generate():
            settings.save_pretrained(beside)
            file, known = (
                beside / "generation_config.json",
                origin.folder / "generation_config.json",
            )
            if not known.is_file() or json.loads(file.read_text()) != json.loads(known.read_text()):
                changed[file.name] = file
        save_again(model, origin, folder, plugins, architecture, changed)
    for pattern in _CHECKPOINTS:  # of an earlier model, which transformers would prefer
        for stale in folder.glob(pattern):
            if not _listed(folder, stale.name):
                stale.unlink()


def _changed_config(before: Any, now: Any) -> dict[str, Any]:
    """Return what somebody has changed in a config since the model was opened."""
    old, new = before.to_dict(), now.to_dict()
    return {
        key: value
        for key, value in new.items()
        if key not in _NOT_CONFIG and (key not in old or old[key] != value)
    }


def _listed(folder: Path, name: str) -> bool:
    manifest = json.loads((folder / "zoopress.json").read_text())
    return name in manifest["files"]
