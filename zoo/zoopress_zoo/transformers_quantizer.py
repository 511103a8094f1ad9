"""Compressed models through transformers' own `from_pretrained`, by a quantizer "zoopress".

transformers builds the architecture from config.json on the meta device, is led to a file without
tensors, and leaves a model without any: the quantizer then replays the edits and fills them in.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import nn
from transformers.quantizers.auto import (
    AUTO_QUANTIZER_MAPPING,
    register_quantization_config,
    register_quantizer,
)
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

import zoopress
from zoopress.artifacts.again import Origin
from zoopress.artifacts.artifact import fill_tensors, replay_edits
from zoopress.artifacts.computed import buffers_of
from zoopress.artifacts.forms import Computed
from zoopress.artifacts.manifest import Manifest, read_manifest
from zoopress.errors import ArtifactError
from zoopress.hub.address import Address
from zoopress.hub.artifacts import fetch_artifact
from zoopress.models.bounds import bounded_build
from zoopress.models.edits import set_tensor, submodule
from zoopress.models.model import Model
from zoopress.models.packing import unpack
from zoopress.plugins import load_plugins
from zoopress_zoo.native import EMPTY, QUANTIZER
from zoopress_zoo.saving import keep_savable
from zoopress_zoo.transformers_models import Transformers

_CORE = "transformer."  # where a SentenceEncoder has it


class ZoopressConfig(QuantizationConfigMixin):  # type: ignore[misc]
    """Says that a model was compressed by zoopress; zoopress.json says how."""

    def __init__(self, **others: Any) -> None:
        self.quant_method = QUANTIZER


class ZoopressQuantizer(HfQuantizer):  # type: ignore[misc]
    """Loads what zoopress compressed."""

    requires_calibration = True  # it loads compressed models and makes none

    def validate_environment(self, *_: Any, device_map: Any = None, **others: Any) -> None:
        """Refuse to spread a model over devices."""
        if isinstance(device_map, dict) and len(set(map(str, device_map.values()))) > 1:
            raise ArtifactError(
                "A model that zoopress compressed is loaded onto one device; use device_map='cpu' "
                "or 'cuda'."
            )

    def update_attn_implementation(self, config: Any) -> Any:
        """Lead transformers, which is about to look for tensors, to a file without any."""
        config.transformers_weights = EMPTY
        return config

    update_tp_plan = update_attn_implementation  # what transformers before 5.20 calls at that point

    def _process_model_before_weight_loading(
        self,
        model: Any,
        checkpoint_files: list[str] | None = None,
        device_map: Any = None,
        **others: Any,
    ) -> None:
        folder = _folder(model, checkpoint_files or [])
        manifest = _of_core(read_manifest(folder))
        wanted = manifest.architecture.arguments.get("class")
        if wanted != type(model).__name__:
            raise ArtifactError(
                f"{folder}: this model was compressed as {wanted}, and cannot be loaded as "
                f"{type(model).__name__}. Use {wanted}, or the AutoModel class that gives it."
            )
        device = next(iter(device_map.values())) if device_map else None
        self._loading = folder, manifest, device
        # transformers shall neither miss, nor initialize, nor tie what is filled in afterwards.
        model.state_dict = dict
        model.all_tied_weights_keys = {}
        for module in model.modules():
            module._is_hf_initialized = True

    def _process_model_after_weight_loading(self, model: Any, **others: Any) -> Any:
        folder, manifest, device = self._loading
        del self._loading, model.state_dict
        whole: nn.Module = model
        if _is_encoder(manifest):
            whole = nn.Module()
            whole.transformer = model
        if any(isinstance(entry, Computed) for entry in manifest.tensors.values()):
            _make_buffers(model)
        rebuilt = replay_edits(folder, manifest, whole, load_plugins())
        encoder = _is_encoder(manifest)
        fill_tensors(folder, manifest, rebuilt, _stored_name(manifest), whole=not encoder)
        unpack(model, "auto")
        architecture = Transformers(folder, dict(manifest.architecture.arguments))
        keep_savable(model, Origin(folder, manifest, architecture), is_part=encoder)
        return model if device is None else model.to(device)

    def _dequantize(self, model: Any, dtype: Any = None) -> Any:
        """Make an ordinary model of it, in the types that its weights stand for."""
        return zoopress.unpack(model)

    def is_serializable(self) -> bool:
        """Tell that transformers' own `save_pretrained` cannot write it; the model has another."""
        return False

    @property
    def is_trainable(self) -> bool:
        """Tell that packed weights take no gradient."""
        return False


def register() -> None:
    """Make transformers know the quantizer, once."""
    if QUANTIZER not in AUTO_QUANTIZER_MAPPING:
        register_quantization_config(QUANTIZER)(ZoopressConfig)
        register_quantizer(QUANTIZER)(ZoopressQuantizer)


def _folder(model: Any, checkpoint_files: list[str]) -> Path:
    """Return the artifact's folder, all its files fetched if it comes from the Hub."""
    if not checkpoint_files:
        raise ArtifactError("zoopress loads compressed models only from a folder or from the Hub.")
    folder = Path(checkpoint_files[0]).absolute().parent
    place = str(model.config.name_or_path)
    if Path(place).is_dir():
        return folder
    return fetch_artifact(Address(place, "", folder.name))  # folder: …/snapshots/COMMIT


def _is_encoder(manifest: Manifest) -> bool:
    return manifest.architecture.name == "sentence_encoder"


def _of_core(manifest: Manifest) -> Manifest:
    """Leave out what is no part of the transformer, such as a sentence encoder's dense layers."""
    if not _is_encoder(manifest):
        return manifest
    edits = [edit for edit in manifest.edits if edit.module.startswith(_CORE)]
    tensors = {name: e for name, e in manifest.tensors.items() if name.startswith(_CORE)}
    return manifest.model_copy(update={"edits": edits, "tensors": tensors})


def _make_buffers(model: Any) -> None:
    """Give a model the buffers that its code makes: transformers has left them without values."""
    kind = type(model)
    with bounded_build(1_000_000, keep_parameters=False):
        built = kind(copy.deepcopy(model.config))
    made = buffers_of(built)
    for name in Model(model).non_persistent():
        if name in made:
            path, _, attribute = name.rpartition(".")
            set_tensor(submodule(model, path), attribute, made[name])


def _stored_name(manifest: Manifest) -> Callable[[str], str]:
    if _is_encoder(manifest):
        return lambda name: name.removeprefix(_CORE)
    return lambda name: name
