"""A checkpoint of compressed-tensors: linear layers as packed integers, scales and zero points.

    FOLDER/
        model.safetensors        or shards and their index when large
        config.json              with a `quantization_config` that says what is packed, and how
        tokenizer.json, …        what came with the model

transformers opens it where compressed-tensors is installed, and so do vLLM and others. The integers
and scales are the artifact's own: nothing is rounded again.

Source: https://github.com/vllm-project/compressed-tensors, `pack_quantized` and its scheme.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import redirect_stderr
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from zoopress.artifacts.encoding import encode
from zoopress.artifacts.opened import Opened
from zoopress.artifacts.save import INDEX, shard_index
from zoopress.artifacts.tensor_files import MAX_SHARD_BYTES, write_tensors
from zoopress.coding.layout import StoredTensor
from zoopress.errors import DeploymentError
from zoopress.exporters import Exporter, Use
from zoopress.exporters.safetensors import Safetensors, other_files, plain_model
from zoopress.models.packing import PackedWeight
from zoopress.optional import import_optional
from zoopress_zoo.transformers_config import library
from zoopress_zoo.transformers_models import Transformers, check_complete

_PUBLISHED = "compressed-tensors"


class CompressedTensors(Exporter):
    """Writes the integers of linear layers in 2 to 8 bits, and everything else dense."""

    def refusal(self, artifact: Opened) -> str | None:
        """Refuse models of other libraries, other structures, and grids without a word for them."""
        _library()
        if not isinstance(artifact.architecture, Transformers):
            return (
                "compressed-tensors is a format for models of transformers, and this one is of the "
                f"architecture {artifact.architecture.name!r}. Use 'onnx' or 'torch_export'."
            )
        plain = Safetensors().refusal(artifact)
        if plain is not None:
            return plain
        found = linear_weights(artifact.module)
        if not found:
            return (
                "none of its nn.Linear layers has packed weights, so there is nothing to write as "
                "integers. Add weight_quantization with 'bits: 4' or 'bits: 8' to the recipe, or "
                "use 'safetensors'."
            )
        for name, packed in found.items():
            if (why := _unfit(packed)) is not None:
                return f"the weights of {name!r} are {why}"
        return None

    def notes(self, artifact: Opened) -> list[str]:
        """Say which packed weights are written dense, and which take a bit more."""
        linear = linear_weights(artifact.module)
        written = {id(packed) for packed in linear.values()}
        dense = [
            f"{path}.{name}"
            for path, owner in artifact.module.named_modules()
            for name in getattr(type(owner), "_packed_names", ())
            if id(owner._modules[name]) not in written
        ]
        with torch.no_grad():
            wider = [name for name, packed in linear.items() if _Layer.of(packed).widened]
        said = []
        if dense:
            said.append(
                f"{_some(dense)}: written dense, on the same grid; readers of compressed-tensors "
                "take integers for linear layers alone, and not where a weight is tied."
            )
        if wider:
            said.append(
                f"{_some(wider)}: written in one bit more, on the same grid, since transformers "
                "cannot load packed zero points. Quantize with 'symmetric: true' to save it."
            )
        return said

    def write(self, artifact: Opened, folder: Path) -> None:
        """Write tensors, config and what came with the model."""
        model = plain_model(artifact)
        others = other_files(artifact)
        beside = artifact.architecture.companions(model, others)
        with torch.no_grad():
            layers = {n: _Layer.of(w) for n, w in linear_weights(artifact.module).items()}
        made = model.non_persistent()
        tensors = {n: t for n, t in model.tensors().items() if n not in made}
        _, stored = encode(tensors, {}, {}, share=False)
        named: dict[str, StoredTensor] = {}
        for name, item in stored.items():
            layer = layers.get(name.removesuffix(".weight")) if name.endswith(".weight") else None
            parts = {"": item} if layer is None else layer.stored()
            for ending, part in parts.items():
                named[artifact.architecture.stored_name(name) + ending] = part
        weights = write_tensors(folder, "safetensors", named, MAX_SHARD_BYTES)
        files = {n: c for n, c in beside.files.items() if n != INDEX}
        if len(weights) > 1:
            files[INDEX] = shard_index(folder, weights)
        config = json.loads(_content(files["config.json"]))
        schemes = {name: layer.scheme for name, layer in layers.items()}
        config["quantization_config"] = _quantization_config(artifact.module, schemes)
        files["config.json"] = (json.dumps(config, indent=2, sort_keys=True) + "\n").encode()
        for name, content in files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(_content(content))

    def published_names(self, artifact: Opened, name: str) -> list[str]:
        """Publish it in a folder of its own: config.json says another thing there."""
        return [f"{_PUBLISHED}/{name}"]

    def uses(self, artifact: Opened, place: str) -> list[Use]:
        """Open it by transformers."""
        kind = type(artifact.module).__name__
        chosen = "AutoModelForCausalLM" if kind.endswith("ForCausalLM") else kind
        code = (
            f"from transformers import {chosen}\n\n"
            f'model = {chosen}.from_pretrained("{place}", subfolder="{_PUBLISHED}")'
        )
        return [Use("transformers and compressed-tensors", code)]

    def read(self, artifact: Opened, folder: Path) -> nn.Module:
        """Open it as everybody does, by `from_pretrained`."""
        assert isinstance(artifact.architecture, Transformers)
        chosen, _ = artifact.architecture.resolve()
        library()
        with redirect_stderr(StringIO()):  # bars of its progress
            model, told = chosen.from_pretrained(
                folder, local_files_only=True, trust_remote_code=False, output_loading_info=True
            )
        check_complete(folder, model, told)
        if told["unexpected_keys"]:
            raise DeploymentError(
                f"transformers {library().__version__} does not know the tensor "
                f"{sorted(told['unexpected_keys'])[0]!r}. Update transformers and "
                "compressed-tensors."
            )
        return cast(nn.Module, model.eval())


def linear_weights(root: nn.Module) -> dict[str, PackedWeight]:
    """Return the packed weights of linear layers by the layer's name, tied ones left out."""
    places: dict[int, list[tuple[str, nn.Module, str]]] = {}
    for path, owner in root.named_modules(remove_duplicate=False):
        for name in getattr(type(owner), "_packed_names", ()):
            storage = next(_packed(owner, name).buffers()).untyped_storage()._cdata
            places.setdefault(storage, []).append((path, owner, name))
    return {
        found[0][0]: _packed(found[0][1], found[0][2])
        for found in places.values()
        if len(found) == 1
        and found[0][2] == "weight"
        and isinstance(found[0][1], nn.Linear)
        and len(_packed(found[0][1], "weight").shape) == 2
    }


def _packed(owner: nn.Module, name: str) -> PackedWeight:
    packed = owner._modules[name]
    assert isinstance(packed, PackedWeight)
    return packed


def _unfit(packed: PackedWeight) -> str | None:
    """Say why a weight's grid cannot be written, and what would help; None if it can."""
    with torch.no_grad():
        form = packed.export_form()
    kind = type(packed).__name__
    again = "Quantize it with weight_quantization instead, or use 'safetensors' or 'torch_export'."
    if form is None or packed.output_axis != 0:
        return f"no integers times a scale for each row or group ({kind}). {again}"
    if form.axis == 1:
        return f"integers with a scale for each column ({kind}), not for each row. {again}"
    if form.bits > 8:
        return f"integers of {form.bits} bits ({kind}), and the format holds up to 8. {again}"
    columns = form.codes.shape[1]
    if form.group_size is not None and columns % form.group_size:
        return (
            f"in groups of {form.group_size}, which do not divide its {columns} columns. Choose a "
            "'group_size' that does, or leave it out for one scale a row."
        )
    return None


@dataclass(frozen=True)
class _Scheme:
    """What layers have in common that are packed alike."""

    bits: int
    group_size: int | None
    symmetric: bool

    @property
    def format(self) -> str:
        """Name how they are stored: packed, or where there are zero points a byte each."""
        return "pack-quantized" if self.symmetric else "int-quantized"

    def as_dict(self) -> dict[str, Any]:
        """Return it as config.json has it."""
        weights: dict[str, Any] = {
            "num_bits": self.bits,
            "type": "int",
            "symmetric": self.symmetric,
            "strategy": "channel" if self.group_size is None else "group",
            "group_size": self.group_size,
            "dynamic": False,
        }
        return {
            "weights": weights,
            "input_activations": None,
            "output_activations": None,
            "format": self.format,
        }


@dataclass(frozen=True)
class _Layer:
    """A linear layer's weight as the format has it.

    Attributes:
        codes: [rows, columns], int8, from −2^(bits − 1) on.
        scale: [rows, groups], of the weight's type.
        zero_point: int8 of the same shape, None if the scheme is symmetric.
        widened: whether it takes a bit more than the weight's own codes.
    """

    scheme: _Scheme
    codes: Tensor
    scale: Tensor
    zero_point: Tensor | None
    widened: bool

    @classmethod
    def of(cls, packed: PackedWeight) -> _Layer:
        """Return it from a weight that is fit for it.

        transformers cannot load zero points that are packed, so codes are counted from them:
        exactly the same grid, in one bit more where codes lie on one side of zero. Of 8 bits that
        may not fit a byte; these keep their zero points.
        """
        form = packed.export_form()
        assert form is not None
        rows, columns = form.codes.shape
        codes = form.codes.to(torch.int16)
        scale = form.scale.expand(rows, 1) if form.axis is None else form.scale
        scale = scale.to(packed.dtype).contiguous()
        counted, zero = codes, None
        if form.zero_point is not None:
            zero = form.zero_point.to(torch.int16)
            zero = zero.expand(rows, 1) if form.axis is None else zero
            counted = codes - zero.repeat_interleave(form.group_size or columns, 1)
        low, high = int(counted.min()), int(counted.max())
        for bits in (form.bits, form.bits + 1):
            if bits <= 8 and -(1 << (bits - 1)) <= low and high < 1 << (bits - 1):
                scheme = _Scheme(bits, form.group_size, True)
                return cls(scheme, counted.to(torch.int8), scale, None, bits > form.bits)
        zero = torch.zeros(scale.shape, dtype=torch.int16) if zero is None else zero
        return cls(
            _Scheme(8, form.group_size, False),
            (codes - 128).to(torch.int8),
            scale,
            (zero - 128).to(torch.int8).contiguous(),
            False,
        )

    def stored(self) -> dict[str, StoredTensor]:
        """Return the tensors, by what comes after "weight" in their names."""
        parts = {"_scale": self.scale}
        if self.zero_point is None:
            from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32

            parts["_packed"] = pack_to_int32(self.codes, self.scheme.bits)
            parts["_shape"] = torch.tensor(self.codes.shape)
        else:
            parts |= {"": self.codes, "_zero_point": self.zero_point}
        return {ending: StoredTensor(tensor) for ending, tensor in parts.items()}


def _quantization_config(root: nn.Module, schemes: Mapping[str, _Scheme]) -> dict[str, Any]:
    """Return what config.json says of the weights."""
    version = _library().__version__
    linear = [name for name, module in root.named_modules() if isinstance(module, nn.Linear)]
    kinds = list(dict.fromkeys(schemes.values()))
    groups = {
        f"group_{position}": {
            **kind.as_dict(),
            # One name for all is what every reader understands.
            "targets": ["Linear"]
            if len(kinds) == 1
            else [name for name, scheme in schemes.items() if scheme == kind],
        }
        for position, kind in enumerate(kinds)
    }
    formats = {kind.format for kind in kinds}
    return {
        "quant_method": "compressed-tensors",
        "version": version,
        "format": formats.pop() if len(formats) == 1 else "mixed-precision",
        "quantization_status": "compressed",
        "config_groups": groups,
        "ignore": [name for name in linear if name not in schemes],
        "kv_cache_scheme": None,
    }


def _some(names: list[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more


def _content(content: Path | bytes) -> bytes:
    return content if isinstance(content, bytes) else content.read_bytes()


def _library() -> Any:
    return import_optional(
        "compressed_tensors",
        "The exporter 'compressed_tensors' needs compressed-tensors",
        "pip install 'zoopress[compressed-tensors]'",
        DeploymentError,
    )
