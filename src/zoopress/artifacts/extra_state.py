"""What modules keep besides tensors, through torch's `get_extra_state`, as a file of plain data.

    extra_state.json    {"MODULE PATH": VALUE, …}

A VALUE is null, a boolean, a number, a string, or a list whose first item tells what it is:
["list", [VALUE, …]], ["tuple", [VALUE, …]], ["dict", [[VALUE, VALUE], …]],
["bytes", BASE64] or ["tensor", TYPE, SHAPE, BASE64]. A module's own `set_extra_state` gets it back.
"""

from __future__ import annotations

import base64
import binascii
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from zoopress.errors import ArtifactError, SourceError
from zoopress.models.edits import submodule

EXTRA_STATE = "extra_state.json"
_PLAIN = (bool, int, float, str)


def extra_state(module: nn.Module) -> bytes | None:
    """Return the file's content, None if no module keeps anything besides tensors.

    Raises:
        SourceError: naming the module, if what it keeps is not plain data.
    """
    found = {}
    for path, part in module.named_modules():
        if type(part).get_extra_state is not nn.Module.get_extra_state:
            try:
                found[path] = _encode(part.get_extra_state())
            except TypeError as error:
                raise SourceError(
                    f"The module {path!r} ({type(part).__name__}) keeps an extra state that holds "
                    f"{error}. Only tensors, numbers, strings, and lists, tuples and dicts of them "
                    "can be stored. Let its `get_extra_state` return such."
                ) from error
    return (json.dumps(found, indent=1) + "\n").encode() if found else None


def restore_extra_state(module: nn.Module, file: Path) -> None:
    """Give modules back what they kept.

    Raises:
        ArtifactError: if the file is damaged or a module does not take it.
    """
    try:
        found = json.loads(file.read_bytes())
        states = {str(path): _decode(value) for path, value in found.items()}
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RuntimeError) as error:
        raise ArtifactError(f"{file} is damaged: {error}. Download or build it again.") from error
    for path, state in states.items():
        try:
            submodule(module, path).set_extra_state(state)
        except Exception as error:  # a module's own code
            raise ArtifactError(
                f"{file}: the module {path!r} does not take the extra state that is stored of it: "
                f"{type(error).__name__}: {error}. Is the factory that of the original?"
            ) from error


def _encode(value: Any) -> Any:
    if isinstance(value, Tensor):
        if value.layout != torch.strided or value.is_quantized:
            raise TypeError("a tensor that is not dense")
        whole = value.detach().cpu().contiguous()
        octets = whole.reshape(-1).view(torch.uint8).numpy().tobytes() if whole.numel() else b""
        dtype = str(whole.dtype).removeprefix("torch.")
        return ["tensor", dtype, list(whole.shape), base64.b64encode(octets).decode()]
    if value is None or type(value) in _PLAIN:
        return value
    if isinstance(value, (bytes, bytearray)):
        return ["bytes", base64.b64encode(value).decode()]
    if isinstance(value, dict):
        return ["dict", [[_encode(key), _encode(item)] for key, item in value.items()]]
    if type(value) in (list, tuple):
        return [type(value).__name__, [_encode(item) for item in value]]
    raise TypeError(f"a {type(value).__name__}")


def _decode(value: Any) -> Any:
    if not isinstance(value, list):
        return value
    kind, *rest = value
    if kind == "tensor":
        dtype, shape, data = rest
        known = getattr(torch, dtype)
        if not isinstance(known, torch.dtype):
            raise ValueError(f"{dtype!r} is no type of a tensor")
        octets = bytearray(_octets(data))
        flat = torch.frombuffer(octets, dtype=known) if octets else torch.empty(0, dtype=known)
        return flat.reshape(shape)
    if kind == "bytes":
        return _octets(rest[0])
    if kind == "dict":
        return {_decode(key): _decode(item) for key, item in rest[0]}
    if kind in ("list", "tuple"):
        items = [_decode(item) for item in rest[0]]
        return tuple(items) if kind == "tuple" else items
    raise ValueError(f"it holds a {kind!r}")


def _octets(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except binascii.Error as error:
        raise ValueError(str(error)) from error
