"""Compressed models through transformers' own `from_pretrained`, by a quantizer "zoopress".

transformers builds the architecture of config.json on the meta device, and fetches all files of an
artifact, which an index lists as if they were shards of one checkpoint: with the token, the cache,
the sub-folder and all else that its caller said. The quantizer replays the edits, fills the tensors
in, and leaves a file without tensors to transformers.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers.quantizers import auto
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

import zoopress
from zoopress.artifacts.again import Origin
from zoopress.artifacts.artifact import fill_tensors, replay_edits
from zoopress.artifacts.computed import buffers_of
from zoopress.artifacts.forms import Computed
from zoopress.artifacts.manifest import MANIFEST, Manifest, parse_manifest, read_manifest
from zoopress.errors import ArtifactError
from zoopress.hub.cached import check_cached
from zoopress.models.bounds import bounded_build
from zoopress.models.edits import set_tensor, submodule
from zoopress.models.input_grid import InputGrid
from zoopress.models.input_scale import InputScale
from zoopress.models.model import Model
from zoopress.models.packing import PackedWeight, packed_weights, unpack
from zoopress.plugins import load_plugins
from zoopress_zoo.native import EMPTY, LISTING, QUANTIZER
from zoopress_zoo.saving import keep_savable
from zoopress_zoo.transformers_call import (
    changed_by_call,
    fetch_without_listing,
    one_device,
    refuse_what_means_nothing,
)
from zoopress_zoo.transformers_models import Transformers

_CORE = "transformer."  # where a SentenceEncoder has it


class ZoopressConfig(QuantizationConfigMixin):  # type: ignore[misc]
    """Says that a model was compressed by zoopress; zoopress.json says how.

    Args:
        dequantize: whether to load a dense model: every packed weight becomes a plain parameter.
        files: the index of the artifact's files.
    """

    def __init__(self, dequantize: bool = False, files: str | None = None, **others: Any) -> None:
        if type(dequantize) is not bool:
            raise ArtifactError(
                f"'dequantize' must be True or False, not {dequantize!r}: whether to load the "
                "model with dense weights."
            )
        self.quant_method = QUANTIZER
        self.dequantize = dequantize
        self.files = files

    def get_loading_attributes(self) -> dict[str, Any]:
        """Return what a caller's config changes of that in config.json."""
        return {"dequantize": self.dequantize}

    def to_dict(self) -> dict[str, Any]:
        """Return what config.json says."""
        return {"quant_method": self.quant_method, "files": self.files}


class ZoopressQuantizer(HfQuantizer):  # type: ignore[misc]
    """Loads what zoopress compressed."""

    requires_calibration = True  # it loads compressed models and makes none

    def validate_environment(self, *_: Any, device_map: Any = None, **others: Any) -> None:
        """Refuse what a compressed model cannot be asked for."""
        refuse_what_means_nothing()
        one_device(device_map)

    def update_device_map(self, device_map: Any) -> Any:
        """Choose a device where the caller leaves that to transformers, which knows no sizes."""
        return one_device(device_map)

    def update_attn_implementation(self, config: Any) -> Any:
        """Lead transformers, which is about to look for tensors, to the index of all files."""
        listing = self.quantization_config.files
        config.transformers_weights = LISTING if listing == LISTING else EMPTY
        if config.dtype is None:
            config.dtype = torch.float32
        return config

    update_tp_plan = update_attn_implementation  # what transformers before 5.20 calls at that point

    def update_dtype(self, dtype: torch.dtype) -> torch.dtype:
        """Note the type that was asked for: what is stored in another is cast at the end."""
        self._asked_type = dtype
        return dtype

    def _process_model_before_weight_loading(
        self,
        model: Any,
        checkpoint_files: list[str] | None = None,
        device_map: Any = None,
        **others: Any,
    ) -> None:
        folder = _folder(model, checkpoint_files or [])
        if checkpoint_files is not None:
            checkpoint_files[:] = [str(folder / EMPTY)]  # the rest is no business of transformers'
        manifest = _of_core(_read(folder))
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
        encoder = _is_encoder(manifest)
        try:
            rebuilt = replay_edits(folder, manifest, whole, load_plugins())
            fill_tensors(folder, manifest, rebuilt, _stored_name(manifest), whole=not encoder)
        except ArtifactError as error:
            changed = changed_by_call(folder, model)
            if changed:
                raise ArtifactError(changed) from error
            raise
        if self._asked_type != _stored_type(folder):
            _cast(model, self._asked_type)
        if not self.quantization_config.dequantize:
            unpack(model, "auto")
        architecture = Transformers(folder, dict(manifest.architecture.arguments))
        keep_savable(model, Origin(folder, manifest, architecture), is_part=encoder)
        if self.quantization_config.dequantize:
            zoopress.unpack(model)
        return model if device is None else model.to(device)

    def _dequantize(self, model: Any, dtype: torch.dtype | None = None) -> Any:
        """Make an ordinary model of it, in the types that its weights stand for."""
        dense = zoopress.unpack(model)
        if dtype is not None and dtype != model.config.dtype:
            _cast(model, dtype)
        return dense

    def is_serializable(self) -> bool:
        """Tell that transformers' own `save_pretrained` cannot write it; the model has another."""
        return False

    @property
    def is_trainable(self) -> bool:
        """Tell that packed weights take no gradient."""
        return False


def register() -> None:
    """Make transformers know the quantizer, once."""
    if QUANTIZER not in auto.AUTO_QUANTIZER_MAPPING:
        auto.register_quantization_config(QUANTIZER)(ZoopressConfig)
        auto.register_quantizer(QUANTIZER)(ZoopressQuantizer)
        # Else what a caller's config says beside a model's own is warned of and dropped.
        known = getattr(auto, "LOADING_ATTRIBUTES_CONFIG_TYPES", None)
        if isinstance(known, tuple):
            auto.LOADING_ATTRIBUTES_CONFIG_TYPES = (*known, ZoopressConfig)


def _folder(model: Any, checkpoint_files: list[str]) -> Path:
    """Return the artifact's folder, with all its files."""
    if not checkpoint_files:
        raise ArtifactError("zoopress loads compressed models only from a folder or from the Hub.")
    paths = [Path(file).absolute() for file in checkpoint_files]
    for path in paths:
        if path.name == MANIFEST:
            return path.parent
    place = str(model.config.name_or_path)
    if Path(place).is_dir():
        return paths[0].parent
    return fetch_without_listing(place, paths[0])


def _read(folder: Path) -> Manifest:
    """Read an artifact's manifest and compare its files; remove what is wrong from a cache."""
    check_cached(folder, [MANIFEST])  # which has the digests of all others
    try:
        return read_manifest(folder)
    except ArtifactError:
        check_cached(folder, parse_manifest(folder / MANIFEST).files)
        raise


def _cast(model: Any, dtype: torch.dtype) -> None:
    """Cast a model as transformers would have loaded it: some modules stay in float32."""
    plan = model._get_dtype_plan(dtype) if hasattr(model, "_get_dtype_plan") else {}
    packed = packed_weights(model)
    inside = {id(each) for weight in packed.values() for each in weight.modules()}
    for name, module in model.named_modules():
        if id(module) in inside or isinstance(module, (InputGrid, InputScale)):
            continue
        wanted = torch.float32 if any(part in name.split(".") for part in plan) else dtype
        kept = module._non_persistent_buffers_set  # made in float32, and read so
        for tensors in (module._parameters, module._buffers):
            for key, tensor in tensors.items():
                if tensor is not None and tensor.is_floating_point() and key not in kept:
                    tensor.data = tensor.data.to(wanted)
        for child in module.children():
            if isinstance(child, PackedWeight):  # its scales stay as precise as they are
                child.to(wanted)
    model.config.dtype = dtype
    for part in getattr(model.config, "sub_configs", {}):
        if getattr(model.config, part, None) is not None:
            getattr(model.config, part).dtype = dtype


def _stored_type(folder: Path) -> torch.dtype | None:
    """Return the type that most of an artifact's numbers are of, as its config.json says."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    found = getattr(torch, str(config.get("dtype") or config.get("torch_dtype")), None)
    return found if isinstance(found, torch.dtype) else None


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


register()  # here, since this module may be imported before transformers is
