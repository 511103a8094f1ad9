"""What `from_pretrained` was asked for, as far as it means something for a compressed model.

transformers tells a quantizer little of it, so what has no meaning here would be passed over: each
such argument is refused, with what to do instead.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from zoopress.errors import ArtifactError
from zoopress.hub.address import Address
from zoopress.hub.artifacts import fetch_artifact
from zoopress.hub.cached import snapshot_of
from zoopress.hub.client import Hub

_MEANINGLESS = {
    "variant": "a compressed model has its weights once. Leave it out, and choose the type with "
    "'dtype'.",
    "key_mapping": "the tensors of a compressed model have the names of its architecture already. "
    "Leave it out.",
    "fusion_config": "the layers of a compressed model stay as they were compressed. Leave it out.",
    "distributed_config": "a compressed model is loaded onto one device. Leave it out, or split a "
    "dense model: quantization_config=ZoopressConfig(dequantize=True), then save it.",
    "tp_plan": "a compressed model is loaded onto one device. Leave it out.",
    "tp_size": "a compressed model is loaded onto one device. Leave it out.",
    "device_mesh": "a compressed model is loaded onto one device. Leave it out.",
    "use_kernels": "the layers of a compressed model have kernels of their own. Leave it out.",
    "kernel_config": "the layers of a compressed model have kernels of their own. Leave it out.",
}
_CHOSEN_BY_LIBRARY = ("auto", "balanced", "balanced_low_0", "sequential")
_SEVERAL = (
    "A model that zoopress compressed is loaded onto one device; use device_map='cpu' or 'cuda'."
)


def refuse_what_means_nothing() -> None:
    """Refuse arguments of the call that would be passed over.

    Raises:
        ArtifactError: naming the argument, its value and what to do.
    """
    said = _call()
    for name, why in _MEANINGLESS.items():
        if said.get(name):
            raise ArtifactError(f"from_pretrained: {name}={said[name]!r}: {why}")
    if said.get("use_safetensors") is False:
        raise ArtifactError(
            "from_pretrained: use_safetensors=False asks for pickled weights, which run code when "
            "they are opened. A compressed model never has any; leave the argument out."
        )


def one_device(device_map: Any) -> Any:
    """Return a device map that names one device, None for none.

    Raises:
        ArtifactError: if it names several, or the disk.
    """
    if isinstance(device_map, str) and device_map in _CHOSEN_BY_LIBRARY:
        import torch

        return {"": 0 if torch.cuda.is_available() else "cpu"}
    if isinstance(device_map, dict):
        devices = set(map(str, device_map.values()))
        if len(devices) > 1 or "disk" in devices:
            raise ArtifactError(_SEVERAL)
    return device_map


def changed_by_call(folder: Path, model: Any) -> str:
    """Return which fields of config.json the call changed, as a sentence; "" for none.

    Args:
        folder: the artifact.
        model: what transformers built of the changed config.
    """
    stored = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    given = type(model.config).from_dict(stored).to_dict()
    built = model.config.to_dict()
    others = {"_name_or_path", "dtype", "torch_dtype", "quantization_config", "architectures"}
    others |= {"transformers_version", "transformers_weights"}
    changed = [
        f"{key}={built[key]!r} (it has {given[key]!r})"
        for key in sorted(given.keys() & built.keys() - others)
        if built[key] != given[key] and not key.startswith("_")
    ]
    if not changed:
        return ""
    return (
        f"{folder}: from_pretrained was asked for {', '.join(changed)[:400]}, and the tensors of "
        "this compressed model do not fit that. Leave it out; to train another head, load the "
        "model as it is and replace the head."
    )


def fetch_without_listing(repo_id: str, file: Path) -> Path:
    """Fetch the rest of an artifact from before there was an index of its files.

    Args:
        repo_id: where it is.
        file: one of its files, in the cache that the caller chose.
    """
    snapshot = snapshot_of(file.parent)
    if snapshot is None:
        return file.parent
    hub = Hub(cache=snapshot.cache, offline=bool(_call().get("local_files_only")))
    hub.token = _call().get("token")
    return fetch_artifact(Address(repo_id, snapshot.inside, snapshot.commit), hub)


def _call() -> Mapping[str, Any]:
    """Return the arguments of the call that is under way; empty where they cannot be seen."""
    frame: Any = sys._getframe()
    while frame is not None:
        module = frame.f_globals.get("__name__")
        if frame.f_code.co_name == "from_pretrained" and module == "transformers.modeling_utils":
            return dict(frame.f_locals)
        frame = frame.f_back
    return {}
